"""Evaluate trained networks on labelled images: scores, calibration, mistakes, and one against another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from vitlab.core import hardware
from vitlab.core.errors import UserError
from vitlab.core.files import csv_text, sha256, write_atomic, write_json
from vitlab.core.plotting import save_figure
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.seeding import derive_seed
from vitlab.data.datamodule import ImageData
from vitlab.data.decode import with_bar
from vitlab.inference import near_duplicates
from vitlab.inference.calibration import confidences, fit_temperature, measure_reliability
from vitlab.inference.corruptions import CORRUPTIONS
from vitlab.inference.evaluate_arguments import Run
from vitlab.inference.evaluate_figures import plot_reliability, plot_robustness
from vitlab.inference.evaluate_subject import Request, Subject, prepare
from vitlab.inference.evaluate_tables import (
    make_class_table,
    make_corruption_table,
    make_pair_table,
    make_run_table,
    make_table,
)
from vitlab.inference.load import has_average
from vitlab.inference.own_test import compare_with_own_test, say_own_test
from vitlab.inference.scores import (
    compare_pairs,
    count_confusions,
    find_right,
    log_loss,
    mcnemar,
    score_classes,
    wilson,
)
from vitlab.training.evaluation import Change, Evaluation, device_kind, evaluate, run_precision
from vitlab.training.figures import plot_confusion_matrix, plot_predictions

STRENGTHS = range(1, 6)  # of corruptions
MISTAKES = 32  # images in worst_mistakes.png
# Of each run's record in comparison.json.
KEPT = (
    *("accuracy", "accuracy_low", "accuracy_high", "loss", "ece"),
    *("images_per_second", "checkpoint", "sha256"),
)
Record = dict[str, Any]


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
    subject = prepare(run, request)
    data, part, meta = subject.data, subject.part, subject.meta
    for note in data.notes:
        console.print(f"note: {note}")
    console.print(f"evaluating {run.name} on the {request.part} images of {data.dataset.name}")
    found = evaluate(subject.net, meta, data, part)
    classes, number = list(meta["classes"]), len(found.labels)
    counts = count_confusions(found.logits, found.labels)
    title = f"{run.name} on {data.dataset.name}: {number:,} {request.part} images"
    kind, ema = device_kind(meta), has_average(meta["config"])
    if request.raw and not ema:
        console.print(f"note: {run.name} has no averaged weights (callbacks.ema): --raw changes nothing.")
    record: Record = {
        **summarize(found),
        "calibration": calibrate(subject, request, found),
        "per_class": score_classes(counts, classes),
        "classes": classes,
        "confusion": counts.tolist(),
        "split": request.part,
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
        record["audit"] = audit(run.out, subject, found)
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
    own = subject.own
    if request.part in ("val", "all") and own is subject.data:
        return {"why_not": "the hold-out, which it would be fitted on, is among what is evaluated"}
    if isinstance(own, UserError):
        return {"why_not": f"the hold-out of the run's own data is not there: {own}"}
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
        images, _ = subject.data.read(subject.part, found.rows[worst])
        probabilities = logits[worst].softmax(1).numpy()
        grid = images.cpu().numpy(), labels[worst].tolist(), probabilities, classes
        which = f"the {len(worst)} most confident of {len(wrong):,}" if len(worst) < len(wrong) else "all"
        text = f"{title}, {which} mistakes"
        save_figure(plot_predictions(*grid, text), out / "worst_mistakes.png")


def measure_corruptions(out: Path, subject: Subject, part: str, record: Record, title: str) -> Record:
    """Evaluate under every corruption at every strength; write corruptions.csv and its figure."""
    rows: list[Record] = []
    passes = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    for name, strength in with_bar(passes, "Corrupting", len(passes), 1, fewest=1):
        change = seeded(CORRUPTIONS[name], name, strength)
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


def audit(out: Path, subject: Subject, found: Evaluation) -> Record:
    """Look for near-duplicates of training images among the test images, and leave them out.

    The hold-out counts as training images: it decided which weights were kept.
    """
    assert isinstance(subject.own, ImageData)
    dataset, classes = subject.own.dataset, subject.meta["classes"]
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
    record: Record = {
        "near_duplicates": len(rows),
        "share": len(rows) / len(right),
        "threshold": near_duplicates.THRESHOLD,
        "method": near_duplicates.METHOD,
    }
    if number := int(kept.sum()):
        good = int(right[kept].sum())
        low, high = wilson(good, number)
        record |= {"accuracy": good / number, "accuracy_low": low, "accuracy_high": high}
    return record


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
    record = {
        "runs": [{"name": name} | {key: own[key] for key in KEPT} for name, own in records.items()],
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
