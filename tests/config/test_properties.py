"""Broken command lines end in one sentence: a few of those that ``python -m tests.properties`` draws."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties import answer, make_places
from tests.random_lines import Material, broken_lines, words_of_verbs

FEW = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NOWHERE = Material(Path("images"), Path("teacher"))
# What random command lines have brought to light.
FOUND = {
    "a number of 5,000 digits": ["seed=" + "9" * 5000],
    "a name of 300 letters": ["data=shapes", "hydra.run.dir=" + "a" * 300],
    "a range without steps": ["-m", "seed=range(0,1,0)"],
    "a range of nothing that is a number": ["-m", "seed=range(nan,inf)"],
    "another kind of data, without its keys": ["data=shapes", "data.kind=image_folder", "data.root=x"],
    "other code, without its keys": ["data=shapes", "scheduler._target_=vitlab.optim.adamw"],
    "a launcher that is null": ["-m", "data=shapes", "hydra.launcher=null", "seed=1,2"],
    "Hydra's own sweeper": ["-m", "hydra.sweeper.params={a: 1}", "seed=1,2"],
    "what a shell calls": ["-sc", "query=bash"],
    "an open bracket beside it": ["-sc", "a=["],
    "a profiler for TPUs": ["data=shapes", "trainer.profiler=xla"],
    "a model made for another tokenizer": ["data=shapes", "model=cct_7_3x1", "model/tokenizer=conv_stem"],
}


@FEW
@given(st.sampled_from(["train", "train", "train", "benchmark"]), broken_lines(NOWHERE))
def test_a_broken_command_line_ends_in_one_sentence_and_leaves_nothing(verb: str, typed: list[str]) -> None:
    with TemporaryDirectory() as work:
        answer(verb, typed, Path(work))


@FEW
@given(words_of_verbs())
def test_verbs_given_what_is_no_trained_network_end_in_one_sentence(words: list[str]) -> None:
    with TemporaryDirectory() as work:
        make_places(Path(work))
        answer(words[0], words[1:], Path(work))


def test_evaluating_a_damaged_checkpoint_leaves_no_folder(tmp_path: Path) -> None:
    make_places(tmp_path)
    assert "torn.ckpt" in answer("evaluate", ["torn.ckpt"], tmp_path).said


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_so_stays_mended(name: str, tmp_path: Path) -> None:
    assert answer("train", FOUND[name], tmp_path).kind == "refused"


def test_flags_may_stand_among_the_settings(tmp_path: Path) -> None:
    typed = ["model=vit_tiny", "--cfg", "job", "model.depth=3"]
    assert answer("train", typed, tmp_path).said == "shown"
