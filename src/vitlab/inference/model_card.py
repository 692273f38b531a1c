"""The model card of an export: what the network is, how good it is, and how to use it without vitlab.

Source of the form: "Model Cards for Model Reporting" (Mitchell et al. 2019, section 4).
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.console import escape_markdown, plain
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.summary import SummaryData
from vitlab.models.flops import count_parameters, flops_per_image, show_flops

CIFAR = (
    "the data set has no formal licence; cite A. Krizhevsky, Learning Multiple Layers of Features from Tiny "
    "Images, 2009"
)
LICENCES = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "fashion_mnist": "copyright 2017 Zalando SE, MIT licence",
    "shapes": "drawn by code of vitlab, MIT",
}
YOURS = "yours to say: whoever gave you the images knows what may be done with what learned from them"
PROTOCOL = {
    "val": "hold-out: {number:,} images, not trained on; they choose the best checkpoint",
    "test": "test: {number:,} images, looked at once, after training",
}
# Of a run with callbacks.ema, which weights these are.
AVERAGED = "averaged over training (EMA)"
RAW = "as the optimizer left them, not their average"
UNKNOWN = "not on record"
SHOWN = 20  # classes that the card names


@dataclass(frozen=True)
class Facts:
    """What a card is made of.

    Attributes:
        format: of the export.
        net: the bare network.
        meta: of its checkpoint.
        checkpoint: the file.
        weights: which of a checkpoint's weights these are, where it has two kinds; else empty.
        summary: of the run; empty where its folder is not there.
        note: what comes before the code.
        code: that uses the folder, without vitlab.
        checks: what was measured of the export, a sentence each.
    """

    format: str
    net: nn.Module
    meta: CheckpointMeta
    checkpoint: Path
    weights: str
    summary: SummaryData
    note: str
    code: str
    checks: Sequence[str]


def model_name(config: Mapping[str, Any]) -> str:
    """Return what a network is called: the option of the config, and a library's name for it."""
    own = config["model"].get("name")
    option = config.get("choices", {}).get("model", config["model"]["_target_"].rpartition(".")[2])
    return f"{option} ({own})" if own else option


def write_card(facts: Facts) -> str:
    """Return the text of README.md."""
    config, classes = facts.meta["config"], facts.meta["classes"]
    height, width = facts.meta["input_size"]
    channels = len(facts.meta["mean"])
    named = (
        ", ".join(map(escape_markdown, classes))
        if len(classes) <= SHOWN
        else "their names are in config.json"
    )
    name, data = escape_markdown(model_name(config)), escape_markdown(data_name(facts))
    cost = show_flops(flops_per_image(facts.net, (height, width), channels))
    kind = config["data"]["kind"]
    return "\n".join(
        [
            "---",
            f"library_name: {facts.format}",
            "pipeline_tag: image-classification",
            "---",
            "",
            f"# {name}: {len(classes)} classes of {data}",
            "",
            f"A classifier of {'grey' if channels == 1 else 'RGB'} images of {width} × {height} pixels, "
            "trained with vitlab.",
            "",
            f"- network: {name}, {count_parameters(facts.net):,} parameters, {cost} an image",
            f"- classes: {len(classes)} ({named})",
            f"- pixels are normalised by mean {rounded(facts.meta['mean'])} and deviation "
            f"{rounded(facts.meta['std'])}, on the 0..1 scale",
            f"- weights: of `{facts.checkpoint.name}`{facts.weights and f', {facts.weights}'}",
            "",
            "## Use",
            "",
            facts.note,
            "",
            "```python",
            facts.code.strip(),
            "```",
            "",
            *section("Checked at export", [f"- {check}" for check in facts.checks]),
            *section("Measured by its run", measured(facts)),
            *section("Recipe", recipe(facts)),
            *section("Data", [f"- {data}", f"- licence: {LICENCES.get(kind, YOURS)}"]),
            *section("Limits", limits(facts)),
            *section("Made with", provenance(facts)),
        ]
    )


def section(title: str, lines: Sequence[str] | Iterator[str]) -> list[str]:
    """Return a section; nothing where it would be empty."""
    lines = list(lines)
    return [f"## {title}", "", *lines, ""] if lines else []


def rounded(values: Sequence[float]) -> str:
    """Return numbers for people to read."""
    return ", ".join(f"{value:.4f}" for value in values)


