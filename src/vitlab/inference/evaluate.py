"""Evaluate trained networks on labelled images: scores, calibration, mistakes, and one against another."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from vitlab.core import hardware
from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.errors import UserError
from vitlab.core.files import csv_text, sha256, write_atomic
from vitlab.core.plotting import save_figure
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import RunFolder, Summary
from vitlab.core.seeding import derive_seed
from vitlab.data import datasets
from vitlab.data.datamodule import ImageData
from vitlab.inference import near_duplicates
from vitlab.inference.calibration import confidences, fit_temperature, measure_reliability
from vitlab.inference.corruptions import CORRUPTIONS
from vitlab.inference.evaluate_arguments import Run, compose_data, is_other_data, own_data
from vitlab.inference.evaluate_figures import plot_reliability, plot_robustness
from vitlab.inference.evaluate_tables import (
    make_class_table,
    make_corruption_table,
    make_pair_table,
    make_run_table,
    make_table,
    say_own_test,
)
from vitlab.inference.load import load
from vitlab.inference.relabel import with_classes
from vitlab.inference.scores import (
    compare_pairs,
    count_confusions,
    find_right,
    log_loss,
    mcnemar,
    score_classes,
    wilson,
)
from vitlab.training.evaluation import Change, Evaluation, device_kind, evaluate, restore_data, run_precision
from vitlab.training.figures import plot_confusion_matrix, plot_predictions

STRENGTHS = range(1, 6)  # of corruptions
MISTAKES = 32  # images in worst_mistakes.png
Record = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and how.

    Attributes:
        overrides: that make other data of the runs' own.
        part: ``test``, ``val`` or ``train``.
        raw: of a run with ``callbacks.ema``, take the weights as the optimizer left them.
        flip: also average every image's probabilities with its mirror image's.
        corruptions, audit: do these too.
        out: the folder for the comparison of several runs.
        command: as typed, for the record.
    """

    runs: Sequence[Run]
    overrides: Sequence[str]
    part: str
    raw: bool
    flip: bool
    corruptions: bool
    audit: bool
    out: Path
    command: str


@dataclass(frozen=True)
class Subject:
    """A trained network, and the images that it is evaluated on.

    Attributes:
        meta: of its checkpoint.
        data: what is evaluated.
        own: the section of the data that it was trained on; ``section`` is that of ``data``.
    """

    net: torch.nn.Module
    meta: CheckpointMeta
    data: ImageData
    section: Mapping[str, Any]
    own: Mapping[str, Any]

    def restore_own(self) -> ImageData:
        """Return the data that the network was trained on.

        Raises:
            UserError: they are not there, or have other classes by now.
        """
        return self.data if self.own == self.section else restore(self.meta, self.own)


@dataclass(frozen=True)
class Result:
    """What came out for one run: ``record`` is its evaluation.json."""

    run: Run
    classes: list[str]
    found: Evaluation
    record: Record

    @property
    def right(self) -> Tensor:
        """Which images it got right: bool (N,)."""
        return find_right(self.found.logits, self.found.labels)


def evaluate_runs(request: Request, console: Console) -> list[Result]:
    """Evaluate each run, and where there are several compare them; write everything and print the tables.

    Raises:
        UserError: a checkpoint cannot be read, its data are not there or do not fit, or several runs have
            different images.
    """
    results: list[Result] = []
    for run in request.runs:
        results.append(evaluate_run(run, request, console))
        check_same_images(results[0], results[-1])
    if len(results) > 1:
        compare_results(results, request, console)
    return results


