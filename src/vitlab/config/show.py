"""What Hydra shows itself: ``--help``, ``--cfg job``, ``--info``, ``--version``, completion."""

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vitlab.config.composer import CONF, VERSION_BASE, reason, register_resolvers
from vitlab.core.errors import UserError


def show(arguments: Sequence[str], root: str = "train") -> None:
    """Let Hydra show what the arguments ask for, and end the process; no run is started.

    Args:
        arguments: flags and overrides, such as ``["--cfg", "job", "model.depth=3"]``.
        root: of ``conf/<root>.yaml``.

    Raises:
        UserError: the config cannot be composed.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to the caller, who says them in one line
    register_resolvers()

    @hydra.main(config_path=str(CONF), config_name=root, version_base=VERSION_BASE)
    def main(cfg: DictConfig) -> None:
        raise AssertionError("a flag that only shows something has run a job")

    sys.argv[1:] = arguments
    try:
        main()
    except KeyError as error:
        raise UserError(f"only a shell calls this, which sets {error.args[0]}: see --hydra-help.") from error
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError) as error:
        raise UserError(f"the config cannot be composed: {reason(error)}") from error
