"""Measure vitlab's input and training against the stacks that people use.

    python -m experiments.input_speed.study data=image_folder data.root=DIR --out=DIR

Beside the plain loop of ``benchmark.py``: ``tutorial``, vit-pytorch's ViT in float32 with Adam and PIL images
in a DataLoader (step, both); and, for the input alone, ``pil``, ``torchvision`` (v2, image by image) and
``torchvision_batch`` (v2, one draw for the whole batch). Everything else is as ``benchmark.py`` takes it.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from torchvision.transforms import v2

from experiments.input_speed import references
from vitlab.benchmark.baselines import endless_input, plain_loop
from vitlab.benchmark.checks import check_benchmark
from vitlab.benchmark.measure import Benchmark, measure
from vitlab.benchmark.timing import Candidate, warm_up
from vitlab.config import preflight, to_plain
from vitlab.core.provenance import find_versions
from vitlab.models.flops import flops_per_image

AGAINST = ("plain", "tutorial", "pil", "torchvision", "torchvision_batch")


class Study(Benchmark):
    """A benchmark with more candidates.

    Args:
        asked: ``against`` (of `AGAINST`), ``worker_counts`` (of a DataLoader; each is tried, the best is
            measured; None: from 0 to the cores) and ``pool`` (decoded training images in memory).
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], console: Console, asked: argparse.Namespace
    ) -> None:
        super().__init__(folder, config, console)
        self.asked = asked
        self.record["versions"] = find_versions("pillow", "vit-pytorch")
        images, labels = self.job.data.train_images(asked.pool)
        self.pool = images.cpu(), labels.cpu()  # uint8 (N, C, H, W), int64 (N,)

    def step(self) -> None:
        """Measure training on one fixed batch."""
        batch = next(endless_input(self.job))
        pair = batch.images, batch.targets.argmax(1)
        self.compete(
            "step",
            self.vitlab(batch),
            plain=lambda: self.plain(itertools.repeat(batch)),
            tutorial=lambda: self.tutorial(itertools.repeat(pair)),
        )

    def input(self) -> None:
        """Measure the batches alone, with all cores and, where no workers read the images, with one."""
        threads = torch.get_num_threads()
        self.compete(
            "input",
            self.own_input(threads),
            pil=lambda: self.best(lambda workers: self.loader("pil", workers)),
            torchvision=lambda: self.best(lambda workers: self.loader("torchvision", workers)),
            torchvision_batch=lambda: self.whole_batches(threads),
        )
        if self.workers:
            self.console.print("note: input on one core is not measured, as workers read the images")
            return
        self.compete(
            "input_one_core",
            self.own_input(1),
            pil=lambda: self.loader("pil", 0, 1),
            torchvision=lambda: self.loader("torchvision", 0, 1),
            torchvision_batch=lambda: self.whole_batches(1),
        )

    def both(self) -> None:
        """Measure training with its input."""
        self.compete(
            "both",
            self.vitlab(None),
            plain=lambda: self.plain(endless_input(self.job)),
            tutorial=lambda: self.best(lambda workers: self.tutorial(self.load("pil", workers), workers)),
        )

    def compete(self, layer: str, ours: Candidate, **others: Callable[[], Candidate]) -> None:
        """Measure ours against those of the others that were asked for."""
        self.measure(layer, [ours, *(others[name]() for name in self.asked.against if name in others)])

    def tutorial(self, batches: Iterator[references.Pair], workers: int | None = None) -> Candidate:
        """Return vit-pytorch's ViT as tutorials train it: float32, not compiled, Adam, classes as targets."""
        net, model = self.tutorial_net, self.job.config["model"]
        steps = plain_loop(net, torch.optim.Adam(net.parameters(), lr=1e-3), batches, F.cross_entropy)
        note = "vit-pytorch, fp32, Adam" + ("" if workers is None else f", PIL in {workers} worker(s)")
        flops = 3 * flops_per_image(net, self.job.data.input_size, model["channels"])
        return with_workers(self.candidate("tutorial", steps, note, workers=workers, flops=flops), workers)

    def loader(self, name: str, workers: int, threads: int | None = None) -> Candidate:
        """Return the input of ``name``, ``pil`` or ``torchvision``, without training."""
        steps = (len(images) for images, _ in self.load(name, workers))
        kind = "PIL" if name == "pil" else "v2 on uint8"
        note = f"{kind}, image by image, {workers} worker(s)"
        return with_workers(self.candidate(name, steps, note, workers=workers, threads=threads), workers)

    def whole_batches(self, threads: int) -> Candidate:
        """Return torchvision's transforms called once for a batch, on the device."""
        images, labels = (tensor.to(self.device) for tensor in self.pool)
        batches = references.load_whole_batches(
            images, labels, self.transform(v2), self.batch_size, self.seed
        )
        note = f"v2, ONE draw for all images of a batch (augments less), {threads} thread(s)"
        steps = (len(images) for images, _ in batches)
        return self.candidate("torchvision_batch", steps, note, threads=threads)

    def best(self, make: Callable[[int], Candidate]) -> Candidate:
        """Try each number of workers for as long as a measurement lasts, and return the fastest."""
        rates: dict[int, float] = {}
        for workers in references.worker_counts(self.asked.worker_counts):
            trial = make(workers)
            steps = warm_up(trial, self.options["seconds"], self.options["warmup_steps"])
            rates[workers] = trial.measure(steps).rate
        candidate = make(max(rates, key=lambda workers: rates[workers]))
        candidate.note += f", best of {', '.join(map(str, rates))}"
        candidate.details["images_per_second_by_workers"] = rates
        return candidate

    def load(self, name: str, workers: int) -> Iterator[references.Pair]:
        """Yield batches made by a DataLoader."""
        library = torchvision.transforms if name == "pil" else v2
        pool = references.Pool(*self.pool, self.transform(library), pil=name == "pil")
        return references.load(pool, self.batch_size, workers, self.seed, self.device)

    def transform(self, library: Any) -> Any:
        """Return the library's counterpart of the configured augmentation."""
        data, (height, width) = self.job.data, self.pool[0].shape[-2:]
        sizes = (height, width), data.input_size
        return references.transform(library, self.job.config, *sizes, data.mean, data.std)

    @functools.cached_property
    def tutorial_net(self) -> torch.nn.Module:
        """vit-pytorch's ViT of the configured shape."""
        torch.manual_seed(self.seed)
        return references.tutorial_net(self.job.config["model"]).to(self.device)