def evaluate_run(run: Run, request: Request, console: Console) -> Result:
    """Evaluate one run, write what comes out into its folder, and print the table."""
    subject = make_subject(run, request)
    data, part, meta = subject.data, request.part, subject.meta
    for note in data.notes:
        console.print(f"note: {note}")
    found = evaluate(subject.net, meta, data, part)
    classes, number = list(meta["classes"]), len(found.labels)
    counts = count_confusions(found.logits, found.labels)
    title = f"{run.name} on {data.dataset.name}: {number:,} {part} images"
    kind, ema = device_kind(meta), meta["config"]["callbacks"].get("ema", {}).get("decay") is not None
    if request.raw and not ema:
        console.print(f"note: {run.name} has no averaged weights (callbacks.ema): --raw changes nothing.")
    record: Record = {
        **summarize(found),
        "calibration": calibrate(subject, request, found),
        "per_class": score_classes(counts, classes),
        "classes": classes,
        "confusion": counts.tolist(),
        "split": part,
        "images": number,
        "data": {"name": data.dataset.name} | dict(subject.section),
        "images_per_second": number / found.seconds,
        "weights": ("raw" if request.raw else "ema") if ema else "plain",
        "precision": run_precision(meta, kind),
        "device": hardware.describe_device(kind),
        "versions": find_versions("scipy"),
        "commit": find_commit(),
        "checkpoint": str(run.checkpoint),
        "sha256": sha256(run.checkpoint),
        "command": request.command,
    }
    record["own_test"] = compare_with_own_test(run, subject, record, found)
    draw(run.out, subject, request, found, record, title)
    if request.flip:
        flipped = evaluate(subject.net, meta, data, part, flip=True)
        right = [find_right(one.logits, one.labels) for one in (flipped, found)]
        record["tta"] = {"flip": summarize(flipped) | {"p_value": mcnemar(right[0], right[1])}}
    if request.corruptions:
        record["corruptions"] = measure_corruptions(run.out, subject, part, record, title)
    if request.audit:
        record["audit"] = audit(run.out, subject, found, title)
    write_json(run.out / "evaluation.json", record)
    write_atomic(run.out / "predictions.csv", predictions_csv(found, classes).encode())
    console.print(make_table(record, title), soft_wrap=False)
    if "corruptions" in record:
        console.print(make_corruption_table(record["corruptions"]["accuracy"]), soft_wrap=False)
    if len(request.runs) == 1:
        console.print(make_class_table(record["per_class"]), soft_wrap=False)
    console.print(say_own_test(record["own_test"]))
    console.print(f"evaluation.json, predictions.csv and figures are in {run.out}")
    return Result(run, classes, found, record)


def make_subject(run: Run, request: Request) -> Subject:
    """Load a run's network, and build the data that it is to be evaluated on.

    Raises:
        UserError: they are not there, or do not fit the network.
    """
    classifier = load(run.checkpoint, raw=request.raw)
    config, meta = classifier.config, classifier.meta
    section = compose_data(config, request.overrides)
    # A run's limit belongs to its own test; of other images, and of a run that tested none, all are taken.
    if is_other_data(config, section) or config["trainer"]["limit_test_batches"] == 0:
        trainer = config["trainer"] | {"limit_test_batches": 1.0}
        meta = meta | {"config": config | {"trainer": trainer}}
    try:
        data = restore(meta, section)
    except UserError as error:
        moved = " If the images of this run have moved, say where they are: data.root=…"
        raise UserError(f"{error}{'' if request.overrides else moved}") from error
    if request.part == "val" and not data.num_val:
        raise UserError("--split val: no images are held out (data.val_size=0).")
    return Subject(classifier.net, meta, data, section, own_data(config, section))


def restore(meta: CheckpointMeta, section: Mapping[str, Any]) -> ImageData:
    """Return the data that a section of a config names, with the network's classes and normalisation."""
    dataset = with_classes(datasets.build(section), meta["classes"])
    return restore_data(meta | {"config": meta["config"] | {"data": section}}, dataset)


def summarize(found: Evaluation) -> Record:
    """Return accuracy and top-5 with their intervals, loss and calibration error."""
    record: Record = {}
    for key, top in (("accuracy", 1), ("accuracy_top5", 5)):
        if key in found.metrics:
            right = int(find_right(found.logits, found.labels, top).sum())
            low, high = wilson(right, len(found.labels))
            record |= {key: found.metrics[key], f"{key}_low": low, f"{key}_high": high}
    return record | {
        "loss": found.metrics["loss"],
        "ece": measure_reliability(found.logits, found.labels).ece,
    }


def calibrate(subject: Subject, request: Request, found: Evaluation) -> Record:
    """Return what a temperature brings fitted on the hold-out of the run's data, or why there is none."""
    if request.part == "val":
        return {"why_not": "the hold-out, which it would be fitted on, is what is evaluated"}
    try:
        own = subject.restore_own()
    except UserError as error:
        return {"why_not": f"the hold-out of the run's own data is not there: {error}"}
    if not own.num_val:
        return {"why_not": "the run held no images out (data.val_size=0) to fit it on"}
    held = evaluate(subject.net, subject.meta, own, "val")
    temperature = fit_temperature(held.logits, held.labels)
    return {
        "temperature": temperature,
        "ece_after": measure_reliability(found.logits / temperature, found.labels).ece,
        "loss_after": log_loss(found.logits / temperature, found.labels),
        "fitted_on": f"{len(held.labels):,} held-out images of {own.dataset.name}",
    }


