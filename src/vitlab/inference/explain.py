"""Explain predictions: maps by several methods over the images, and scores that say what they are worth."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.core.extras import need
from vitlab.core.files import make_folder, write_atomic, write_json
from vitlab.core.plotting import save_figure
from vitlab.core.provenance import find_commit, find_versions
from vitlab.data import datasets
from vitlab.inference.attribution import METHODS, layer_attention
from vitlab.inference.explain_figures import (
    Explained,
    Picture,
    plot_heads,
    plot_image,
    plot_overview,
)
from vitlab.inference.faithfulness import (
    RANDOM,
    TRAINED,
    Areas,
    Score,
    beats_controls,
    join,
    measure_areas,
    random_maps,
    score,
    to_csv,
)
from vitlab.inference.inputs import read_both
from vitlab.inference.load import Classifier, load
from vitlab.inference.methods import ATTENTION, CAMS, PIXELS
from vitlab.models.attention_weights import eager_copy, token_layout, why_no_attention
from vitlab.training.instantiate import build_net, without_initial_weights

BATCH = 16  # images explained at a time
DRAWN = 4  # of the test images so many that are classified right, and so many wrong, are drawn
OVERVIEW = 12  # images in overview.png
VERDICTS = {True: "yes", False: "no", None: "too few images"}
COARSE = 8  # places on a side of a random map, where the network has no tokens


@dataclass(frozen=True)
class Request:
    """What is to be explained, and how.

    Attributes:
        checkpoint: of the network.
        files: images; without any, test images are drawn by lot.
        num_test: how many of them.
        methods: by name.
        strict: whether a method that does not work with this network is an error, and not left out.
        layers, heads: whose attention is drawn one by one; None for all.
        one_by_one: whether it is.
        out: the folder for everything.
    """

    checkpoint: Path
    files: Sequence[Path]
    num_test: int
    methods: Sequence[str]
    strict: bool
    layers: Sequence[int] | None
    heads: Sequence[int] | None
    one_by_one: bool
    out: Path


def explain(request: Request, console: Console) -> list[Score]:
    """Write figures, ``scores.csv`` and ``explain.json``, and print the table of scores.

    Raises:
        UserError: a method does not work with this network, a layer or head is not there, an image cannot be
            read, the test images are not there, or the folder cannot be written to.
    """
    make_folder(request.out)
    classifier = load(request.checkpoint)
    net = eager_copy(classifier.net)
    methods = choose_methods(net, request.methods, request.strict, console)
    if request.one_by_one:
        check_layers(net, classifier, request)
    pictures = [*read_files(request.files, classifier)] or draw_by_lot(classifier, request.num_test)
    untrained = eager_copy(randomized(classifier.config))
    batches: dict[tuple[str, str], list[Areas]] = defaultdict(list)
    explained: list[Explained] = []
    for start in range(0, len(pictures), BATCH):
        some = pictures[start : start + BATCH]
        explained += explain_batch(request, classifier, net, untrained, methods, some, batches)
        console.print(f"{start + len(some)} of {len(pictures)} images explained")
    areas = {key: join(found) for key, found in batches.items()}
    scores = [score(*key, found) for key, found in areas.items()]
    drawn = explained if request.files else [*right_and_wrong(explained)]
    draw(request, classifier.classes, drawn)
    record = {
        "checkpoint": str(request.checkpoint),
        "classes": classifier.classes,
        "images": [item.record(classifier.classes) for item in explained],
        "scores": scores,
        "versions": find_versions(),
        "commit": find_commit(),
    }
    write_atomic(request.out / "scores.csv", to_csv(scores).encode())
    write_json(request.out / "explain.json", record)
    console.print(make_table(methods, areas, scores), soft_wrap=False)
    console.print(f"{len(drawn)} images drawn, with scores.csv and explain.json, in {request.out}")
    return scores


def explain_batch(
    request: Request,
    classifier: Classifier,
    net: nn.Module,
    untrained: nn.Module,
    methods: Sequence[str],
    pictures: Sequence[Picture],
    areas: dict[tuple[str, str], list[Areas]],
) -> Iterator[Explained]:
    """Yield what the methods say of images, and add to ``areas``, by method and network, what it is worth."""
    images = classifier.preprocess(torch.from_numpy(np.stack([p.pixels for p in pictures])))  # (B, C, H, W)
    with torch.no_grad():
        probabilities = net(images).softmax(-1)  # (B, K)
    classes = probabilities.argmax(-1)  # (B,)
    maps = {method: METHODS[method](net, images, classes) for method in methods}
    for method, own in maps.items():
        areas[method, TRAINED].append(measure_areas(net, images, classes, own))
        control = METHODS[method](untrained, images, classes)
        areas[method, RANDOM].append(measure_areas(net, images, classes, control))
    layout = token_layout(net)
    done = sum(len(found.deletion) for found in areas[RANDOM, TRAINED])
    noise = random_maps(images, layout.grid if layout else (COARSE, COARSE), seed=done)
    areas[RANDOM, TRAINED].append(measure_areas(net, images, classes, noise))
    heads = layer_attention(net, images).numpy() if request.one_by_one else None
    for row, picture in enumerate(pictures):
        yield Explained(
            picture=picture,
            probabilities=probabilities[row].tolist(),
            maps={method: own[row].numpy() for method, own in maps.items()},
            heads=None if heads is None else heads[row],
        )


def find_problems(net: nn.Module) -> dict[str, str]:
    """Return the methods that do not work with this network, each with the reason as a sentence."""
    problems: dict[str, str] = {}
    if token_layout(net) is None:
        problems |= dict.fromkeys(ATTENTION, f"{why_no_attention(net)}.")
    for library, names in (("torchcam", tuple(CAMS)), ("captum", PIXELS)):
        try:
            need(library, extra="explain", what=f"each of {', '.join(names)}")
        except UserError as error:
            problems |= dict.fromkeys(names, str(error))
    return problems


def choose_methods(net: nn.Module, names: Sequence[str], strict: bool, console: Console) -> list[str]:
    """Return the methods that work with this network, and say why others do not.

    Args:
        strict: whether one that does not is an error, and not left out.

    Raises:
        UserError: one does not that must, or none does.
    """
    problems = find_problems(net)
    refused = dict.fromkeys(problems[name] for name in names if name in problems)
    if strict and refused:
        raise UserError("\n".join(refused))
    for reason in refused:
        console.print(f"note: {reason}")
    methods = [name for name in names if name not in problems]
    if not methods:
        raise UserError("no method is left for this network.")
    return methods


def check_layers(net: nn.Module, classifier: Classifier, request: Request) -> None:
    """Check that the layers and heads asked for are there.

    Raises:
        UserError: one is not.
    """
    depth, heads = layer_attention(net, example(classifier)).shape[1:3]
    for flag, asked, number in (("layers", request.layers, depth), ("heads", request.heads, heads)):
        for place in asked or ():
            if place >= number:
                raise UserError(
                    f"--{flag} {place}: this network has {number} {flag}: choose 0 to {number - 1}, or all."
                )


def example(classifier: Classifier) -> Tensor:
    """Return an empty image of the network's own size, (1, C, H, W)."""
    return torch.zeros(1, len(classifier.preprocess.mean), *classifier.preprocess.size)


