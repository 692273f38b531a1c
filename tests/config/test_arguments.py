"""Flags, ``resume=`` and overrides are told apart; what does not go together is refused."""

import contextlib
import sys
from itertools import product

import pytest

from vitlab.config.arguments import parse_arguments
from vitlab.config.show import show
from vitlab.core.errors import UserError

FLAGS = [
    *(["-m"], ["--multirun"], ["-h"], ["--help"], ["--hydra-help"], ["--version"], ["-c", "job"]),
    *(["--cfg=hydra"], ["-p", "model"], ["--package", "model"], ["--resolve"], ["-i"], ["--info", "config"]),
    *([], ["resume=outputs/x"], ["model.depth=3"], ["sweep.new=true"]),
]


def test_every_flag_beside_every_other_is_taken_or_refused_in_one_sentence() -> None:
    for one, other in product(FLAGS, FLAGS):
        typed = [*one, *other]
        with contextlib.suppress(UserError):
            arguments = parse_arguments(typed)
            names = {flag.partition("=")[0] for flag in typed if flag.startswith("-")}
            assert bool(arguments.shows) == bool(names - {"-m", "--multirun"}), typed
            # Hydra's main function takes one of these alone, and ends any other in a traceback.
            letters = {flag.strip("-")[0] for flag in arguments.shows if flag.startswith("-")}
            assert len(letters & {*"mci"}) <= 1, typed


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("-m model.patch_size=4,8 -h", 0),
        ("resume=x --help", 0),
        ("--lr=1 --cfg -h", 0),
        ("--hydra-help model.depth=2,3", 0),
        ("--version", 0),
        ("--cfg job --resolve", None),
        ("-i config", None),
    ],
)
def test_hydra_shows_what_is_asked_for_and_no_run_is_started(
    typed: str, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *typed.split()])
    asked = parse_arguments(sys.argv[1:]).shows
    if code is None:
        show(asked)
    else:
        with pytest.raises(SystemExit) as end:
            show(asked)
        assert end.value.code == code
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--lr=1e-3", "settings are written without dashes, as optimizer.lr=1e-3"),
        ("--lr", "as optimizer.lr=VALUE"),
        ("--learning-rate 1e-3", "as optimizer.lr=VALUE"),
        ("--multi-run", "did you mean '--multirun'"),
        ("-r", "there is no flag -r"),
        ("--config-name=foo", "there is no flag --config-name=foo"),
        ("-cd", "invalid choice: 'd'"),
        ("--model=vit_small", "as model=vit_small"),
        ("-m --cfg job", "without -m"),
        ("--cfg model.depth=3", "--cfg/-c: invalid choice: 'model.depth=3' (choose from"),
        ("--resolve", "add --cfg job"),
        ("sweep.new=true", "belongs to a sweep: add -m"),
        ("resume=", "resume= needs the name of a folder"),
        ("hydra.run.dir=", "hydra.run.dir= needs the name of a folder"),
        ("resume=x seed=1", "takes nothing beside it; found: seed=1"),
    ],
)
def test_flags_that_are_wrong_are_answered_with_what_to_write(typed: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments(typed.split())
    assert said in str(caught.value)
