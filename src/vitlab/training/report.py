"""What a run leaves to look at: figures, and the summary on the screen."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import nn

from vitlab.augment.base import RunFacts
from vitlab.core import hardware
from vitlab.core.console import RunConsole, duration
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.plotting import rasterize
from vitlab.core.run_folder import RunFolder
from vitlab.core.seeding import derive_seed
from vitlab.models.distilled import DistilledViT
from vitlab.models.flops import show_flops
from vitlab.models.layers import pair
from vitlab.models.pretrained import Loaded
from vitlab.training import figures
from vitlab.training.build import Components
from vitlab.training.callbacks.ema import decay_at
from vitlab.training.tensorboard import RunLogger

# What the groups of `vitlab.optim.parameter_groups` are called in the table.
GROUPS = {
    "matrices": "matrices (Muon)",
    "qkv": "query, key, value (Muon)",
    "decay": "with decay",
    "no_decay": "without decay",
}
GRID = 40  # images in predictions.png
SHOWN, DRAWS = 8, 6  # images in augmentations.png, and how often each is drawn
SMALL_DATA = 5120  # training images under which a batch of 512 would leave too few steps


def save(figure: Figure, folder: RunFolder, name: str) -> None:
    folder.figures.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # class names in a script that the font lacks
        figure.savefig(folder.figures / f"{name}.png", dpi=110, bbox_inches="tight")


@torch.no_grad()
def predict_some(
    net: nn.Module,
    preprocess: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Classify images.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).

    Returns:
        images (N, C, H, W), labels, and probabilities (N, K).
    """
    net.eval()
    # `forward`, not a call: a compiled network would be compiled again for this one batch's shape.
    probabilities = net.forward(preprocess.to(device)(images.to(device))).float().softmax(-1)
    return images.cpu().numpy(), labels.tolist(), probabilities.cpu().numpy()


def describe(screen: RunConsole, lines: Sequence[tuple[str, str]]) -> None:
    """Print a block of ``name  value`` lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in lines:
        grid.add_row(name, value)
    screen.print(grid)


def results(screen: RunConsole, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Print what the run reached and where to look next."""
    metrics, train = summary["metrics"], summary["train"]
    lines = []
    for split in ("val", "test"):
        if f"{split}/accuracy" in metrics:
            which = f"  ({summary['tested']})" if split == "test" else ""
            text = f"accuracy {metrics[f'{split}/accuracy']:.2%}  loss {metrics[f'{split}/loss']:.4f}{which}"
            lines.append((split, text))
    rate = train["images_per_second"]
    speed = f"{rate:,.0f} images/s" if rate else "too short to measure"
    text = f"{train['optimizer_steps']:,} steps, {speed}, {duration(train['wall_seconds'])} in all"
    if peak := train.get("peak_memory_bytes"):
        text += "".join(f", {size / 2**30:.1f} GiB on the {name}" for name, size in peak.items() if size)
    lines.append(("training", text))
    if folder.figures.exists():
        lines.append(("figures", f"{folder}/figures"))
    if any(folder.path.glob("events.out.tfevents.*")):
        lines.append(("watch", f"tensorboard --logdir {watched(folder)}"))
    lines.append(("summary", f"{folder}/summary.json"))
    screen.print()
    describe(screen, lines)


def watched(folder: RunFolder) -> str:
    """Return the folder above which TensorBoard compares this run with its neighbours."""
    shown = Path(str(folder))
    return "outputs" if shown.parts[0] == "outputs" else str(shown.parent)


