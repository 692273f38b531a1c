"""What the tests of sweeps share: sweeps and searches whose jobs train nothing."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from omegaconf import DictConfig

from tests.sweep.helpers import PLAIN, Calls, Searched, list_jobs, run_search
from vitlab.compare import show_leaderboard
from vitlab.config.arguments import parse_arguments
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep import conclusion, launchers, run_sweep, search, storage, study, worker

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
    monkeypatch.setattr(launchers, "LOOK", 0.02)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "starts").touch()

    def run(*arguments: str, fate: dict[int, str] | None = None, fails: str = "") -> list[str]:
        (tmp_path / "fate").write_text(json.dumps(fate or {}))
        before = len((tmp_path / "starts").read_text().splitlines())
        with pytest.raises(UserError, match=fails) if fails else contextlib.nullcontext():
            run_sweep(parse_arguments(arguments), show_leaderboard)
        return (tmp_path / "starts").read_text().splitlines()[before:]

    return run


# A run as a search sees it: best at optimizer.lr=1e-3, diverging above 5e-3, broken with model.heads=4.
RUN = """
import json, math, os, pathlib, signal, sys, time
import yaml

folder = pathlib.Path(sys.argv[1])
config = yaml.safe_load((folder / "config.yaml").read_text())
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(143))
signal.signal(signal.SIGINT, lambda *_: stopped.append(130))

def write(name, text):
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / name)

def end(status, code, **more):
    found = json.loads((folder / "summary.json").read_text())
    found |= {"status": status, **more}
    found["metrics"] |= {"val/accuracy": max(values)} if values else {}
    if status == "finished" and config["trainer"]["limit_test_batches"] is None:
        found["metrics"]["test/accuracy"] = 0.5
    write("summary.json", json.dumps(found))
    sys.exit(code)

lr, epochs = config["optimizer"]["lr"], config["trainer"]["max_epochs"]
rows = (folder / "metrics.csv").read_text().splitlines()[1:] if (folder / "metrics.csv").exists() else []
values = [float(row.split(",")[2]) for row in rows]
if config["model"]["heads"] == 4:
    end("failed", 1, error="out of luck")
for epoch in range(len(values) + 1, epochs + 1):
    time.sleep(float(os.environ["PACE"]))
    if stopped:
        end("interrupted", stopped[0])
    if lr > 5e-3:
        end("failed", 1, error="not finite", error_kind="diverged")
    values.append(math.exp(-math.log10(lr / 1e-3) ** 2) * (1 - 0.5**epoch))
    rows = "".join(f"{n},{n},{v}\\n" for n, v in enumerate(values, 1))
    write("metrics.csv", "epoch,step,val/accuracy\\n" + rows)
end("finished", 0)
"""

# Composed configs: what takes time and is the same in every test.
known: dict[tuple[str, ...], DictConfig] = {}


@pytest.fixture(scope="session")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    storage.Storage(None).open(folder, "", optuna.pruners.NopPruner())
    return folder / storage.FILE


@pytest.fixture
def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_study: Path
) -> Iterator[list[dict[str, Any]]]:
    """Put small programs in the place of trainings; return what was started."""
    program = tmp_path / "run.py"
    program.write_text(RUN)
    begun: list[dict[str, Any]] = []

    def start(folder: RunFolder, *, shown: bool = True, **env: str) -> subprocess.Popen[bytes]:
        beside = [other["env"] for other in begun if other["process"].poll() is None]
        process = subprocess.Popen([sys.executable, str(program), str(folder.path)])
        begun.append({"name": folder.path.name, "env": env, "process": process, "beside": beside})
        return process

    compose, opened = hydra.compose, storage.Storage.open

    def remember(root: str, overrides: list[str], **options: Any) -> DictConfig:
        if (key := (root, *overrides)) not in known:
            known[key] = compose(root, overrides, **options)
        return known[key]

    def copy(self: storage.Storage, folder: Path, name: str, pruner: Any) -> Any:
        if not self.shared and not (folder / storage.FILE).exists():
            shutil.copy(empty_study, folder / storage.FILE)
        return opened(self, folder, name, pruner)

    monkeypatch.setattr(hydra, "compose", remember)
    monkeypatch.setattr(storage.Storage, "open", copy)
    monkeypatch.setattr(study.Study, "draw", lambda self: None)
    monkeypatch.setattr(worker, "start", start)
    monkeypatch.setattr(search, "POLL", 0.01)
    for module in (search, conclusion):
        monkeypatch.setattr(module, "LOOK", 0.02)
    monkeypatch.setenv("PACE", "0")
    yield begun
    for other in begun:
        other["process"].kill()
        other["process"].wait()


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Searched:
    """Search in tmp_path/s, an epoch in so many seconds; return what sweep.json says of the trials."""

    def call(*overrides: str, epochs: int = 3, seconds: float = 0.0) -> list[dict[str, Any]]:
        monkeypatch.setenv("PACE", str(seconds))
        monkeypatch.chdir(tmp_path)
        run_search(*PLAIN, f"trainer.max_epochs={epochs}", "hydra.sweep.dir=s", *overrides)
        return list_jobs(tmp_path / "s")

    return call
