"""The space of a search, in Hydra's own syntax for sweeps: what may be drawn for which key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from vitlab.config import Combination, combinations, compose
from vitlab.config.composer import Composer
from vitlab.config.hydra_internals import make_parser
from vitlab.config.labels import HYDRA
from vitlab.config.schema import rule
from vitlab.config.types import Constraint, like, show
from vitlab.core.errors import UserError
from vitlab.sweep.data_check import check_data
from vitlab.sweep.record import OBJECTIVE, SearchRecord

# What may change when a search is resumed.
FREE = ("sweep.trials", "sweep.jobs", "sweep.test_best", "sweep.storage")
OTHERS = ("sweep.resume", "sweep.new")  # which say nothing of the search itself


@dataclass(frozen=True)
class Space:
    """What is searched, and what stands fixed."""

    fixed: list[str]  # overrides, those of the sweep among them
    hydra: list[str]  # Hydra's own
    swept: dict[str, str]  # key → the values, as typed
    distributions: dict[str, BaseDistribution]
    folder: Path  # of a new search
    config: Mapping[str, Any]  # of one possible trial

    @property
    def record(self) -> SearchRecord:
        """What sweep.json keeps of it."""
        return {"fixed": self.fixed, "space": self.swept}

    @property
    def storage(self) -> str | None:
        """Where its trials are kept, if several processes may work on it."""
        return self.config["sweep"]["storage"]

    def lines(self, params: Mapping[str, Any]) -> list[str]:
        """Return the overrides that a trial draws."""
        return [f"{key}={_shorten(params[key], self.distributions[key])}" for key in self.swept]


def _shorten(value: Any, ends: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    # Four digits: nobody wants to copy sixteen, and no learning rate is known so well.
    return str(min(max(float(f"{value:.4g}"), ends.low), ends.high))


def identify(record: SearchRecord) -> dict[str, str]:
    """Return what makes two searches the same, key → value, whatever may change meanwhile."""
    fixed = (o.partition("=") for o in record["fixed"])
    return {key: value for key, _, value in fixed if key not in (*FREE, *OTHERS)} | record["space"]


def read_space(overrides: Sequence[str]) -> Space:
    """Read Hydra's syntax for sweeps as a search space, and check what can be known before a draw.

    Raises:
        UserError: something is mistyped, of a wrong kind, or impossible whatever is drawn.
    """
    try:
        with Composer("train") as composer:
            groups = composer.options
            parser = make_parser()
            typed = parser.parse_overrides(list(overrides))
            single = [o for o in typed if not o.is_sweep_override()]
            chosen = [o for o in single if o.key_or_group in groups or o.is_hydra_override()]
            master = composer.compose(tuple(str(o.input_line) for o in chosen))
            recipe = OmegaConf.select(master, "hydra.sweeper.params") or {}
            every = parser.parse_overrides([f"{key}={value}" for key, value in recipe.items()]) + typed
            last: dict[str, Override] = {}
            for item in every:  # the last of a key counts, and in its place
                last.pop(item.key_or_group, None)
                last[item.key_or_group] = item
            swept = {key: o for key, o in last.items() if o.is_sweep_override()}
            _refuse(swept, master.hydra.runtime.choices)
            values = {key: _values(item) for key, item in swept.items()}
    except HydraException:
        combinations(overrides)  # says what cannot be read
        raise
    fixed = [str(o.input_line) for o in last.values() if not o.is_sweep_override()]
    hydra = [o for o in fixed if o.startswith(HYDRA)]
    ours = [o for o in fixed if o not in hydra]
    for key, found in values.items():
        for option in {*found} - {*groups.get(key, found)}:
            combinations([f"{key}={option}"])  # names the options
    config = _first_possible(ours, values)
    _check_validated(config)
    first = [f"{key}={found[0]}" for key, found in values.items() if key in groups]
    composed = compose([*fixed, *first], with_hydra=True)
    distributions = {}
    for key, item in swept.items():
        kind = None if key in groups else rule(key) or like(OmegaConf.select(composed, key))
        for text in values[key]:
            value: Any = parser.parse_override(f"{key}={text}").value()
            if kind and not kind.accepts(value):
                raise UserError(f"{item.input_line}: expected {kind.says}, found {show(value)}")
        distributions[key] = _distribution(item, kind)
    as_typed = {key: str(item.input_line).partition("=")[2] for key, item in swept.items()}
    return Space(ours, hydra, as_typed, distributions, Path(composed.hydra.sweep.dir), config)


def _refuse(swept: Mapping[str, Override], choices: Mapping[str, str]) -> None:
    """Raise for what a search cannot do."""
    if not any(item.is_interval_sweep() or item.is_range_sweep() for item in swept.values()):
        raise UserError(
            "sweep=optuna found no interval to search: give one, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-2))'. Lists of values alone are a grid, which -m without "
            "sweep=optuna runs whole."
        )
    for key in swept:
        if key == "seed":
            raise UserError(
                "seed is nothing to search: the best of several seeds is luck. Leave it out, and train what "
                "the search finds again with -m seed=1,2,3."
            )
        if key.startswith(("sweep", "hydra")) or key in ("study", "experiment", "resume"):
            raise UserError(f"{key} is of the whole search: give it one value.")
    for group in ("hydra/launcher", "hydra/sweeper"):
        if choices[group] != "basic":
            raise UserError(
                f"{group}={choices[group]} has no part in sweep=optuna, which starts its trials itself: "
                "leave it out; sweep.jobs=N says how many at a time."
            )


def _values(item: Override) -> list[str]:
    """Return the values that stand for all when the space is checked: of numbers the ends."""
    if item.is_interval_sweep():
        sweep: Any = item.value()
        return [str(int(end) if end == int(end) else end) for end in (sweep.start, sweep.end)]
    found = list(item.sweep_string_iterator())
    if not found:
        raise UserError(f"{item.input_line} gives no value at all.")
    return [found[0], found[-1]] if item.is_range_sweep() else list(dict.fromkeys(found))


def _first_possible(fixed: Sequence[str], values: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """Return the config of one possible trial: of all first values, else with one of them replaced.

    Raises UserError where none is possible: what is wrong is no matter of what is drawn.
    """
    first = {key: found[0] for key, found in values.items()}
    errors: list[UserError] = []
    for point in (first, *(first | {key: value} for key, found in values.items() for value in found[1:])):
        try:
            return check_trial([*fixed, *(f"{key}={value}" for key, value in point.items())]).plain
        except UserError as error:
            errors.append(error)
    raise errors[0]


def check_trial(overrides: Sequence[str]) -> Combination:
    """Return one trial, composed and checked with its data; raise UserError where it cannot run."""
    (job,) = combinations(overrides)
    check_data([job.plain])
    return job


def _check_validated(config: Mapping[str, Any]) -> None:
    trainer = config["trainer"]
    if config["data"]["val_size"] == 0 or trainer["limit_val_batches"] == 0 or trainer["fast_dev_run"]:
        raise UserError(
            f"sweep=optuna searches for the best {OBJECTIVE}, and nothing is validated here: it needs "
            "data.val_size above 0, trainer.limit_val_batches not 0 and trainer.fast_dev_run=false."
        )
    if trainer["enable_checkpointing"] is False:
        raise UserError("sweep=optuna goes on from checkpoints and tests the best one: keep them.")


def _distribution(item: Override, kind: Constraint | None) -> BaseDistribution:
    """Return what Optuna draws from: by the key's kind, interval(4,8) is whole numbers or all between."""
    sweep: Any = item.value()
    if item.is_choice_sweep():
        if getattr(sweep, "tags", None):
            raise UserError(f"{item.input_line}: a list has no scale; tags are for interval(…) and range(…).")
        return CategoricalDistribution(list(dict.fromkeys(item.sweep_string_iterator())))
    if unknown := sweep.tags - {"log"}:
        raise UserError(f"{item.input_line}: there is no tag {min(unknown)}; the only one is log.")
    if item.is_range_sweep():
        numbers: list[Any] = sorted(item.sweep_iterator())
        low, high, step = numbers[0], numbers[-1], abs(sweep.step)
        whole = isinstance(low, int)
    else:
        low, high, step = sweep.start, sweep.end, None
        fraction = next((end for end in (low, high) if end % 1), low + 0.5)
        whole = isinstance(low, int) or not (kind is None or kind.accepts(fraction))
        if low >= high:
            raise UserError(f"{item.input_line}: expected the lower end first, found {low:g} and {high:g}.")
    log = bool(sweep.tags)
    if log and (low <= 0 or step not in (None, 1)):
        why = f"starts above 0, not at {low:g}" if low <= 0 else f"has no steps of {step:g}"
        raise UserError(f"{item.input_line}: a logarithmic scale {why}.")
    if whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=None if log or not step else float(step))
