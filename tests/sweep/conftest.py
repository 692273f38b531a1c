"""What the tests of sweeps share: sweeps whose jobs train nothing."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweep.helpers import Calls
from vitlab.compare import show_leaderboard
from vitlab.config.arguments import parse_arguments
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep import run_sweep, worker

# In place of a training: notes each start, and ends as `fate` beside the sweep says of its depth.
PROGRAM = """
import json, os, pathlib, sys, time, yaml
folder = pathlib.Path(sys.argv[1])
config = yaml.safe_load((folder / "config.yaml").read_text())
depth, seed = config["model"]["depth"], config["seed"]
with open("starts", "a") as starts:
    starts.write(f"{folder.name}\\n")
fate = json.loads(pathlib.Path("fate").read_text()).get(str(depth))
if fate == "killed":
    os.kill(os.getpid(), 9)
if fate == "wait":
    time.sleep(60)
data = {"status": fate or "finished", "seed": seed, "train": {"wall_seconds": 62.0}}
data["metrics"] = {"val/accuracy": depth / 10 + seed / 1000, "test/accuracy": 1 - depth / 10}
if fate == "failed":
    data["error"] = "training diverged"
(folder / "summary.json").write_text(json.dumps(data))
sys.exit({"failed": 1, "interrupted": 130, "warned": 138}.get(fate, 0))
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Run a sweep in this process on jobs that train nothing; return the folders of the jobs it started."""

    def start(folder: RunFolder, *, shown: bool = True, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder.path)], env=os.environ | env)

    monkeypatch.setattr(worker, "start", start)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "starts").touch()

    def run(*arguments: str, fate: dict[int, str] | None = None, fails: str = "") -> list[str]:
        (tmp_path / "fate").write_text(json.dumps(fate or {}))
        before = len((tmp_path / "starts").read_text().splitlines())
        with pytest.raises(UserError, match=fails) if fails else contextlib.nullcontext():
            run_sweep(parse_arguments(arguments), show_leaderboard)
        return (tmp_path / "starts").read_text().splitlines()[before:]

    return run