def data_name(facts: Facts) -> str:
    """Return the name of the data, as the summary has it, or else what the config says of them."""
    data = facts.meta["config"]["data"]
    if "data" in facts.summary:
        return facts.summary["data"]["name"]
    return data["kind"] if data["kind"] in LICENCES else Path(data["root"]).name


def measured(facts: Facts) -> Iterator[str]:
    """Yield the run's own figures, and how they came about."""
    metrics, data = facts.summary.get("metrics"), facts.summary.get("data")
    if not facts.summary:
        yield "The run's folder was not there at export, and with it its own figures (summary.json)."
        return
    if (status := facts.summary.get("status")) != "finished":
        yield f"The run is {escape_markdown(str(status))}: what follows is of the training until then."
        yield ""
    if not metrics or not data:
        yield "Nothing was measured."
        return
    yield "| images | top-1 | top-5 | loss |"
    yield "|---|---|---|---|"
    for part, what in PROTOCOL.items():
        if f"{part}/accuracy" in metrics:
            shares = [metrics.get(f"{part}/{key}") for key in ("accuracy", "accuracy_top5")]
            shown = " | ".join("" if own is None else f"{100 * own:.2f} %" for own in shares)
            number = data["val" if part == "val" else "test"]
            yield f"| {what.format(number=number)} | {shown} | {metrics.get(f'{part}/loss', math.nan):.4f} |"
    yield ""
    tested = facts.summary.get("tested")
    yield f"n = 1 run, seed {facts.summary.get('seed')}." + (
        f" Tested: {escape_markdown(tested)}." if tested else ""
    )
    if facts.checkpoint.name != "best.ckpt" or facts.weights == RAW:
        yield "The weights in this folder need not be those that were tested."


def recipe(facts: Facts) -> Iterator[str]:
    """Yield how it was trained: the command, and what it amounts to."""
    config = facts.meta["config"]
    if (overrides := config.get("overrides")) is not None:
        yield "```"
        yield plain(shlex.join(["python", "train.py", *overrides])).replace("```", "'''")
        yield "```"
        yield ""
    optimizer = config["optimizer"]
    chosen = config.get("choices", {})
    name = optimizer["_target_"].rpartition(".")[2]
    yield (
        f"- {name}, learning rate {optimizer['lr']:g}, weight decay {optimizer['weight_decay']:g}, "
        f"schedule {chosen.get('scheduler', UNKNOWN)}"
    )
    trainer, size = config["trainer"], config["data"]["batch_size"]
    times = trainer["accumulate_grad_batches"]
    batches = f"{size} × {times} accumulated" if times > 1 else f"{size}"
    yield f"- batches of {batches}, at most {trainer['max_epochs']} epochs"
    yield f"- augmentation {chosen.get('augment', UNKNOWN)}, task {chosen.get('task', UNKNOWN)}"
    if teacher := facts.meta.get("teacher"):
        yield f"- taught by {escape_markdown(teacher['model'])} ({teacher['parameters']:,} parameters)"
    if (train := facts.summary.get("train")) and train.get("epochs"):
        minutes = train.get("wall_seconds", 0) / 60
        yield (
            f"- trained for {train['epochs']} epochs, {train.get('optimizer_steps', 0):,} steps, in "
            f"{minutes:,.0f} minutes on {escape_markdown(str(facts.summary.get('device')))}"
        )


def limits(facts: Facts) -> Iterator[str]:
    """Yield what the network is not good for."""
    data, size = facts.meta["config"]["data"], facts.meta["input_size"]
    yield "- It gives every image one of its classes, also an image of something else."
    yield "- Its probabilities were not calibrated, and images unlike those it learned from can mislead it."
    sides = [data["image_size"]] * 2 if isinstance(data["image_size"], int) else list(data["image_size"])
    if sides != list(size):
        yield (
            f"- It learned from images of {sides[1]} × {sides[0]} pixels, resized to {size[1]} × {size[0]}: "
            "other images go to the first size before the second, or they look sharper than those it knows."
        )


def provenance(facts: Facts) -> Iterator[str]:
    """Yield versions and commits, of the run and of the export."""
    for what, versions, commit in (
        ("trained", facts.summary.get("versions"), facts.summary.get("commit")),
        ("exported", find_versions("onnx", "onnxruntime", "onnxscript", "safetensors"), find_commit()),
    ):
        if versions:
            listed = ", ".join(f"{name} {found}" for name, found in versions.items())
            yield f"- {what}: {escape_markdown(listed)}; commit {escape_markdown(str(commit))}"
