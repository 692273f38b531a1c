"""Workers on several machines, which join and die at any time, run each job of a sweep once."""

import random
from pathlib import Path

import pytest

from tests import chaos_workers
from tests.chaos_workers import rampage, why_not


@pytest.mark.parametrize("locks", ["per machine", "none"])
def test_workers_that_are_killed_leave_no_job_behind(
    locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.setattr(chaos_workers, "VICTIMS", ("worker", "machine"))
    monkeypatch.setattr(random.Random, "uniform", lambda self, least, most: most / 2)
    (row,) = rampage(1, jobs=3, strikes=1, seed=0, work=tmp_path, locks=[locks])
    assert row["worker"] + row["machine"] == 1
    assert not row["wrong"]
