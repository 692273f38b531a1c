"""Where the images of a run lie, and what is said about it."""

import subprocess
import sys

import pytest

from vitlab.config.schema import RULES
from vitlab.core import cpu_count
from vitlab.core.errors import UserError
from vitlab.data.memory import available_memory, decide_in_memory

MIB = 2**20


@pytest.mark.parametrize(
    ("asked", "needed", "free", "in_memory", "why"),
    [
        ("auto", 100 * MIB, 200 * MIB, True, "100 MiB of 200 MiB free; auto"),
        (
            "auto",
            100 * MIB,
            199 * MIB,
            False,
            "100 MiB would not fit in half of the 199 MiB free on cpu; auto",
        ),
        ("auto", 100 * MIB, None, True, "100 MiB; auto"),
        (True, 100 * MIB, 100 * MIB, True, "100 MiB of 100 MiB free"),
        (True, 100 * MIB, None, True, "100 MiB"),
        (False, 1536 * MIB, 2**40, False, "1.5 GiB in all; data.in_memory=false"),
    ],
)
def test_what_is_asked_for_and_what_fits(asked, needed, free, in_memory, why):
    assert decide_in_memory(asked, needed=needed, free=free, device="cpu") == (in_memory, why)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"need 200\.0 GiB and cuda has 79\.5 GiB free.*in_memory=false"):
        decide_in_memory(True, needed=200 * 2**30, free=int(79.5 * 2**30), device="cuda")


@pytest.mark.parametrize(
    ("own", "above", "free"),
    [("4000", None, 3500), ("max", None, None), ("9000", "3000", 2500), ("max", "3000", 2500)],
)
def test_the_limit_of_a_jobs_control_group_counts_and_of_those_above_it(
    monkeypatch, tmp_path, own, above, free
):
    unlimited = available_memory()
    monkeypatch.setattr(cpu_count, "ROOT", tmp_path)
    job = tmp_path / "sys/fs/cgroup/slurm/job_1"
    for folder in (job, tmp_path / "proc/self"):
        folder.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_1\n")
    for folder, limit in ((job, own), (job.parent, above)):
        if limit:
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text("700\n")
            (folder / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    if free is None:
        assert available_memory() > unlimited / 2, "the machine's"
    else:
        assert available_memory() == free


def test_ulimit_v_counts():
    code = (
        "import resource; from vitlab.data.memory import available_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34)); print(available_memory())\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**20, 2**34)); print(available_memory())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    large, none = map(int, ended.stdout.split())
    assert 0 < large < 2**34
    assert none == 0, "the process itself has more"


def test_the_rules_of_the_keys():
    for key, right, wrong in (
        ("in_memory", (True, False, "auto"), (1, None, "yes")),
        ("cache", ("data/cache", None), (1, "", True)),
        ("num_workers", (None, 0, 16), (-1, True, 1.5)),
    ):
        rule = RULES[f"data.{key}"]
        assert all(rule.accepts(value) for value in right), key
        assert not any(rule.accepts(value) for value in wrong), key
