"""From a config to a folder with results.json, benchmark.png and tables on the screen."""

import contextlib
import copy
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from rich.console import Console
from rich.text import Text

from vitlab.benchmark.baselines import AUTOCAST, endless_input, train_plainly, train_with_lightning
from vitlab.benchmark.inference import BATCHES, build_runtimes, choose_images, make_candidate
from vitlab.benchmark.report import plot_throughput, show_table
from vitlab.benchmark.timing import SETTLE, Candidate, Sample, measure_in_turn, summarize, timed
from vitlab.core import hardware
from vitlab.core.batch import Batch
from vitlab.core.console import make_console
from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError
from vitlab.core.files import write_json
from vitlab.core.plotting import save_figure
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import RunFolder
from vitlab.core.seeding import derive_seed
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.data.datasets import Dataset
from vitlab.models.flops import count_parameters, show_flops
from vitlab.training.build import build
from vitlab.training.faults import plain_errors
from vitlab.training.run import quieten

PREFETCH = 2  # batches that a worker has ready, PyTorch's default
TITLES = {
    "step": "The training step, on one fixed batch",
    "input": "Input alone, all cores",
    "input_one_core": "Input alone, one core",
    "both": "Training with its input",
    "inference_1": "Inference in float32 (or 8 bits), one image at a time",
    "inference_256": "Inference in float32 (or 8 bits), 256 images at a time",
}


