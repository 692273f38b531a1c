"""Hydra's composition of conf/, from any folder and beside a running hydra.main."""

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vitlab.core.errors import UserError
from vitlab.core.suggest import did_you_mean, nearest

# conf/hydra/launcher/ has options of the same names as the launcher plugins. Hydra checks ours by theirs,
# which is what we want, and calls it deprecated.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

CONF = Path(__file__).resolve().parents[3] / "conf"
VERSION_BASE = "1.3"


def register_resolvers() -> None:
    """Register the resolvers that conf/ uses; calling it again changes nothing.

    ``${timestamp:}`` is the local time to the millisecond, one value a composition.
    """
    if not OmegaConf.has_resolver("timestamp"):
        OmegaConf.register_new_resolver("timestamp", _timestamp, use_cache=True)


def _timestamp() -> str:
    now = datetime.now()
    return f"{now:%Y-%m-%d_%H-%M-%S}-{now.microsecond // 1000:03d}"


def compose(overrides: Iterable[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """Return the config of conf/train.yaml under Hydra overrides; unchecked.

    Args:
        overrides: as typed, without flags.
        with_hydra: keep Hydra's own node.

    Raises:
        UserError: Hydra cannot compose it.
    """
    with Composer("train") as composer:
        cfg = composer.compose(tuple(overrides)).copy()
    if not with_hydra:
        with open_dict(cfg):
            del cfg.hydra
    return cfg


class Composer(ExitStack):
    """A Hydra context on conf/: composes, and remembers, since one composition takes 0.1 s."""

    def __init__(self, root: str) -> None:
        if not (CONF / f"{root}.yaml").is_file():
            raise UserError(
                f"no config at {CONF / root}.yaml: vitlab reads conf/ of its own repository, so "
                "install it from a clone with `pip install -e .`"
            )
        super().__init__()
        register_resolvers()
        self.root = root
        self.options = {
            folder.relative_to(CONF).as_posix(): sorted(file.stem for file in folder.glob("*.yaml"))
            for folder in sorted(CONF.rglob("*"))
            # Launchers are no part of a run.
            if folder.is_dir() and folder.relative_to(CONF).parts[0] != "hydra"
        }
        self._known: dict[tuple[str, ...], DictConfig] = {}
        self.enter_context(hydra.initialize_config_dir(str(CONF), version_base=VERSION_BASE))

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """Return the config with Hydra's node; the same object for the same overrides."""
        if overrides not in self._known:
            try:
                self._known[overrides] = hydra.compose(self.root, list(overrides), return_hydra_config=True)
            except YAMLError as error:
                raise UserError(f"a file in conf/ cannot be read: {' '.join(str(error).split())}") from error
            except (HydraException, OmegaConfBaseException, OSError, ValueError, AttributeError) as error:
                raise UserError(f"the config cannot be composed: {reason(error)}") from error
        return self._known[overrides]


def reason(error: BaseException) -> str:
    """Return the first line of what Hydra or OmegaConf says, and of its cause, as one sentence."""
    lines = [str(e).strip().partition("\n")[0].rstrip(".") for e in (error, error.__cause__) if e]
    said = ": ".join(filter(None, lines)) or type(error).__name__
    if options := getattr(error, "options", None):
        _, _, name = str(getattr(error, "missing_cfg_file", None) or "").rpartition("/")
        said += f";{did_you_mean(nearest(name, options))} the options are {', '.join(options)}"
    return said
