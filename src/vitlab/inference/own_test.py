"""Is an evaluation equal to the run's own test? And if not, what has changed since?"""

from collections.abc import Mapping
from typing import Any

from vitlab.core import hardware
from vitlab.core.run_folder import RunFolder
from vitlab.inference.evaluate_arguments import Run, is_other_data
from vitlab.inference.evaluate_subject import Subject
from vitlab.training.evaluation import Evaluation, device_kind

Record = Mapping[str, Any]  # of evaluation.json


def compare_with_own_test(run: Run, subject: Subject, record: Record, found: Evaluation) -> dict[str, Any]:
    """Return what the run's own test found, and whether this is equal; or why there is nothing to compare."""
    folder, config = RunFolder(run.home), subject.meta["config"]
    summary = folder.read_summary()
    metrics = summary.get("metrics", {})
    own = {key.removeprefix("test/"): value for key, value in metrics.items() if key.startswith("test/")}
    tested = folder.best if folder.best.exists() else folder.last
    for other, why in (
        (record["split"] != "test", f"these are its {record['split']} images"),
        (is_other_data(config, subject.section), "these are other images"),
        (record["weights"] == "raw", "it tested the averaged weights"),
        (not own, "its summary.json is not there, or has no test"),
        (run.checkpoint.absolute() != tested, f"it tested {tested.name}"),
    ):
        if other:
            return {"why_not": why}
    kind, trainer = device_kind(subject.meta), config["trainer"]
    then = {
        "device": summary.get("device"),
        "torch": summary.get("versions", {}).get("torch"),
        "precision": summary.get("precision"),
        "compiled": summary.get("compiled"),
    }
    now = {
        "device": record["device"],
        "torch": record["versions"]["torch"],
        "precision": record["precision"],
        "compiled": bool(subject.meta.get("compiled")) and hardware.has_compiler(kind),
    }
    reasons = [f"{key} {then[key]} → {now[key]}" for key in then if then[key] != now[key]]
    if (processes := hardware.count_processes(trainer["devices"], kind) * trainer["num_nodes"]) > 1:
        reasons.append(f"processes {processes} → 1")
    if config["data"]["root"] != subject.section["root"]:
        reasons.append(f"data.root {config['data']['root']} → {subject.section['root']}")
    pairs = {key: [value, found.metrics[key]] for key, value in own.items()}
    differs = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return {"metrics": own, "equal": not differs, "differs": differs, "changed": reasons}


def say_own_test(own: Record) -> str:
    """Return the line about the run's own test."""
    if "why_not" in own:
        return f"not compared with the run's own test: {own['why_not']}"
    if own["equal"]:
        return "equal to the run's own test"
    numbers = ", ".join(f"{key} {then!r} → {now!r}" for key, (then, now) in own["differs"].items())
    changed = "; ".join(own["changed"]) or "nothing that is on record"
    return f"differs from the run's own test: {numbers}. What has changed since: {changed}"
