"""What vitlab takes from inside Hydra, whose public interface has no parser and no launcher to call.

Both need a composition that has begun: they are called inside ``with Composer(…)``.
"""

from collections.abc import Callable
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig


def make_parser() -> OverridesParser:
    """Return Hydra's parser of overrides, which knows the options that ``glob(…)`` matches."""
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


def make_launcher(config: DictConfig, task: Callable[[DictConfig], Any]) -> Launcher:
    """Return the launcher that ``config.hydra.launcher`` names, for jobs that call ``task``."""
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
