"""``--status DIR``: how far runs, sweeps and whole studies are, for programs; nothing is written."""

from pathlib import Path
from typing import Any

from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder, State
from vitlab.sweep.record import RECORD, Sweep


def find_status(path: str) -> dict[str, Any]:
    """Return the state of the run or the sweep in a folder, or of all that lie below it.

    Raises:
        UserError: there are none, or a record cannot be read.
    """
    folder = Path(path)
    if (folder / RECORD).is_file():
        return _of_sweep(Sweep.load(folder))
    below = {
        *(record.parent for record in folder.glob(f"*/{RECORD}")),
        *(config.parent for config in folder.glob("*/config.yaml")),
    }
    if not below:
        return _of_run(RunFolder.find(path, key="--status"))
    return {
        "kind": "study",
        "folder": str(RunFolder(folder)),
        "runs": [find_status(str(p)) for p in sorted(below)],
    }


def _of_run(folder: RunFolder) -> dict[str, Any]:
    """Return how far a run is: its state, its last epoch, and how to go on."""
    summary = folder.read_summary()
    state = folder.state(summary)
    trainer = folder.read_config().get("trainer", {})
    rows = read_metrics(folder)
    return {
        "kind": "run",
        "folder": str(folder),
        "state": state,
        "epoch": rows[-1]["epoch"] if rows else 0,
        "max_epochs": trainer.get("max_epochs"),
        "max_steps": trainer.get("max_steps"),
        "last": rows[-1] if rows else {},  # row of metrics.csv
        "metrics": summary.get("metrics", {}),
        "error": summary.get("error"),
        "error_kind": summary.get("error_kind"),
        "wall_seconds": summary.get("train", {}).get("wall_seconds"),
        "device": summary.get("device"),
        "command": folder.resume_command if state.resumable else None,
    }


def _of_sweep(sweep: Sweep) -> dict[str, Any]:
    """Return how far a sweep or a search is, and each of its jobs."""
    jobs = []
    for job in sweep.jobs:
        state = sweep.state(job)
        there = job.folder is not None and sweep.run_folder(job).config.exists()
        run = _of_run(sweep.run_folder(job)) if there else {"kind": "run", "folder": None, "command": None}
        jobs.append(run | {"label": job.label, "state": state, "problem": job.reason})
    states = sweep.count_states()
    left: Any = sweep.unfinished()
    if sweep.search is not None and "trials" in sweep.search:
        # A trial that failed since is made up for; one that diverged has failed, too, and counts.
        ended = sum(states[state] for state in (State.FINISHED, State.PRUNED))
        ended += sum(job.get("error_kind") == "diverged" for job in jobs)
        left = ended < sweep.search["trials"]
    return {
        "kind": "sweep" if sweep.search is None else "search",
        "folder": str(sweep),
        "states": dict(states),
        "command": sweep.resume_command if left else None,
        "jobs": jobs,
    }