def with_workers(candidate: Candidate, workers: int | None) -> Candidate:
    """Put the number of workers on record."""
    if workers is not None:
        candidate.details["workers"] = workers
    return candidate


def check(config: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """Refuse what has no counterpart, before anything is measured."""
    check_benchmark(config)
    if "tutorial" in asked.against:
        references.check_tutorial(config["model"])
    if {*asked.against} - {"plain"}:
        list(references.counterpart_nodes(config))
    if asked.pool < config["data"]["batch_size"]:
        raise SystemExit(f"--pool={asked.pool}: give at least a batch, {config['data']['batch_size']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and benchmark.png")
    parser.add_argument("--against", nargs="+", choices=AGAINST, default=AGAINST)
    parser.add_argument("--worker-counts", nargs="+", type=int, help="of the DataLoaders; the best is taken")
    parser.add_argument("--pool", type=int, default=4096, help="decoded training images in memory")
    asked, overrides = parser.parse_known_args(arguments)
    (cfg,) = preflight(overrides, root="benchmark")
    groups = {key: value for key, _, value in (o.partition("=") for o in overrides) if "." not in key}
    choices = {"model": "vit_tiny", "augment": "autoaugment"} | groups
    config = to_plain(cfg) | {"overrides": overrides, "choices": choices, "swept": []}
    check(config, asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    measure(asked.out, config, functools.partial(Study, asked=asked))


if __name__ == "__main__":
    main()
