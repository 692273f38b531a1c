"""What a run says on the screen: what is about to run, what might be better, and what it reached."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from vitlab.augment.base import RunFacts
from vitlab.config import keys
from vitlab.core import hardware
from vitlab.core.console import RunConsole, duration
from vitlab.core.run_folder import EVENTS, RunFolder
from vitlab.core.summary import SummaryData
from vitlab.data.decode import MAX_LISTED
from vitlab.data.image_folder import FileDataset
from vitlab.models.attention import is_transformer
from vitlab.models.flops import show_flops
from vitlab.models.layers import pair
from vitlab.models.pretrained import Loaded
from vitlab.optim.freezing import freeze_notes
from vitlab.training.build import Components
from vitlab.training.callbacks.ema import describe_average, ema_notes
from vitlab.training.session import Session
from vitlab.training.trackers.identity import read_id

# What the groups of `vitlab.optim.parameter_groups` are called in the table.
GROUPS = {
    "matrices": "matrices (Muon)",
    "qkv": "query, key, value (Muon)",
    "decay": "with decay",
    "no_decay": "without decay",
}
SMALL_DATA = 5120  # training images under which a batch of 512 would leave too few steps


def announce(session: Session, parts: Components) -> None:
    """Say what is about to run, and what might be better."""
    screen = session.screen
    _print_rows(screen, _describe(session, parts))
    loaded: Loaded | None = getattr(parts.net, "loaded", None)  # not in a run that resumes
    if loaded:
        _print_rows(screen, loaded.lines())
    screen.print(_group_table(parts.task.built_optimizer.param_groups, parts.net))
    for note in _notes(parts, loaded, resumed=session.resumed_at is not None):
        screen.print(f"note: {note}")
    if isinstance(parts.dataset, FileDataset) and len(skipped := parts.dataset.skipped) > MAX_LISTED:
        screen.print(f"note: {session.folder.log.name} names all files that were left out.")
        screen.log("\n".join(skipped))


def _describe(session: Session, parts: Components) -> Iterator[tuple[str, str]]:
    data, plan, config, processes = parts.data, parts.plan, parts.config, parts.processes
    model, step = session.summary.data["model"], session.resumed_at
    yield "run", str(session.folder) + ("" if step is None else f"  resumed at step {step:,}")
    costs = f"{model['parameters']:,} parameters, {show_flops(parts.flops)} an image (forward)"
    yield "model", f"{model['name']}  {costs}"
    sizes = f"{data.num_train:,} train, {data.num_val:,} val, {data.num_test:,} test"
    yield "data", f"{parts.dataset.name}  {sizes}; {len(data.classes)} classes"
    yield "images", data.describe_storage()
    batch = f"{plan.effective_batch} = {plan.batch_size} × {plan.accumulate} accumulated"
    yield "effective batch", batch + (f", split over {processes} processes" if processes > 1 else "")
    steps = f"{plan.total_steps:,} optimizer steps in {plan.epochs} epoch(s), {plan.warmup_steps:,} warmup"
    peak = f"{config['choices']['optimizer']}, peak learning rate {config['optimizer']['lr']:g}"
    yield "schedule", f"{steps}; {peak}"
    compiled = str(parts.compiled).lower() + (" (auto)" if config["compile"] == "auto" else "")
    yield "device", f"{hardware.describe_device(parts.kind)}; {parts.precision}; compile {compiled}"
    if parts.teacher:
        yield "teacher", parts.teacher.describe()
        yield "distillation", parts.teacher.describe_task(config["task"], parts.flops)
    if (ema := config["callbacks"]["ema"])["decay"] is not None:
        yield "average", describe_average(plan.total_steps, **ema)


def _notes(parts: Components, loaded: Loaded | None, *, resumed: bool) -> Iterator[str]:
    """Yield what each part of the run finds doubtful about its settings, or without effect."""
    data, plan, config = parts.data, parts.plan, parts.config
    model = config["model"]
    yield from data.notes
    if is_transformer(parts.net) and data.num_train >= SMALL_DATA and (advice := plan.advice()):
        yield advice
    patches = None
    if "patch_size" in model:
        down, right = pair("model.patch_size", model["patch_size"])
        height, width = data.input_size
        patches = (height // down) * (width // right)
    facts = RunFacts(parts.dataset.shape, patches, plan.epochs, data.batch_size // parts.processes)
    yield from data.augment.notes(facts)  # type: ignore[operator]
    yield from ema_notes(config["callbacks"]["ema"], plan.total_steps, config["overrides"])
    if parts.kind == "cpu":
        yield from hardware.matmul_notes(config["matmul_precision"])
    if parts.teacher:
        yield from parts.teacher.all_notes(config["task"], config["overrides"])
    elif hasattr(parts.net, "notes_without_teacher"):
        yield from parts.net.notes_without_teacher()  # type: ignore[operator]
    if hasattr(parts.task.built_optimizer, "notes"):
        yield from parts.task.built_optimizer.notes()
    if not resumed:
        yield from freeze_notes(config["task"]["freeze"], model)
    if loaded:
        yield from loaded.notes(data.mean, data.std, data.input_size)


def _print_rows(screen: RunConsole, rows: Iterable[tuple[str, str]]) -> None:
    """Print a block of ``name  value`` lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    screen.print(grid)