def randomized(config: dict[str, Any]) -> nn.Module:
    """Return the network of a config with random weights, the same ones each time.

    Source: "Sanity Checks for Saliency Maps" (Adebayo et al. 2018, section 3).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_net(without_initial_weights(config))


def read_files(files: Sequence[Path], classifier: Classifier) -> Iterator[Picture]:
    """Yield image files, decoded as the data were that the network learned from."""
    for path in files:
        pixels, shown = read_both(path, classifier.stored_size, classifier.channels)
        yield Picture(path.stem, pixels, shown, None)


def draw_by_lot(classifier: Classifier, number: int) -> list[Picture]:
    """Return test images of the run's data, the same ones for every run on it.

    Raises:
        UserError: the data are not there.
    """
    images, labels = datasets.build(classifier.config["data"]).load("test")
    lot = np.random.default_rng(0).permutation(len(labels))[:number]
    return [
        Picture(
            f"test_{place}",
            pixels,
            np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3)),
            int(labels[place]),
        )
        for place, pixels in zip(lot, images[lot], strict=True)
    ]


def right_and_wrong(explained: Sequence[Explained]) -> Iterator[Explained]:
    """Yield the first images that are classified right, and the first that are not."""
    for right in (True, False):
        yield from [item for item in explained if item.right is right][:DRAWN]


def draw(request: Request, classes: Sequence[str], items: Sequence[Explained]) -> None:
    """Write a figure an image, one more of its heads where that is asked for, and the overview."""
    for number, item in enumerate(items):
        name = f"{number:03d}_{item.picture.name}"
        save_figure(plot_image(item, classes), request.out / f"{name}.png")
        if item.heads is not None:
            depth, heads = item.heads.shape[:2]
            layers = range(depth) if request.layers is None else request.layers
            chosen = range(heads) if request.heads is None else request.heads
            save_figure(plot_heads(item, classes, layers, chosen), request.out / f"{name}_heads.png")
    save_figure(plot_overview(items[:OVERVIEW], classes), request.out / "overview.png")


def make_table(methods: Sequence[str], areas: dict[tuple[str, str], Areas], scores: Sequence[Score]) -> Table:
    """Return the scores as people read them: a line a method, the random map last."""
    rows = {(row["method"], row["network"]): row for row in scores}
    table = Table(
        title=f"Deletion and insertion, {scores[0]['n']} images; in brackets 95 % intervals",
        header_style="bold cyan",
    )
    table.add_column("method")
    for head in ("deletion ↓", "insertion ↑", "insertion - deletion", "random weights'", "beats both"):
        table.add_column(head, justify="right", no_wrap=True)
    for method in [*methods, RANDOM]:
        own, control = rows[method, TRAINED], rows.get((method, RANDOM))
        table.add_row(
            method if control else "random map",
            f"{own['deletion']:.3f}",
            f"{own['insertion']:.3f}",
            show_difference(own),
            show_difference(control) if control else "",
            "" if control is None else VERDICTS[beats_controls(method, areas)],
        )
    return table


def show_difference(row: Score) -> str:
    """Return insertion - deletion, with its interval where there is one."""
    text = f"{row['insertion'] - row['deletion']:+.3f}"
    return text if row["low"] is None else f"{text} [{row['low']:+.3f}, {row['high']:+.3f}]"
