"""What evaluate.py prints: tables of one run, of several, and the line about a run's own test."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from vitlab.core.console import plain
from vitlab.inference.scores import ClassScore, Comparison

CLASSES = 20  # most lines in the table of classes: those with the lowest F1
Record = Mapping[str, Any]  # of evaluation.json


def make_table(record: Record, title: str) -> Table:
    """Return the scores of one run as people read them."""
    table = Table(title=title, header_style="bold cyan")
    table.add_column("measure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval, notes")
    for row in table_rows(record):
        table.add_row(*row)
    return table


def table_rows(record: Record) -> Iterable[tuple[str, str, str]]:
    """Yield measure, value and a note."""
    yield "accuracy", f"{record['accuracy']:.2%}", show_interval(record)
    if "accuracy_top5" in record:
        yield "top-5", f"{record['accuracy_top5']:.2%}", show_interval(record, "accuracy_top5")
    yield "loss", f"{record['loss']:.4f}", ""
    yield "calibration error (ECE)", f"{record['ece']:.2%}", "15 bins of equally many images"
    fitted = record["calibration"]
    if "why_not" in fitted:
        yield "temperature", "-", f"not fitted: {fitted['why_not']}"
    else:
        brings = f"ECE {fitted['ece_after']:.2%}, loss {fitted['loss_after']:.4f}; {fitted['fitted_on']}"
        yield "temperature", f"{fitted['temperature']:.3f}", brings
    if flip := record.get("tta", {}).get("flip"):
        note = f"{show_interval(flip)}; McNemar's p {show_p(flip['p_value'])}"
        yield "with test-time flip", f"{flip['accuracy']:.2%}", note
    if corrupted := record.get("corruptions"):
        yield "mean of corruptions", f"{corrupted['mean_accuracy']:.2%}", "CIFAR-C-style, see below"
    if audited := record.get("audit"):
        value, note = "-", f"{audited['near_duplicates']:,} near-duplicates left out ({audited['share']:.2%})"
        if "accuracy" in audited:
            value, note = f"{audited['accuracy']:.2%}", f"{show_interval(audited)}; {note}"
        yield "without near-duplicates", value, note
    yield "images/s", f"{record['images_per_second']:,.0f}", f"{record['precision']} on {record['device']}"


def show_interval(record: Record, key: str = "accuracy") -> str:
    """Return the two ends of an interval."""
    return f"{record[f'{key}_low']:.2%} to {record[f'{key}_high']:.2%}"


def show_p(p_value: float) -> str:
    """Return a p-value with two digits; below a ten-thousandth its size says nothing more."""
    return f"{p_value:.2g}" if p_value >= 1e-4 else "< 0.0001"


def make_class_table(scores: Sequence[ClassScore]) -> Table:
    """Return precision, recall and F1 of the classes; of many those with the lowest F1."""
    worst = scores
    title = None
    if len(scores) > CLASSES:
        worst = sorted(scores, key=lambda score: 1.0 if score["f1"] is None else score["f1"])[:CLASSES]
        title = f"{CLASSES} of {len(scores)} classes, those with the lowest F1"
    table = Table(title=title, header_style="bold cyan")
    table.add_column("class")
    for head in ("precision", "recall", "F1", "images"):
        table.add_column(head, justify="right")
    for score in worst:
        shares = (
            "-" if value is None else f"{value:.1%}"
            for value in (score["precision"], score["recall"], score["f1"])
        )
        table.add_row(plain(score["name"]), *shares, f"{score['support']:,}")
    return table


def make_corruption_table(accuracy: Mapping[str, Sequence[float]]) -> Table:
    """Return the accuracy under each corruption, by strength."""
    table = Table(
        title="Accuracy by strength: CIFAR-C-style, not CIFAR-10-C",
        header_style="bold cyan",
    )
    table.add_column("corruption")
    for strength in range(1, 1 + len(next(iter(accuracy.values())))):
        table.add_column(str(strength), justify="right")
    table.add_column("mean", justify="right")
    for name, values in accuracy.items():
        table.add_row(name, *(f"{value:.2%}" for value in (*values, sum(values) / len(values))))
    return table


def make_run_table(records: Mapping[str, Record], title: str) -> Table:
    """Return a line a run: name → its evaluation.json."""
    table = Table(title=title, header_style="bold cyan")
    table.add_column("run")
    for head in ("accuracy", "95 % interval", "loss", "ECE", "images/s"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, own in records.items():
        scores = f"{own['accuracy']:.2%}", show_interval(own), f"{own['loss']:.4f}", f"{own['ece']:.2%}"
        table.add_row(name, *scores, f"{own['images_per_second']:,.0f}")
    return table


def make_pair_table(pairs: Sequence[Comparison]) -> Table:
    """Return a line a pair of runs."""
    holm = ", Holm's correction" if len(pairs) > 1 else ""
    table = Table(title=f"On the same images (McNemar's exact test{holm})", header_style="bold cyan")
    table.add_column("runs")
    for head in ("difference", "first alone right", "second alone right", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    for pair in pairs:
        difference = f"{100 * pair['difference']:+.2f} points"
        alone = f"{pair['only_one']:,}", f"{pair['only_other']:,}"
        table.add_row(f"{pair['one']}, {pair['other']}", difference, *alone, show_p(pair["p_holm"]))
    return table