def announce(
    screen: RunConsole,
    folder: RunFolder,
    job: Components,
    model: dict[str, Any],
    processes: int,
    step: int | None,
) -> None:
    """Say what is about to run, and what might be better."""
    data, plan, config = job.data, job.plan, job.config
    sizes = (
        f"{data.num_train:,} train, {data.num_val:,} val, {data.num_test:,} test; {len(data.classes)} classes"
    )
    batch = f"{plan.effective_batch} = {plan.batch_size} × {plan.accumulate} accumulated"
    if processes > 1:
        batch += f", split over {processes} processes"
    asked = "" if config["compile"] != "auto" else " (auto)"
    lines = [
        ("run", str(folder) + (f"  resumed at step {step:,}" if step is not None else "")),
        (
            "model",
            f"{model['name']}  {model['parameters']:,} parameters, "
            f"{show_flops(job.flops)} an image (forward)",
        ),
        ("data", f"{job.dataset.name}  {sizes}"),
        ("images", data.describe_storage()),
        ("effective batch", batch),
        (
            "schedule",
            f"{plan.total_steps:,} optimizer steps in {plan.epochs} epoch(s), {plan.warmup_steps:,} warmup; "
            f"{config['choices']['optimizer']}, peak learning rate {config['optimizer']['lr']:g}",
        ),
        (
            "device",
            f"{hardware.describe_device(job.kind)}; {job.precision}; "
            f"compile {str(job.compiled).lower()}{asked}",
        ),
    ]
    if job.teacher:
        lines.append(("teacher", job.teacher.describe()))
        lines.append(("distillation", job.teacher.describe_task(config["task"], job.flops)))
    if (ema := config["callbacks"]["ema"])["decay"] is not None:
        last = decay_at(plan.total_steps - 1, **ema)
        ramp = f" (warmup: {last:.4g} at the last step)" if last < ema["decay"] else ""
        text = f"of the weights, decay {ema['decay']:g}{ramp}; validated, tested and saved in their place"
        lines.append(("average", text))
    describe(screen, lines)
    loaded: Loaded | None = getattr(job.net, "loaded", None)  # not in a run that goes on from its checkpoint
    if loaded:
        describe(screen, list(loaded.lines()))
    groups = job.task.built_optimizer.param_groups
    screen.print(_group_table(groups, job.net))
    notes = list(job.data.notes)
    is_vit = "heads" in config["model"] or "name" in config["model"]
    if is_vit and data.num_train >= SMALL_DATA and (advice := plan.advice()):
        notes.append(advice)
    notes += augmentation_notes(job, processes)
    notes += average_notes(job)
    if job.kind == "cpu":
        notes += matmul_notes(config["matmul_precision"])
    if job.teacher:
        notes += job.teacher.all_notes(config["task"], config["overrides"])
    elif isinstance(job.net, DistilledViT):
        notes.append(
            f"the second head of {config['choices']['model']} learns the same as the first without a "
            "teacher; task=distill gives it one."
        )
    notes += optimizer_notes(job, groups, starts=step is None)
    if loaded:
        notes += loaded.notes(data.mean, data.std, pair("model.image_size", config["model"]["image_size"]))
    for note in notes:
        screen.print(f"note: {note}")


