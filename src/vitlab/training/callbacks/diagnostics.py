"""What happens inside the network as it learns: diagnostics.csv, its curves, its figures and its alarms."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab.core.batch import Batch
from vitlab.core.console import RunConsole
from vitlab.core.disk import as_note
from vitlab.core.files import csv_text, write_atomic
from vitlab.core.plotting import rasterize, save_figure
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.models.attention_weights import token_layout
from vitlab.tasks.protocol import task_of
from vitlab.training.alarms import Alarms
from vitlab.training.build import Components
from vitlab.training.diagnostics_figures import plot_diagnostics, plot_maps, plot_positions
from vitlab.training.lightning_internals import is_last_batch
from vitlab.training.probes import probe_tokens
from vitlab.training.trackers import Tracker

COLUMNS = ("epoch", "step", "measure", "layer", "head", "value")
IMAGES = 16  # of the validation images, or where none are held out of the training images, that are looked at
DRAWN = 4  # of these, in attention_over_training.png
OF_ATTENTION = ("entropy", "distance", "largest_score")
OF_ACTIVATIONS = ("near_zero", "dead", "residual_norm", "feature_norm")


@dataclass(eq=False)
class Diagnostics(L.Callback):
    """Measure the network at the start, every so many epochs, and at the end; training is not touched.

    Alarms go to the screen and into the summary.
    """

    folder: RunFolder
    summary: Summary
    screen: RunConsole
    parts: Components
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the measurement under way
    measured: int = 0  # the epoch that was measured last
    maps: dict[int, Tensor] = field(default_factory=dict)  # by epoch, (DRAWN, h, w)
    # Since the last measurement: sum of gradient norms, steps that were clipped, steps.
    sums: Tensor = field(default_factory=lambda: torch.zeros(3))
    steps: int = 0
    confusion: Tensor | None = None  # (K, K) of the validation that runs or ran last
    before: list[Tensor] = field(default_factory=list)  # the weights before a step that is measured
    norm: Tensor | None = None

    def __post_init__(self) -> None:
        trainer, plan = self.parts.config["trainer"], self.parts.plan
        self.options = self.parts.config["callbacks"]["diagnostics"]
        by_value = trainer["gradient_clip_algorithm"] == "value"
        self.clip = None if by_value else trainer["gradient_clip_val"]
        self.alarms = Alarms(plan.warmup_steps * plan.epochs / plan.total_steps, self.clip)

    def state_dict(self) -> dict[str, Any]:
        return {"maps": self.maps, "sums": self.sums.cpu(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.maps, self.sums, self.steps = (state_dict[key] for key in ("maps", "sums", "steps"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sums = self.sums.to(pl_module.device)
        self.steps = trainer.global_step
        self.maps = {epoch: maps for epoch, maps in self.maps.items() if epoch <= trainer.current_epoch}
        if not trainer.is_global_zero:
            return
        kept = [row for row in read_rows(self.folder) if row["epoch"] <= trainer.current_epoch]
        if trainer.global_step == 0:
            kept = []  # of a run that was killed before its first checkpoint
        write_atomic(self.folder.diagnostics, csv_text(COLUMNS, kept).encode())
        self.alarms.look(kept)
        self.measured = kept[-1]["epoch"] if kept else 0
        if trainer.global_step == 0:
            self._measure(trainer, task_of(trainer).net, epoch=0)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if not self.options["gradients"]:
            return
        parameters = list(task_of(trainer).net.parameters())
        self.norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._is_due(trainer) and is_last_batch(trainer):
            self.before = [p.detach().clone() for p in parameters]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.norm is not None and trainer.global_step > self.steps:
            self.steps = trainer.global_step
            clipped = self.norm > self.clip if self.clip else torch.zeros_like(self.norm)
            self.sums += torch.stack([self.norm, clipped.float(), torch.ones_like(self.norm)])

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.confusion = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.options["classes"] or trainer.sanity_checking:
            return
        predicted, truth = outputs.argmax(1), batch.targets[: batch.valid].argmax(1)
        number = batch.targets.shape[1]
        counts = (truth * number + predicted).bincount(minlength=number**2).view(number, number)
        self.confusion = counts if self.confusion is None else self.confusion + counts

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_due(trainer):
            return
        epoch, task = trainer.current_epoch + 1, task_of(trainer)
        if self.confusion is not None:
            counts = trainer.strategy.reduce(self.confusion, reduce_op="sum")  # every rank takes part
            shares = counts.diagonal() / counts.sum(1).clamp(min=1)
            self._add(
                trainer, epoch, "class_accuracy", dict(zip(self.parts.data.classes, shares, strict=True))
            )
        self._measure_gradients(trainer, task.net, epoch)
        self._measure(trainer, task.net, epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.measured < trainer.current_epoch:  # it was stopped early
            self._measure(trainer, task_of(trainer).net, trainer.current_epoch)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and (rows := [*read_rows(self.folder)]):
            with as_note(self.screen.print, "figures of the diagnostics"):
                self._draw(trainer, rows)

    def _draw(self, trainer: L.Trainer, rows: list[dict[str, Any]]) -> None:
        self.folder.figures.mkdir(exist_ok=True)
        alarms = Alarms(self.alarms.warmup_epochs, self.clip).look(rows)
        save_figure(plot_diagnostics(rows, alarms), self.folder.figures / "diagnostics.png")
        if self.maps:
            figure = plot_maps(self._pictures()[:DRAWN].cpu().numpy(), self.maps)
            save_figure(figure, self.folder.figures / "attention_over_training.png")
        layout = token_layout(task_of(trainer).net)
        if self.options["positions"] and layout and layout.positions is not None:
            of_patches = layout.positions.detach()[0, layout.prefix - layout.num_tokens :].float().cpu()
            save_figure(plot_positions(of_patches, layout.grid), self.folder.figures / "positions.png")

    def _is_due(self, trainer: L.Trainer) -> bool:
        epoch = trainer.current_epoch + 1
        return epoch % self.options["every_epochs"] == 0 or epoch == trainer.max_epochs

    def _pictures(self) -> Tensor:
        return self.parts.data.some_images(IMAGES)

    def _measure_gradients(self, trainer: L.Trainer, net: nn.Module, epoch: int) -> None:
        total, clipped, steps = self.sums.tolist()
        self.sums.zero_()
        if steps:
            self._add(trainer, epoch, "gradient_norm", {"": total / steps})
            if self.clip:
                self._add(trainer, epoch, "clipped_share", {"": clipped / steps})
        if self.before:
            moved = [p.detach() - old for p, old in zip(net.parameters(), self.before, strict=True)]
            names = [name for name, _ in net.named_parameters()]
            ratios = {}
            for layer, prefixes in net.layers():  # type: ignore[operator]
                own = [i for i, name in enumerate(names) if name.startswith(tuple(prefixes))]
                step, weights = (
                    nn.utils.get_total_norm([some[i] for i in own]) for some in (moved, self.before)
                )
                ratios[layer] = step / weights
            self.before = []
            self._add(trainer, epoch, "update_ratio", ratios)

    def _measure(self, trainer: L.Trainer, net: nn.Module, epoch: int) -> None:
        """Look into the network, write what is known, and say the alarms that are new."""
        if not trainer.is_global_zero:
            return
        wanted = (OF_ATTENTION if self.options["attention"] else ()) + (
            OF_ACTIVATIONS if self.options["activations"] else ()
        )
        if wanted and token_layout(net) is not None:
            device = next(net.parameters()).device
            pictures = self._pictures()
            images = self.parts.data.preprocess.to(device)(pictures.to(device))
            found = probe_tokens(net, images)
            if self.options["attention"]:
                # A copy: a slice would keep the maps of all images, in the checkpoint too.
                self.maps[epoch] = found["maps"][:DRAWN].cpu().clone()
                if trackers := cast(list[Tracker], trainer.loggers):
                    figure = plot_maps(pictures[:DRAWN].cpu().numpy(), {epoch: self.maps[epoch]})
                    pixels = rasterize(figure)
                    for tracker in trackers:
                        tracker.add_image("attention", pixels, trainer.global_step)
            for measure in wanted:
                if measure in found:
                    names = [f"block_{i}" for i in range(len(found[measure]))]
                    names = [""] if measure == "feature_norm" else names
                    self._add(trainer, epoch, measure, dict(zip(names, found[measure], strict=True)))
        add_rows(self.folder, self.rows)
        for alarm in self.alarms.look(self.rows):
            self.screen.print(f"alarm: {alarm['message']}")
        self.summary.update(alarms=[*self.alarms.found.values()])
        self.rows, self.measured = [], epoch

    def _add(self, trainer: L.Trainer, epoch: int, measure: str, values: Mapping[str, Any]) -> None:
        """Add rows for a measure, by layer, and its curves for the trackers."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        curves: dict[str, float] = {}
        for layer, value in values.items():
            heads = torch.as_tensor(value).tolist()
            several = isinstance(heads, list)
            for head, own in enumerate(heads if several else [heads]):
                row = (epoch, step, measure, layer, head if several else "", own)
                self.rows.append(dict(zip(COLUMNS, row, strict=True)))
            curves[f"{measure}/{layer}".rstrip("/")] = float(torch.as_tensor(value).float().mean())
        for logger in trainer.loggers:  # at the step that was taken last, counted from 0; see `StepLoss`
            values = {f"diagnostics/{name}": value for name, value in curves.items()}
            logger.log_metrics(values, max(0, step - 1))


def add_rows(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to ``diagnostics.csv``, which is replaced atomically, as metrics.csv is."""
    heading, _, added = csv_text(COLUMNS, rows).partition("\n")
    before = folder.diagnostics.read_bytes() if folder.diagnostics.exists() else f"{heading}\n".encode()
    write_atomic(folder.diagnostics, before + added.encode())


def read_rows(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``diagnostics.csv``; none where there is no such file."""
    if folder.diagnostics.exists():
        with open(folder.diagnostics, newline="") as file:
            for row in csv.DictReader(file):
                head = int(row["head"]) if row["head"] else ""
                numbers = {"epoch": int(row["epoch"]), "step": int(row["step"]), "value": float(row["value"])}
                yield {**row, **numbers, "head": head}