def compare_with_own_test(run: Run, subject: Subject, record: Record, found: Evaluation) -> Record:
    """Return what the run's own test found, and whether this is equal; or why there is nothing to compare."""
    folder, config = RunFolder(run.home), subject.meta["config"]
    summary = Summary(folder, writable=False).data
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
    return {"metrics": own, "equal": own == found.metrics, "changed": reasons}


def draw(
    out: Path, subject: Subject, request: Request, found: Evaluation, record: Record, title: str
) -> None:
    """Write the confusion matrix, the reliability diagram, and the worst mistakes."""
    classes, logits, labels = record["classes"], found.logits, found.labels
    named = f"{title}, accuracy {record['accuracy']:.2%}"
    save_figure(
        plot_confusion_matrix(np.array(record["confusion"]), classes, named), out / "confusion_matrix.png"
    )
    curves = {"as it is": measure_reliability(logits, labels)}
    if temperature := record["calibration"].get("temperature"):
        curves[f"temperature {temperature:.3g}"] = measure_reliability(logits / temperature, labels)
    confidence = confidences(logits)
    save_figure(plot_reliability(curves, confidence.numpy(), title), out / "reliability.png")
    wrong = (~find_right(logits, labels)).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    (out / "worst_mistakes.png").unlink(missing_ok=True)  # of before: there may be no mistake now
    if len(worst):
        images, _ = subject.data.read(request.part, found.rows[worst])
        probabilities = logits[worst].softmax(1).numpy()
        grid = images.cpu().numpy(), labels[worst].tolist(), probabilities, classes
        which = f"the {len(worst)} most confident of {len(wrong):,}" if len(worst) < len(wrong) else "all"
        text = f"{title}, {which} mistakes"
        save_figure(plot_predictions(*grid, text), out / "worst_mistakes.png")


def measure_corruptions(out: Path, subject: Subject, part: str, record: Record, title: str) -> Record:
    """Evaluate under every corruption at every strength; write corruptions.csv and its figure."""
    rows: list[Record] = []
    for name, corrupt in CORRUPTIONS.items():
        for strength in STRENGTHS:
            change = seeded(corrupt, name, strength)
            found = evaluate(subject.net, subject.meta, subject.data, part, change=change)
            rows.append({"corruption": name, "strength": strength} | summarize(found))
    write_atomic(out / "corruptions.csv", csv_text(list(rows[0]), rows).encode())
    curves = {name: [row["accuracy"] for row in rows if row["corruption"] == name] for name in CORRUPTIONS}
    save_figure(plot_robustness(curves, record["accuracy"], title), out / "corruptions.png")
    return {
        "mean_accuracy": float(np.mean([*curves.values()])),
        "accuracy": curves,
        "note": "CIFAR-C-style: not comparable with published figures on CIFAR-10-C",
    }


def seeded(corrupt: Callable[[Tensor, int, torch.Generator], Tensor], name: str, strength: int) -> Change:
    """Return a corruption at one strength, whose random numbers depend on nothing but the images' rows."""

    def change(images: Tensor, rows: Tensor) -> Tensor:
        # A batch has the same rows each time, and the first one tells it from the others.
        seed = derive_seed(0, "corruption", name, strength, int(rows[0]))
        return corrupt(images, strength, torch.Generator().manual_seed(seed))

    return change


