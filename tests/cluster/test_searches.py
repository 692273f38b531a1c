"""Two machines on one search, with PostgreSQL and Optuna's proxy, while workers, proxy and server die."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests import light_job
from tests.cluster.database import DIRECT, PASSWORD, PROXY, Database
from tests.cluster.machines import ADDRESS, Machines
from tests.conftest import TINY, summary, wait_for
from tests.sweep.helpers import RATE

TRIALS = 8
LIGHT = [sys.executable, "-m", "tests.light_job", "train"]
SEARCH = ["-m", "sweep=optuna", *TINY, RATE, f"sweep.trials={TRIALS}", "sweep.pruner=none"]


def join(machines: Machines, name: str, folder: Path, *typed: str, **env: str) -> subprocess.Popen[bytes]:
    """Type the command on a machine."""
    command = [*LIGHT, *typed] if typed[0] == "-m" else [*LIGHT, *typed, f"sweep.resume={folder}"]
    return machines.start(name, *command, env={light_job.SHORT: "1", **env})


def states(folder: Path) -> list[str]:
    record = folder / "sweep.json"
    return [job["state"] for job in json.loads(record.read_text())["jobs"]] if record.exists() else []


def check(folder: Path, said: str) -> None:
    """Check that each trial was trained once, whatever happened, and the best alone was tested."""
    assert states(folder) == ["finished"] * TRIALS, said
    runs = [path.parent for path in folder.glob("*/config.yaml")]
    assert sorted(path.name[:3] for path in runs) == [f"{number:03d}" for number in range(TRIALS)]
    ends = [json.loads((path / "checkpoints" / "last.ckpt").read_text()) for path in runs]
    assert len({state for state, _ in ends}) == 1, "as where nothing happened: the hash of the same steps"
    assert {steps for _, steps in ends} == {light_job.STEPS}
    best = max(runs, key=lambda path: summary(path)["metrics"]["val/accuracy"])
    tests = {path.parent: path.read_text() for path in folder.glob("*/tests")}
    assert tests == {best: "tested\n"}
    assert {path.name for path in folder.glob("*.png")} == {"trials.png", "values.png"}
    assert "Traceback" not in said


def test_machines_share_a_search_through_the_proxy_while_things_die(
    database: Database, machines: Machines, scripts: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "search"
    command = [*SEARCH, f"sweep.storage={PROXY}", f"hydra.sweep.dir={folder}"]
    script = scripts("storage_proxy.sh")
    early = join(machines, "right", folder, *command)
    assert early.wait(120) == 1
    assert f"error: sweep.storage={PROXY} does not answer: expected Optuna's proxy" in machines.logs()
    assert not folder.exists()
    database.start_proxy(script)
    doomed = join(machines, "right", folder, *command)
    wait_for(lambda: [*folder.glob("*/checkpoints/last.ckpt")], 120)
    staying = join(machines, "left", folder, "sweep.jobs=2")
    wait_for(lambda: states(folder).count("finished") >= 1 and len(states(folder)) >= 4, 120)
    doomed.kill()  # the worker and its trial
    doomed.wait()
    database.stop_proxy()
    wait_for(
        lambda: f"sweep.storage={PROXY} does not answer" in (machines.folder / "left.log").read_text(), 60
    )
    database.start_proxy(script)
    third = join(machines, "right", folder, f"sweep.storage=grpc://{ADDRESS['left']}:13000")
    assert (staying.wait(240), third.wait(240)) == (0, 0), machines.logs()
    said = machines.logs()
    check(folder, said)
    assert "answers again" in said
    assert database.count_trials() <= TRIALS + 1, "at most one was drawn in vain"
    ends = [line for line in said.splitlines() if "] lr=" in line and "val/accuracy" in line]
    assert max(Counter(line.split()[1] for line in ends).values()) == 1, "each end is told once"


def test_processes_share_the_server_itself_and_keep_its_password(
    database: Database, machines: Machines, tmp_path: Path
) -> None:
    folder = tmp_path / "search"
    command = [*SEARCH, f"sweep.storage={DIRECT}", f"hydra.sweep.dir={folder}"]
    refused = join(machines, "right", folder, *command, PGPASSFILE="/dev/null")
    assert refused.wait(120) == 1
    assert "no password supplied" in machines.logs()
    # At the same moment, on a data base without tables.
    both = [join(machines, name, folder, *command, **database.env) for name in ADDRESS]
    wait_for(lambda: states(folder).count("finished") >= 2, 120)
    database.stop_server()
    database.start_server()
    assert [process.wait(240) for process in both] == [0, 0], machines.logs()
    check(folder, machines.logs())
    written = [path for path in (*folder.rglob("*"), *machines.folder.glob("*.log")) if path.is_file()]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
    more = join(machines, "right", folder, f"sweep.trials={TRIALS - 1}", **database.env)
    assert more.wait(120) == 0, "nobody is there: it may change, and nothing is left to do"
    check(folder, "")