class Benchmark:
    """One call of ``benchmark.py``: its job, its candidates, its record."""

    def __init__(
        self, folder: Path, config: dict[str, Any], console: Console, dataset: Dataset | None = None
    ) -> None:
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
        self.stop = StopSignal(lambda _: console.print("stopping at the next step; once more stops at once"))
        # Neither validation nor checkpoints fall into a measurement; so their time, and the disk's, is saved.
        between = {"limit_val_batches": 0, "enable_checkpointing": False}
        self.job = job = build(config | {"trainer": trainer | between}, dataset=dataset)
        self.device, self.batch_size = job.data.device, job.plan.batch_size
        self.workers = 0 if job.data.in_memory else job.data.num_workers  # that read the images
        self.seed = derive_seed(config["seed"], "benchmark")
        torch.manual_seed(self.seed)
        self.net = copy.deepcopy(job.net).to(self.device)  # of the plain loop
        if job.compiled:
            job.compile()
            self.net.compile(dynamic=False)
        self.arithmetic = job.precision + (", compiled" if job.compiled else "")
        self.record: dict[str, Any] = {
            "status": "interrupted",  # until it has ended: a second Ctrl-C leaves no time to write
            "device": hardware.describe_device(job.kind),
            "cores": count_cores(),
            "threads": torch.get_num_threads(),
            "precision": job.precision,
            "matmul_precision": config["matmul_precision"],
            "compiled": job.compiled,
            "peak_flops": self.peak_flops(job.precision),
            "model": {"parameters": count_parameters(job.net), "flops_per_image": job.flops},
            "versions": find_versions("pillow"),
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
                getattr(self, layer)()
            self.record["status"] = "finished"
        except BaseException as error:
            # A signal reaches the children too, and a compiler or a worker that dies looks like a fault.
            if self.stop.received:
                raise Interrupted(self.stop.received) from None
            self.record |= {"status": "failed", "error": str(error) or type(error).__name__}
            raise
        finally:
            if self.record["layers"]:
                self.write()
                self.console.print(f"\nresults  {RunFolder(self.folder)}/results.json, benchmark.png")
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
        for note in job.data.notes:
            self.console.print(f"note: {note}")

    # layers

    def step(self) -> None:
        """Measure training on one fixed batch."""
        batch = next(endless_input(self.job))
        self.measure("step", [self.vitlab(batch), self.plain(itertools.repeat(batch))])

    def input(self) -> None:
        """Measure the batches alone, with all threads and with one."""
        self.measure("input", [self.own_input(torch.get_num_threads())])
        if self.workers:
            self.console.print("note: input on one core is not measured, as workers read the images")
        else:
            self.measure("input_one_core", [self.own_input(1)])

    def both(self) -> None:
        """Measure training with its input."""
        self.measure("both", [self.vitlab(None), self.plain(endless_input(self.job))])

    def inference(self) -> None:
        """Measure what answers images after training, in each batch size."""
        images = choose_images(self.job)
        with tempfile.TemporaryDirectory() as folder:
            runtimes, notes = build_runtimes(self.job, images, Path(folder))
            for note in notes:
                self.console.print(f"note: {note}")
            for size in BATCHES:
                batch = images[:size]
                candidates = [make_candidate(own, batch, self.stop, self.job.flops) for own in runtimes]
                self.measure(f"inference_{size}", candidates)

    # candidates

    def vitlab(self, batch: Batch | None) -> Candidate:
        """Return vitlab as ``train.py`` runs it: Lightning, callbacks, TensorBoard."""
        settle = SETTLE + PREFETCH * self.workers
        return Candidate(
            "vitlab",
            lambda steps: train_with_lightning(self.job, self.stop, steps, batch, settle),
            f"Lightning and callbacks, {self.arithmetic}",
            self.workers,
            3 * self.job.flops,
            self.job.precision,
        )

    def plain(self, batches: Iterator[Batch]) -> Candidate:
        """Return a plain PyTorch loop over the same network."""
        steps = train_plainly(self.job, self.net, batches)
        note = f"the same network in a plain loop, {self.arithmetic}"
        return self.candidate("plain", steps, note, flops=3 * self.job.flops, precision=self.job.precision)

    def own_input(self, threads: int) -> Candidate:
        """Return vitlab's input without training."""
        note = f"one draw an image, {self.device.type}, {threads} thread(s)"
        if self.workers:
            note += f", {self.workers} worker(s) reading"
        steps = (len(batch.images) for batch in endless_input(self.job))
        return self.candidate("vitlab", steps, note, threads=threads)

    def candidate(
        self,
        name: str,
        steps: Iterator[int],
        note: str,
        *,
        workers: int | None = None,
        threads: int | None = None,
        flops: int | None = None,
        precision: str = "32-true",
    ) -> Candidate:
        """Return a candidate that takes ``steps`` in this process.

        Args:
            steps: each ``next`` takes a step and returns its number of images.
            workers: processes that make the batches; None for those of vitlab's own input.
            threads: torch's; None leaves them as they are.
        """
        workers = self.workers if workers is None else workers
        # What the workers have ready was made in the time of another: not counted.
        settle = SETTLE + PREFETCH * workers

        def sample(count: int) -> Sample:
            before = torch.get_num_threads()
            torch.set_num_threads(threads or before)
            try:
                return timed(steps, count, self.stop, settle)
            finally:
                torch.set_num_threads(before)

        return Candidate(name, sample, note, workers, flops, precision)

    # the record

    def measure(self, layer: str, candidates: list[Candidate]) -> None:
        """Measure the candidates of a layer against each other, record and show them."""
        options = self.options
        try:
            measure_in_turn(candidates, options["rounds"], options["seconds"], options["warmup_steps"])
        finally:
            if rows := summarize(candidates):
                for row in rows.values():
                    peak, flops = self.peak_flops(row["precision"]), row["flops_per_image"]
                    known = peak is not None and flops is not None
                    row["mfu"] = flops * row["images_per_second"]["median"] / peak if known else None
                self.record["layers"][layer] = rows
                self.write()
                show_table(self.console, TITLES[layer], rows)

    def peak_flops(self, precision: str) -> float | None:
        """Return the FLOP/s that the device can do in the arithmetic of ``precision``; None if unknown."""
        if self.options["peak_flops"] is not None and precision == self.job.precision:
            return self.options["peak_flops"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_available_flops(self.device, AUTOCAST.get(precision, torch.float32))

    def write(self) -> None:
        """Write results.json and its figure, with what is measured so far."""
        self.record["peak_memory_bytes"] = hardware.measure_peak_memory(self.job.kind)  # of all candidates
        write_json(self.folder / "results.json", self.record)
        layers = {TITLES[layer]: rows for layer, rows in self.record["layers"].items()}
        choice = self.job.config["choices"]["augment"]
        training = f"{self.job.precision}, augment={choice}, training batch {self.batch_size}"
        figure = plot_throughput(layers, f"{self.record['device']}, {training}")
        save_figure(figure, self.folder / "benchmark.png")


def measure(
    folder: Path,
    config: dict[str, Any],
    make: Callable[[Path, dict[str, Any], Console], Benchmark] = Benchmark,
) -> dict[str, Any]:
    """Measure what ``config["benchmark"]`` asks for; return what ``folder``/results.json then holds.

    Args:
        make: builds the benchmark, from the folder, the config and the console.

    Raises:
        UserError: the config cannot be built, or the hardware cannot do what is asked.
        Interrupted: Ctrl-C or SIGTERM; what was measured by then is kept.
    """
    console = make_console()
    quieten()
    try:
        with plain_errors(), hardware.use_matmul_precision(config["matmul_precision"]):
            return make(folder, config, console).run()
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # which works if nothing is in it: nothing was measured