def audit(out: Path, subject: Subject, found: Evaluation, title: str) -> Record:
    """Look for near-duplicates of training images among the test images, and leave them out.

    The hold-out counts as training images: it decided which weights were kept.
    """
    dataset, classes = subject.restore_own().dataset, subject.meta["classes"]
    splits = [split for split in ("train", "val") if split in dataset.sizes]
    read = [dataset.load(split) for split in splits]
    train = torch.cat([torch.from_numpy(images[np.arange(len(labels))]) for images, labels in read])
    known = [classes[label] for _, labels in read for label in labels]
    places = [(split, row) for split in splits for row in range(dataset.sizes[split])]
    test, _ = subject.data.read("test", found.rows)
    named = [classes[label] for label in found.labels]
    pairs = near_duplicates.find(train, test.cpu())
    rows = [
        {
            "row": int(found.rows[one]),
            "label": named[one],
            "train_split": places[near][0],
            "train_row": places[near][1],
            "train_label": known[near],
            "distance": f"{distance:.4f}",
        }
        for one, near, distance in zip(
            *(part.tolist() for part in (pairs.test_rows, pairs.train_rows, pairs.distance)), strict=True
        )
    ]
    columns = ["row", "label", "train_split", "train_row", "train_label", "distance"]
    write_atomic(out / "near_duplicates.csv", csv_text(columns, rows).encode())
    if rows:
        figure = near_duplicates.plot_pairs(pairs, train, test, train_names=known, test_names=named)
        save_figure(figure, out / "near_duplicates.png")
    right = find_right(found.logits, found.labels)
    kept = torch.ones(len(right), dtype=torch.bool)
    kept[pairs.test_rows] = False
    low, high = wilson(int(right[kept].sum()), int(kept.sum()))
    return {
        "near_duplicates": len(rows),
        "share": len(rows) / len(right),
        "accuracy_without": right[kept].double().mean().item(),
        "accuracy_without_low": low,
        "accuracy_without_high": high,
        "threshold": near_duplicates.THRESHOLD,
        "method": near_duplicates.METHOD,
    }


def check_same_images(one: Result, other: Result) -> None:
    """Check that two runs were evaluated on the same images, as far as their number and labels tell.

    Raises:
        UserError: they were not.
    """
    named = [np.array(result.classes)[result.found.labels.numpy()] for result in (one, other)]
    rows = [result.found.rows for result in (one, other)]
    if not (torch.equal(*rows) and (named[0] == named[1]).all()):
        numbers = " and ".join(
            f"{len(result.found.rows):,} of {result.record['data']['name']}" for result in (one, other)
        )
        raise UserError(
            f"{one.run.name} and {other.run.name} were evaluated on different images ({numbers}), so they "
            "cannot be compared: give them the same by data=…, or evaluate one at a time."
        )


def compare_results(results: Sequence[Result], request: Request, console: Console) -> None:
    """Compare runs on the same images; write comparison.json and differences.csv, and print the tables."""
    pairs = compare_pairs({result.run.name: result.right for result in results})
    records = {result.run.name: result.record for result in results}
    kept = (
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "loss",
        "ece",
        "images_per_second",
        "checkpoint",
        "sha256",
    )
    record = {
        "runs": [{"name": name} | {key: own[key] for key in kept} for name, own in records.items()],
        "pairs": pairs,
        "images": len(results[0].found.rows),
        "split": request.part,
        "command": request.command,
    }
    write_json(request.out / "comparison.json", record)
    write_atomic(request.out / "differences.csv", differences_csv(results).encode())
    console.print(make_run_table(records, f"{record['images']:,} {request.part} images"), soft_wrap=False)
    console.print(make_pair_table(pairs), soft_wrap=False)
    console.print(f"comparison.json and differences.csv are in {request.out}")


def predictions_csv(found: Evaluation, classes: Sequence[str]) -> str:
    """Return a line an image: its row in the split, label, prediction and the probability of that."""
    probability, predicted = found.logits.softmax(1).max(1)
    columns = (found.rows.tolist(), found.labels.tolist(), predicted.tolist(), probability.tolist())
    return csv_text(
        ["row", "label", "prediction", "probability"],
        (
            {"row": row, "label": classes[label], "prediction": classes[said], "probability": f"{p:.4f}"}
            for row, label, said, p in zip(*columns, strict=True)
        ),
    )


def differences_csv(results: Sequence[Result]) -> str:
    """Return a line for each image that runs call differently: row, label, and what each says."""
    said = np.stack(
        [np.array(result.classes)[result.found.logits.argmax(1).numpy()] for result in results]
    )  # (runs, N)
    first = results[0]
    names = [result.run.name for result in results]
    return csv_text(
        ["row", "label", *names],
        (
            {"row": int(first.found.rows[place]), "label": first.classes[int(first.found.labels[place])]}
            | dict(zip(names, said[:, place], strict=True))
            for place in np.flatnonzero((said != said[0]).any(0))
        ),
    )


def write_json(path: Path, record: Record) -> None:
    """Write a record as JSON; allow_nan=False, since other readers refuse a NaN."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())
