"""vitlab: Vision Transformers on small images, configured by Hydra, trained by Lightning.

Importing the package is cheap: torch comes with the first thing that needs it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlab.inference.load import load as load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from vitlab.inference.load import load

        return load
    raise AttributeError(f"module 'vitlab' has no attribute '{name}'")