def _group_table(groups: Sequence[Mapping[str, Any]], net: nn.Module) -> Table:
    """Say how every parameter of ``net`` is trained, a line for each kind of group."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold cyan")
    table.add_column("trained")
    for column in ("tensors", "parameters", "peak rate", "weight decay"):
        table.add_column(column, justify="right")

    def add(name: str, parameters: Sequence[nn.Parameter], *how: str) -> None:
        table.add_row(name, str(len(parameters)), f"{sum(p.numel() for p in parameters):,}", *how)

    kinds = dict.fromkeys(group["name"].partition("/")[0] for group in groups)
    for kind in kinds:
        alike = [group for group in groups if group["name"].partition("/")[0] == kind]
        rates = sorted(group["lr"] for group in alike)
        text = f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates[0] != rates[-1] else f"{rates[0]:g}"
        members = [p for group in alike for p in group["params"]]
        add(GROUPS.get(kind, kind), members, text, f"{alike[0]['weight_decay']:g}")
    if frozen := [p for p in net.parameters() if not p.requires_grad]:
        add("frozen", frozen, "", "")
    return table


def optimizer_notes(job: Components, groups: Sequence[Mapping[str, Any]], *, starts: bool) -> Iterator[str]:
    """Yield what is doubtful about the optimizer and about freezing, or without effect."""
    model, task = job.config["model"], job.config["task"]
    if job.config["optimizer"]["_target_"].endswith(".Muon") and not any("stacked" in g for g in groups):
        yield "optimizer=muon finds no matrix in a hidden layer that is trained: AdamW trains all there is."
    if starts and task["freeze"] != "none" and not (model.get("pretrained") or model.get("checkpoint_path")):
        how = "model.pretrained=true or " * ("pretrained" in model) + "model.checkpoint_path"
        yield (
            f"task.freeze={task['freeze']} keeps layers as they were drawn at random: start from weights "
            f"that have learned something ({how})."
        )


def average_notes(job: Components) -> Iterator[str]:
    """Yield what is doubtful about the average of the weights, or without effect."""
    ema, steps = job.config["callbacks"]["ema"], job.plan.total_steps
    if ema["decay"] is None:
        if any(typed.startswith("callbacks.ema.warmup") for typed in job.config["overrides"]):
            yield "callbacks.ema.warmup has no effect without callbacks.ema.decay."
    elif not ema["warmup"] and steps * (1 - ema["decay"]) < 1:
        yield (
            f"callbacks.ema.decay={ema['decay']:g} averages about {1 / (1 - ema['decay']):,.0f} steps, and "
            f"the run has {steps:,}: much of the average will be the random start. Set "
            f"callbacks.ema.warmup=true, or a decay under {1 - 1 / steps:.4g}."
        )


def matmul_notes(name: str) -> Iterator[str]:
    """Yield whether ``matmul_precision`` changes nothing on this CPU."""
    if not hardware.rounds_float32("high" if name == "highest" else name) and name != "high":
        yield f"matmul_precision={name} has no effect on this processor: its float32 products stay float32."


def augmentation_notes(job: Components, processes: int) -> Iterator[str]:
    """Yield what is doubtful about the augmentation, or without effect."""
    model = job.config["model"]
    patches = None
    if "patch_size" in model:
        (height, width), (down, right) = (pair(f"model.{k}", model[k]) for k in ("image_size", "patch_size"))
        patches = (height // down) * (width // right)
    facts = RunFacts(job.dataset.shape, patches, job.plan.epochs, job.data.batch_size // processes)
    yield from job.data.augment.notes(facts)


def draw_augmentations(folder: RunFolder, job: Components, logger: RunLogger | None) -> None:
    """Write what the augmentation makes of a few training images, drawn as in training; once a run."""
    if (folder.figures / "augmentations.png").exists():  # of before a resume
        return
    config = job.config
    images, labels = job.data.train_images(SHOWN)
    targets = torch.nn.functional.one_hot(labels, len(job.data.classes)).float()
    rows = [(images, targets)]
    for number in range(DRAWS):
        generator = torch.Generator().manual_seed(derive_seed(config["seed"], "augmentations", number))
        rows.append(job.data.augment(images, targets, generator, 0))
    title = " → ".join(config["augment"]["ops"]) or "images as they are"
    title += f" on {job.dataset.name}, seed {config['seed']}"
    if smoothing := config["task"]["label_smoothing"]:
        title += f"; targets before label smoothing {smoothing:g}"
    figure = figures.plot_augmentations(
        [(_array(pixels), _array(soft)) for pixels, soft in rows], job.data.classes, title
    )
    save(figure, folder, "augmentations")
    if logger:
        logger.experiment.add_image("augmentations", rasterize(figure), dataformats="HWC")


def _array(values: torch.Tensor) -> np.ndarray:
    # NumPy has no bfloat16.
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


def draw_learning_rate(folder: RunFolder, job: Components, logger: RunLogger | None) -> None:
    """Write the curve of the learning rate, which is known before the first step; once a run."""
    if (folder.figures / "learning_rate.png").exists():  # of before a resume
        return
    plan, config = job.plan, job.config
    groups = job.task.built_optimizer.param_groups
    layers = {group["lr"]: group["name"].partition("/")[2] for group in groups}
    curves = {layers[lr]: _rates(job, lr, plan.total_steps) for lr in (max(layers), min(layers))}
    rates = [rate for _, rate in curves[layers[max(layers)]]]
    title = (
        f"{config['choices']['scheduler']} for {config['choices']['optimizer']}: peak {max(rates):.3g}, "
        f"last {rates[-1]:.2g}; {plan.total_steps:,} steps, batch {plan.effective_batch}"
    )
    figure = figures.plot_learning_rate(curves, plan.warmup_steps * plan.epochs / plan.total_steps, title)
    save(figure, folder, "learning_rate")
    if logger:
        logger.experiment.add_image("learning_rate", rasterize(figure), dataformats="HWC")


def _rates(job: Components, peak: float, steps: int) -> list[tuple[float, float]]:
    """Return (epoch, learning rate) along the first ``steps`` optimizer steps, the last among them."""
    total = job.plan.total_steps
    shown = sorted({*range(0, steps, max(1, steps // 500)), steps - 1} - {-1})
    return [((s + 1) * job.plan.epochs / total, peak * job.task.schedule(s, total)) for s in shown]


def draw(folder: RunFolder, job: Components, metrics: Mapping[str, float], steps: int) -> None:
    """Write the run's figures; those of the test only if there was one (``metrics``)."""
    config = job.config
    title = f"{config['choices']['model']} on {job.dataset.name}, seed {config['seed']}"
    rate = _rates(job, config["optimizer"]["lr"], steps)
    save(figures.plot_history(read_metrics(folder), rate, title), folder, "history")
    if not metrics:
        return
    title += f": test accuracy {metrics['test/accuracy']:.2%}"
    counts = job.task.confusion_counts.cpu().numpy()
    save(figures.plot_confusion_matrix(counts, job.data.classes, title), folder, "confusion_matrix")
    # Drawn at random, the same in every run, and not picked by how they turn out: the grid shows
    # mistakes as often as they are made.
    places = torch.randperm(job.data.num_test, generator=torch.Generator().manual_seed(0))[:GRID]
    images, labels = job.data.test_images(places)
    device = next(job.net.parameters()).device
    grid = predict_some(job.net, job.data.preprocess, images, labels, device)
    save(figures.plot_predictions(*grid, job.data.classes, title), folder, "predictions")


def accuracy_per_class(job: Components) -> dict[str, float]:
    """Return the test accuracy of each class, 0..1."""
    counts = job.task.confusion_counts
    share = counts.diagonal() / counts.sum(1).clamp(min=1)
    return dict(zip(job.data.classes, share.tolist(), strict=True))
