"""How many cores a run takes for its own."""

import os
import subprocess
import sys

import pytest

from vitlab.cores import cores

REPORT = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from vitlab.cores import cores
from vitlab.hardware import device_name
print(cores(), device_name("cpu"), sep="\\n")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such masks on this system")
def test_a_process_held_to_one_core_counts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_CORES", raising=False)
    done = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, name = done.stdout.splitlines()
    assert count == "1"
    assert name.endswith(", 1 core")


def test_the_mask_counts_and_not_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_CORES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64


def test_a_share_of_a_sweep_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("VITLAB_CORES", "2")
    assert cores() == 2
