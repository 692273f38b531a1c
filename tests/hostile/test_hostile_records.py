"""Summaries, metrics and sweeps that a person is handed."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, checkpoint, summary
from tests.hostile.helpers import Answers
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.core.untrusted import misfits
from vitlab.sweep.record import Sweep

SUMMARIES: dict[str, Any] = {
    "a hundred thousand brackets": "[" * 100_000,
    "nested to the edge": '{"alarms": ' + "[" * 900 + "]" * 900 + "}",
    "a list": "[1]",
    "cut": '{"status": "fini',
    "not UTF-8": b"\xff\xfe\x00",
    "a number without end": '{"metrics": {"val/accuracy": ' + "9" * 5000 + "}}",
    "infinite accuracy": '{"metrics": {"val/accuracy": 1e400}, "train": {"epochs": 0.5}}',
    "words for everything": json.dumps(dict.fromkeys(("metrics", "train", "model", "data", "turned"), "x")),
}


@pytest.mark.parametrize("content", SUMMARIES.values(), ids=SUMMARIES)
def test_of_a_hostile_summary_what_is_sound_is_read(answer: Answers, copied: Path, content: Any) -> None:
    path = copied / "summary.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = RunFolder(copied).read_summary()
    assert not {"metrics", "train", "alarms"} & found.keys()
    assert answer("compare", copied)[0] == 0
    assert answer("export", copied, "--format", "safetensors")[0] == 0


@pytest.mark.parametrize(
    "content", [b"epoch,step\n1,\x00\n", b"epoch,step\n1," + b"1" * 200_000, b"epoch\nx"]
)
def test_hostile_metrics_are_one_sentence(answer: Answers, copied: Path, content: bytes) -> None:
    shutil.rmtree(copied / "checkpoints")
    Summary(RunFolder(copied).summary).update(status="interrupted")
    (copied / "metrics.csv").write_bytes(content)
    code, text = answer("train", f"resume={copied}")
    assert code == 1
    assert "metrics.csv cannot be read" in text
    assert answer("compare", copied)[0] == 0


def test_a_run_records_what_the_types_say(finished: Path) -> None:
    from vitlab.core.checkpoint import CheckpointMeta
    from vitlab.core.summary import SummaryData

    assert not [*misfits(summary(finished), SummaryData)]
    assert not [*misfits(checkpoint(finished)["vitlab"], CheckpointMeta)]


JOB = {"label": "a", "folder": "a", "reason": None, "overrides": []}
SWEEPS: dict[str, Any] = {
    "a job outside": {"jobs": [JOB | {"folder": "../outside"}]},
    "a job anywhere": {"jobs": [JOB | {"folder": "/etc"}]},
    "the folder above": {"jobs": [JOB | {"folder": ".."}]},
    "jobs that are words": {"jobs": ["a"]},
    "a label that is a list": {"jobs": [JOB | {"label": [1]}]},
    "a command that is a number": {"command": 1},
    "a search that is a word": {"search": "x"},
}


@pytest.mark.parametrize("changed", SWEEPS.values(), ids=SWEEPS)
def test_a_hostile_sweep_is_one_sentence(answer: Answers, tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    record = {"command": [], "swept": [], "launcher": [], "jobs": [JOB]}
    (folder / "sweep.json").write_text(json.dumps(record))
    assert len(Sweep.load(folder).jobs) == 1
    (folder / "sweep.json").write_text(json.dumps(record | changed))
    code, text = answer("train", f"sweep.resume={folder}")
    assert (code, text.count("\n")) == (1, 1)
    assert "sweep.json cannot be read" in text


@pytest.mark.parametrize("content", [b"no database", pickle.dumps(["x"])])
def test_a_study_that_is_no_database_is_one_sentence(answer: Answers, tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    folder.mkdir()
    search = {"fixed": [*TINY, "sweep=optuna"], "space": {"model.depth": "range(1,3)"}}
    record = {"command": [], "swept": [], "launcher": [], "jobs": [], "search": search}
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "study.db").write_bytes(content)
    code, text = answer("train", f"sweep.resume={folder}")
    assert code == 1
    assert "study.db cannot be read" in text
