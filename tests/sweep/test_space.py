"""The space of ``sweep=optuna``: what is read, what is refused before anything is written, what is drawn."""

import math
import sys
from pathlib import Path

import pytest
from optuna import distributions as of

from tests.sweep.helpers import PLAIN, RATE, run_search
from vitlab.config import preflight
from vitlab.config.arguments import parse_arguments
from vitlab.core.errors import UserError
from vitlab.sweep import is_search
from vitlab.sweep.space import read_space
from vitlab.sweep.storage import Storage
from vitlab.sweep.study import Study, make_pruner


def test_hydras_syntax_is_the_space() -> None:
    space = read_space(
        [
            *PLAIN,
            RATE,
            "optimizer.weight_decay=interval(0,1)",
            "model.depth=interval(4,8)",
            "data.batch_size=tag(log,interval(8,64))",
            "model.dim=range(16,64,16)",
            "model.dropout=range(0,0.3,0.1)",
            "model.heads=2,1",
            "model.pool=choice(cls,mean)",
        ]
    )
    assert space.distributions == {
        "optimizer.lr": of.FloatDistribution(1e-4, 4e-3, log=True),
        "optimizer.weight_decay": of.FloatDistribution(0, 1),  # whole ends, but the key takes all between
        "model.depth": of.IntDistribution(4, 8),
        "data.batch_size": of.IntDistribution(8, 64, log=True),
        "model.dim": of.IntDistribution(16, 48, step=16),  # as in Python, range stops before its end
        "model.dropout": of.FloatDistribution(0, 0.2, step=0.1),
        "model.heads": of.CategoricalDistribution(["2", "1"]),
        "model.pool": of.CategoricalDistribution(["cls", "mean"]),
    }


def test_numbers_are_short_and_stay_in_their_interval() -> None:
    space = read_space([*PLAIN, "optimizer.lr=interval(0.00012344,0.0012)"])
    assert space.lines({"optimizer.lr": 0.000123441}) == ["optimizer.lr=0.00012344"]
    assert space.lines({"optimizer.lr": 0.00098765432}) == ["optimizer.lr=0.0009877"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.depth=4,6"], "no interval"),
        (["optimizer.lr=interval(1e-2,1e-4)"], "lower end first"),
        (["optimizer.weight_decay=tag(log,interval(0,1))"], "starts above 0"),
        (["model.dim=tag(log,range(16,64,16))"], "no steps of 16"),
        (["optimizer.lr=tag(slow,interval(1,2))"], "no tag slow; the only one is log"),
        ([RATE, "model.depth=tag(log,choice(4,6))"], "a list has no scale"),
        (["model.depth=interval(2.5,8)"], "interval(2.5,8): expected a whole number"),
        (["model.drop_path=interval(0,1.5)"], "a number from 0 and below 1, found 1.5"),
        ([RATE, "model.depth=4,-1"], "model.depth=4,-1: expected a whole number"),
        ([RATE, "model=vit_tiny,vit_tny"], "did you mean vit_tiny"),
        (["optimizer.rl=interval(0,1)"], "optimizer.rl"),
        ([RATE, "model.patch_size=5"], "patch_size=5"),
        ([RATE, "seed=1,2"], "the best of several seeds is luck"),
        ([RATE, "sweep.trials=1,2"], "sweep.trials is of the whole search"),
        ([RATE, "sweep.trials=0"], "sweep.trials=0: expected a whole number from 1"),
        ([RATE, "sweep.pruner=mean"], "median or hyperband or none"),
        ([RATE, "data.val_size=0"], "nothing is validated"),
        ([RATE, "hydra/launcher=joblib"], "sweep.jobs=N"),
        (["optimizer.lr=interval(1,2"], "cannot be read"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run_search(*PLAIN, "hydra.sweep.dir=s", *overrides)
    assert said in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_grid_names_the_search_and_a_search_is_told_from_a_grid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sweep=optuna"):
        preflight(["optimizer.lr=interval(0.1,0.2)"], True)
    assert is_search(parse_arguments(["-m", "sweep=optuna", RATE]))
    recipe, resumed = "experiment=cnn_vs_vit", f"sweep.resume={tmp_path}"
    for typed in (["model.depth=1,2"], ["sweep=grid", recipe], [recipe], [resumed]):
        assert not is_search(parse_arguments(["-m", *typed]))


def test_without_optuna_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "vitlab.sweep.search", raising=False)
    with pytest.raises(UserError, match=r"pip install -e \.\[optuna\]"):
        run_search(*PLAIN, RATE)


def asked(folder: Path, *overrides: str, trials: int) -> list[float]:
    """Return the rates that a search draws, each told what it is worth: best at 1e-3."""
    folder.mkdir()
    space = read_space([*PLAIN, "optimizer.lr=tag(log,interval(1e-7,1))", *overrides])

    def open_study() -> Study:
        return Study(folder, space, Storage(None).open(folder, "", make_pruner(space)), alone=True)

    known = open_study()
    rates = []
    for _ in range(trials):
        known.ask(random=False)
        known.refresh()
        trial = known.get_live(known.trials[-1])
        rates.append(trial.params["optimizer.lr"])
        known.tell(trial, "finished", value=-abs(math.log10(rates[-1] / 1e-3)))
        known.refresh()
        if len(rates) == 2:
            known = open_study()  # as after a kill
    return rates


def test_the_sampler_draws_where_it_was_good(tmp_path: Path) -> None:
    rates = asked(tmp_path / "s", trials=30)
    assert len({*rates}) == 30, "a search that goes on does not draw the first ones again"
    # Drawn at random they were 1.8 decades off.
    assert sum(abs(math.log10(rate / 1e-3)) for rate in rates[20:]) / 10 < 1.1


def test_the_seed_of_the_search_decides_what_is_drawn(tmp_path: Path) -> None:
    one = asked(tmp_path / "one", trials=4)
    assert asked(tmp_path / "same", "seed=5", trials=4) == one
    assert not {*asked(tmp_path / "other", "sweep.seed=1", trials=4)} & {*one}