def _group_table(groups: Sequence[Mapping[str, Any]], net: nn.Module) -> Table:
    """Say how every parameter of ``net`` is trained, a line for each kind of group."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold cyan")
    table.add_column("trained")
    for column in ("tensors", "parameters", "peak rate", "weight decay"):
        table.add_column(column, justify="right")

    def add(name: str, parameters: Sequence[nn.Parameter], *how: str) -> None:
        table.add_row(name, str(len(parameters)), f"{sum(p.numel() for p in parameters):,}", *how)

    for kind in dict.fromkeys(group["name"].partition("/")[0] for group in groups):
        alike = [group for group in groups if group["name"].partition("/")[0] == kind]
        rates = sorted(group["lr"] for group in alike)
        text = f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates[0] != rates[-1] else f"{rates[0]:g}"
        members = [p for group in alike for p in group["params"]]
        add(GROUPS.get(kind, kind), members, text, f"{alike[0]['weight_decay']:g}")
    if frozen := [p for p in net.parameters() if not p.requires_grad]:
        add("frozen", frozen, "", "")
    return table


def print_results(screen: RunConsole, folder: RunFolder, summary: SummaryData) -> None:
    """Print what the run reached and where to look next."""
    metrics, train = summary["metrics"], summary["train"]
    lines = []
    for split in ("val", "test"):
        if f"{split}/accuracy" in metrics:
            which = f"  ({summary['tested']})" if split == "test" else ""
            text = f"accuracy {metrics[f'{split}/accuracy']:.2%}  loss {metrics[f'{split}/loss']:.4f}{which}"
            lines.append((split, text))
    turned = summary["turned"]
    if turned["loss_epoch"] != turned["accuracy_epoch"]:
        text = "val/loss was lowest at epoch {loss_epoch}, val/accuracy best at epoch {accuracy_epoch}"
        lines.append(("turned", text.format(**turned)))
    rate = train["images_per_second"]
    speed = f"{rate:,.0f} images/s" if rate else "too short to measure"
    text = f"{train['optimizer_steps']:,} steps, {speed}, {duration(train['wall_seconds'])} in all"
    if peak := train.get("peak_memory_bytes"):
        text += "".join(f", {size / 2**30:.1f} GiB on the {name}" for name, size in peak.items() if size)
    lines.append(("training", text))
    if folder.figures.exists():
        lines.append(("figures", f"{folder}/figures"))
    if any(folder.path.glob(f"{EVENTS}*")):
        shown = Path(str(folder))
        # The folder above, where TensorBoard compares this run with its neighbours.
        above = "outputs" if shown.parts[0] == "outputs" else shown.parent
        lines.append(("watch", f"tensorboard --logdir {above}"))
    if read_id(folder, "mlflow") and (uri := keys.get(folder.read_config(), "logger.mlflow.tracking_uri")):
        local = "://" in uri and not uri.startswith("http")
        lines.append(("MLflow", f"mlflow ui --backend-store-uri {uri}" if local else uri))
    if any(folder.path.glob("wandb/offline-run-*")):
        lines.append(("W&B", f"wandb sync {folder}/wandb/offline-run-*"))
    lines.append(("summary", f"{folder}/summary.json"))
    screen.print()
    _print_rows(screen, lines)
