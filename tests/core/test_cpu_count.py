"""How many cores a run takes for its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitlab.core import cpu_count as module
from vitlab.core.cpu_count import count_cores

REPORT = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from vitlab.core.cpu_count import count_cores
from vitlab.core.hardware import describe_device
print(count_cores(), describe_device("cpu"), sep="\\n")
"""


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_CORES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such masks on this system")
def test_a_process_held_to_one_core_counts_one() -> None:
    done = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, name = done.stdout.splitlines()
    assert count == "1"
    assert name.endswith(", 1 core")


@pytest.mark.parametrize(("asked", "count"), [("3", 3), ("16", 4)])
def test_slurm_counts_where_it_holds_nobody_to_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, count: int
) -> None:
    monkeypatch.setattr(module, "read_quota", lambda: None)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    assert count_cores() == count


def test_the_mask_counts_and_not_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(module, "read_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert count_cores() == 64


def test_a_share_of_a_sweep_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_CORES", "2")
    assert count_cores() == 2


@pytest.mark.parametrize(
    ("said", "count"),
    [("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("max 100000", 4), ("", 4), (None, 4)],
)
@pytest.mark.parametrize("group", ["", "a.slice/b.scope"])
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str | None, count: int, group: str
) -> None:
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for folder in ("proc/self", f"sys/fs/cgroup/{group}"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"1:name=systemd:/other\n0::/{group}\n")
    if said is not None:
        (tmp_path / "sys/fs/cgroup" / group / "cpu.max").write_text(f"{said}\n")
    assert count_cores() == count
