"""From a config to a folder with results.json, benchmark.png and tables on the screen."""

import contextlib
import copy
import functools
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightning.fabric.utilities.throughput import get_available_flops
from rich.console import Console
from rich.text import Text
from torchvision.transforms import v2

from vitlab.benchmark import checks, references
from vitlab.benchmark.baselines import AUTOCAST, fit, inputs, plain, tutorial
from vitlab.benchmark.figures import plot_throughput
from vitlab.benchmark.report import show
from vitlab.benchmark.timing import SETTLE, Contender, Sample, race, results, timed, warm_up
from vitlab.core import hardware
from vitlab.core.batch import Batch
from vitlab.core.console import make_console
from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError
from vitlab.core.files import write_atomic
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.seeding import derive_seed
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.models.flops import count_parameters, flops_per_image, show_flops
from vitlab.training.build import build
from vitlab.training.run import plain_errors, quieten

TITLES = {
    "step": "The training step, on one fixed batch",
    "input": "Input alone, all cores",
    "input_one_core": "Input alone, one core",
    "both": "Training with its input",
}


def measure(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Measure what ``config["benchmark"]`` asks for; return what ``folder``/results.json then holds.

    Raises:
        UserError: the config cannot be built, or the hardware cannot do what is asked.
        Interrupted: Ctrl-C or SIGTERM; what was measured by then is kept.
    """
    console = make_console()
    quieten()
    try:
        with plain_errors(), hardware.use_matmul_precision(config["matmul_precision"]):
            return Benchmark(folder, config, console).run()
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # which works if nothing is in it: nothing was measured


class Benchmark:
    """One call of ``benchmark.py``: its job, its contenders, its record."""

    def __init__(self, folder: Path, config: dict[str, Any], console: Console) -> None:
        trainer = config["trainer"]
        kind = hardware.resolve_device_type(trainer["accelerator"])
        devices = trainer["devices"]
        if hardware.count_processes(devices, kind) != 1 or devices not in (1, "auto", -1, [0]):
            raise UserError(
                f"trainer.devices={devices}: benchmark.py measures one device, the first. Set "
                "trainer.devices=1, and choose another GPU by CUDA_VISIBLE_DEVICES."
            )
        self.folder = folder
        self.options = config["benchmark"]
        self.console = console
        self.stop = StopSignal(
            lambda text: console.print("stopping at the next step; once more stops at once")
        )
        # Neither validation nor checkpoints fall into a measurement; so their time, and the disk's, is saved.
        between = {"limit_val_batches": 0, "enable_checkpointing": False}
        self.job = job = build(config | {"trainer": trainer | between})
        self.device = job.data.device
        self.seed = derive_seed(config["seed"], "benchmark")
        torch.manual_seed(self.seed)
        self.net = copy.deepcopy(job.net).to(self.device)  # of the plain loop
        if job.compiled:
            job.net.compile(dynamic=False)
            self.net.compile(dynamic=False)
        self.record: dict[str, Any] = {
            "status": "running",
            "device": hardware.describe_device(job.kind),
            "cores": count_cores(),
            "threads": torch.get_num_threads(),
            "precision": job.precision,
            "matmul_precision": config["matmul_precision"],
            "compiled": job.compiled,
            "peak_flops": self.peak_flops(job.precision),
            "model": {"parameters": count_parameters(job.net), "flops_per_image": job.flops},
            "versions": find_versions("pillow", "vit-pytorch"),
            "commit": find_commit(),
            "config": config,
            "layers": {},
        }

    def run(self) -> dict[str, Any]:
        """Measure layer after layer; whatever ends it, the samples so far are written."""
        self.announce()
        self.stop.install()
        try:
            for layer in dict.fromkeys(self.options["layers"]):
                getattr(self, f"_{layer}")()
            self.record["status"] = "finished"
        except BaseException as error:
            # A signal reaches the children too, and a compiler or a worker that dies looks like a fault.
            if self.stop.received:
                self.record["status"] = "interrupted"
                raise Interrupted(self.stop.received) from None
            self.record |= {"status": "failed", "error": str(error) or type(error).__name__}
            raise
        finally:
            if self.record["layers"]:
                self.write()
                self.console.print(f"\nresults  {self.shown}/results.json, benchmark.png")
        return self.record

    def announce(self) -> None:
        """Say what is about to be measured, and which settings do nothing."""
        job, options = self.job, self.options
        choices, compiled = job.config["choices"], str(job.compiled).lower()
        size, flops = self.record["model"], show_flops(job.flops)
        lines = [
            ("model", f"{choices['model']}, {size['parameters']:,} parameters, {flops} an image (forward)"),
            ("data", f"{job.dataset.name}, {job.data.describe_storage()}; augment={choices['augment']}"),
            ("batch", str(self.batch_size)),
            ("device", f"{self.record['device']}; {job.precision}; compile {compiled}"),
            ("measured", f"{options['rounds']} rounds of {options['seconds']:g} s each, taken in turn"),
        ]
        for name, value in lines:
            self.console.print(Text.assemble((f"{name:<9}", "bold cyan"), f" {value}"))
        notes = list(job.data.notes)
        notes += [f"benchmark.against={n} does nothing in these layers" for n in checks.idle(job.config)]
        for note in notes:
            self.console.print(f"note: {note}")

    # layers

    def _step(self) -> None:
        batch = next(inputs(self.job))
        contenders = [self.vitlab(batch)]
        for name in checks.rivals(self.job.config, "step"):
            if name == "plain":
                contenders.append(self.plain(itertools.repeat(batch)))
            else:
                pair = batch.images, batch.targets.argmax(1)
                contenders.append(self.tutorial(itertools.repeat(pair)))
        self.race("step", contenders)

    def _input(self) -> None:
        for layer, threads in (("input", torch.get_num_threads()), ("input_one_core", 1)):
            if layer == "input_one_core" and self.read_ahead:
                self.console.print("note: input on one core is not measured, as workers read the images")
                return
            batches = inputs(self.job)
            steps = (len(batch.images) for batch in batches)
            note = f"one draw an image, {self.device.type}, {threads} thread(s)"
            if self.read_ahead:
                note += f", {self.job.data.num_workers} worker(s) reading"
            contenders = [self.contender("vitlab", steps, note, threads=threads)]
            for name in checks.rivals(self.job.config, "input"):
                if name == "torchvision_batch":
                    contenders.append(self.whole_batches(threads))
                elif layer == "input":
                    contenders.append(self.best(functools.partial(self.loader, name)))
                else:
                    contenders.append(self.loader(name, 0, threads))
            self.race(layer, contenders)

    def _both(self) -> None:
        contenders = [self.vitlab(None)]
        for name in checks.rivals(self.job.config, "both"):
            if name == "plain":
                contenders.append(self.plain(inputs(self.job)))
            else:
                contenders.append(self.best(lambda workers: self.tutorial(self.pil(workers), workers)))
        self.race("both", contenders)

    # contenders

    def vitlab(self, batch: Batch | None) -> Contender:
        """Return vitlab as ``train.py`` runs it: Lightning, callbacks, TensorBoard."""
        compiled = ", compiled" if self.job.compiled else ""
        return Contender(
            "vitlab",
            lambda steps: fit(self.job, self.stop, steps, batch, SETTLE + self.read_ahead),
            f"Lightning and callbacks, {self.job.precision}{compiled}",
            max(1, self.job.data.num_workers if self.read_ahead else 1),
            3 * self.job.flops,
            self.job.precision,
        )

    def plain(self, batches: Iterator[Batch]) -> Contender:
        compiled = ", compiled" if self.job.compiled else ""
        steps = plain(self.job, self.net, batches)
        note = f"the same network in a plain loop, {self.job.precision}{compiled}"
        return self.contender("plain", steps, note, flops=3 * self.job.flops, precision=self.job.precision)

    def tutorial(self, batches: Iterator[references.Pair], workers: int | None = None) -> Contender:
        """Return vit-pytorch's ViT as tutorials train it; ``workers`` of a DataLoader make the batches."""
        net = self.reference_net
        size, channels = self.job.data.input_size, self.job.config["model"]["channels"]
        flops = 3 * flops_per_image(net, size, channels)
        note = "vit-pytorch, fp32, Adam" + ("" if workers is None else f", PIL in {workers} worker(s)")
        return self.contender("tutorial", tutorial(net, batches), note, workers=workers, flops=flops)

    def loader(self, name: str, workers: int, threads: int | None = None) -> Contender:
        """Return the input of ``name``, ``pil`` or ``torchvision``, without training."""
        batches = self.pil(workers) if name == "pil" else self.torchvision(workers)
        steps = (len(images) for images, _ in batches)
        kind = "PIL" if name == "pil" else "v2 on uint8"
        note = f"{kind}, image by image, {workers} worker(s)"
        return self.contender(name, steps, note, workers=workers, threads=threads)

    def whole_batches(self, threads: int) -> Contender:
        images, labels = self.pool
        batches = references.load_whole_batches(
            images.to(self.device), labels.to(self.device), self.transform(v2), self.batch_size, self.seed
        )
        steps = (len(images) for images, _ in batches)
        note = f"v2, ONE draw for all images of a batch (augments less), {threads} thread(s)"
        return self.contender("torchvision_batch", steps, note, threads=threads)

    def contender(
        self,
        name: str,
        steps: Iterator[int],
        note: str,
        *,
        workers: int | None = None,
        threads: int | None = None,
        flops: int | None = None,
        precision: str = "32-true",
    ) -> Contender:
        """Return a contender that takes ``steps`` in this process, with ``threads`` of torch's."""
        # What a DataLoader's workers have ready was made in the time of another: not counted.
        settle = SETTLE + (self.read_ahead if workers is None else references.PREFETCH * workers)

        def sample(count: int) -> Sample:
            before = torch.get_num_threads()
            torch.set_num_threads(threads or before)
            try:
                return timed(steps, count, self.stop, settle)
            finally:
                torch.set_num_threads(before)

        details = {} if workers is None else {"workers": workers}
        readers = self.job.data.num_workers if self.read_ahead and workers is None else workers
        return Contender(name, sample, note, max(1, readers or 1), flops, precision, details)

    def best(self, make: Callable[[int], Contender]) -> Contender:
        """Try each number of workers for as long as a measurement lasts, and return the fastest."""
        trials = {}
        for workers in references.worker_counts(self.options["worker_counts"]):
            trial = make(workers)
            steps = warm_up(trial, self.options["seconds"], self.options["warmup_steps"])
            trials[workers] = trial.measure(steps).rate
        best = max(trials, key=lambda workers: trials[workers])
        contender = make(best)
        contender.note += f", best of {', '.join(map(str, trials))}"
        contender.details["images_per_second_by_workers"] = trials
        return contender

    def pil(self, workers: int) -> Iterator[references.Pair]:
        return self.load(torchvision.transforms, workers)

    def torchvision(self, workers: int) -> Iterator[references.Pair]:
        return self.load(v2, workers)

    def load(self, library: Any, workers: int) -> Iterator[references.Pair]:
        pool = references.Pool(*self.pool, self.transform(library), pil=library is not v2)
        return references.load(pool, self.batch_size, workers, self.seed, self.device)

    def transform(self, library: Any) -> Any:
        data, (images, _) = self.job.data, self.pool
        height, width = images.shape[-2:]
        return references.transform(
            library, self.job.config, (height, width), data.input_size, data.mean, data.std
        )

    @property
    def read_ahead(self) -> int:
        """Batches that vitlab's own workers may have ready, where the images are streamed."""
        data = self.job.data
        return 0 if data.in_memory else references.PREFETCH * data.num_workers

    @property
    def batch_size(self) -> int:
        return self.job.plan.batch_size

    @functools.cached_property
    def pool(self) -> references.Pair:
        """Decoded training images on the CPU, uint8 (N, C, H, W), and labels (N,)."""
        images, labels = self.job.data.train_images(self.options["pool"])
        return images.cpu(), labels.cpu()

    @functools.cached_property
    def reference_net(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        return references.tutorial_net(self.job.config["model"]).to(self.device)

    # the record

    def race(self, layer: str, contenders: list[Contender]) -> None:
        """Measure the contenders of a layer against each other, record and show them."""
        options = self.options
        try:
            race(contenders, options["rounds"], options["seconds"], options["warmup_steps"])
        finally:
            if found := results(contenders):
                self.record["layers"][layer] = {name: self.with_mfu(row) for name, row in found.items()}
                self.write()
                show(self.console, TITLES[layer], self.record["layers"][layer])

    def with_mfu(self, row: Any) -> dict[str, Any]:
        """Add the share of the device's peak, where both are known."""
        peak = self.peak_flops(row["precision"])
        known = peak is not None and row["flops_per_image"] is not None
        rate = row["images_per_second"]["median"]
        return row | {"mfu": row["flops_per_image"] * rate / peak if known else None}

    def peak_flops(self, precision: str) -> float | None:
        """Return the FLOP/s that the device can do in the arithmetic of ``precision``; None if unknown."""
        if self.options["peak_flops"] is not None and precision == self.job.precision:
            return self.options["peak_flops"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_available_flops(self.device, AUTOCAST.get(precision, torch.float32))

    def write(self) -> None:
        self.record["peak_memory_bytes"] = hardware.measure_peak_memory(self.job.kind)  # of all contenders
        text = json.dumps(self.record, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(self.folder / "results.json", (text + "\n").encode())
        layers = {TITLES[layer]: rows for layer, rows in self.record["layers"].items()}
        choice = self.job.config["choices"]["augment"]
        title = f"{self.record['device']}, {self.job.precision}, augment={choice}, batch {self.batch_size}"
        figure = plot_throughput(layers, title)
        figure.savefig(self.folder / "benchmark.png", dpi=110, bbox_inches="tight")

    @property
    def shown(self) -> str:
        with contextlib.suppress(ValueError):
            return str(self.folder.absolute().relative_to(Path.cwd()))
        return str(self.folder)
