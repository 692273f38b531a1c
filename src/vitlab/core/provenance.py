"""Where a result comes from: versions and commit."""

import contextlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("vitlab", "torch", "torchvision", "lightning", "timm"),
    *("einops", "torchmetrics", "hydra-core", "numpy"),
)


@cache
def find_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on; ``more`` are others."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def find_commit() -> str | None:
    """Return the commit of the project's checkout, ``-dirty`` after it if files differ; None outside git."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Only what can change a result makes a commit dirty: a run's own outputs are ignored files.
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
