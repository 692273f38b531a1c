"""Predict the classes of image files, many or few: results as they come, broken files reported."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from vitlab.core import hardware
from vitlab.core.console import make_console, plain, printable
from vitlab.core.errors import UserError
from vitlab.core.files import csv_text, make_folder
from vitlab.core.plotting import save_figure, shorten_name
from vitlab.data.decode import CHUNK, decode_files, with_bar
from vitlab.inference.attribution import METHODS
from vitlab.inference.explain import BATCH, choose_methods
from vitlab.inference.explain_figures import Explained, Picture, plot_image
from vitlab.inference.inputs import read_shown
from vitlab.inference.load import Classifier, Prediction, has_average, load
from vitlab.models.attention_weights import eager_copy

Row = tuple[Path, list[tuple[str, float]]]  # an image, and its most probable classes with probabilities
LONGEST_PATH = 40  # characters of a path in the table, its end


@dataclass(frozen=True)
class Request:
    """What is to be predicted, and how it is written.

    Attributes:
        checkpoint: of the network.
        raw: see `load`.
        paths: image files.
        form: table, jsonl or csv.
        top: classes an image.
        methods: those that explain, by name; empty for none.
        strict: see `choose_methods`.
        out: the folder for overlays.
    """

    checkpoint: Path
    raw: bool
    paths: Sequence[Path]
    form: str
    top: int
    methods: Sequence[str]
    strict: bool
    out: Path


@dataclass(frozen=True)
class Found:
    """An image file with its prediction.

    Attributes:
        number: of the image among all of the command.
        path: of the file.
        pixels: as the run's data are stored, uint8 (C, H, W).
        prediction: of the network.
    """

    number: int
    path: Path
    pixels: np.ndarray
    prediction: Prediction


def predict(request: Request, out: TextIO) -> None:
    """Write the predictions to ``out`` batch by batch, and what cannot be read to standard error.

    Raises:
        UserError: images cannot be read (after all others have been predicted), a method does not work with
            this network, or the folder for overlays cannot be written to.
    """
    notes = make_console(stderr=True)
    if request.methods:
        make_folder(request.out)
    classifier = load(request.checkpoint, raw=request.raw)
    if request.raw and not has_average(classifier.config):
        notes.print("note: --raw changes nothing: this run kept no average of its weights (callbacks.ema).")
    classifier.to(hardware.resolve_device_type("auto"))
    explainer = eager_copy(classifier.net) if request.methods else None
    methods = choose_methods(explainer, request.methods, request.strict, notes) if explainer else []
    top = min(request.top, len(classifier.classes))
    widths = (
        max(len(shorten_path(path)) for path in request.paths),
        max(len(plain(name)) for name in classifier.classes),
    )
    writers: dict[str, Callable[[Sequence[Row], bool], str]] = {
        "table": partial(to_table, console=make_console(file=out), widths=widths),
        "jsonl": lambda rows, first: to_jsonl(rows),
        "csv": to_csv,
    }
    done = failed = 0
    decoded = decode_files(request.paths, classifier.stored_size, classifier.channels)
    # Results that scroll by are bar enough, and two writers on one terminal spoil each other's lines.
    fewest = len(request.paths) + 1 if out.isatty() else CHUNK + 1
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of photographs that are large, or odd but readable
    for pixels, broken in with_bar(decoded, "Predicting", len(request.paths), CHUNK, fewest):
        for reason in broken.values():
            print(plain(f"cannot be read: {reason}"), file=sys.stderr, flush=True)
        good = [row for row in range(len(pixels)) if row not in broken]
        predictions = classifier.predict(torch.from_numpy(pixels[good]))
        found = [
            Found(done + row, request.paths[done + row], pixels[row], prediction)
            for row, prediction in zip(good, predictions, strict=True)
        ]
        if found:
            rows = [(item.path, item.prediction.top(top)) for item in found]
            out.write(writers[request.form](rows, done == failed))
            out.flush()
        if explainer:
            draw(found, request.out, classifier, explainer, methods)
        done += len(pixels)
        failed += len(broken)
    if methods:
        notes.print(f"{done - failed} overlays in {request.out}")
    if failed:
        raise UserError(f"{failed} of {done} images cannot be read, see above.")


def draw(
    found: Sequence[Found], out: Path, classifier: Classifier, net: nn.Module, methods: Sequence[str]
) -> None:
    """Write an overlay an image into ``out``: the image, and over it what each method says of its class."""
    device = classifier.preprocess.mean.device
    for start in range(0, len(found), BATCH):
        some = found[start : start + BATCH]
        pixels = torch.from_numpy(np.stack([item.pixels for item in some])).to(device)
        classes = [classifier.classes.index(item.prediction.class_name) for item in some]
        images, of = classifier.preprocess(pixels), torch.tensor(classes, device=device)
        maps = {method: METHODS[method](net, images, of).cpu().numpy() for method in methods}
        for row, item in enumerate(some):
            explained = Explained(
                picture=Picture(shorten_name(item.path.stem, 40), item.pixels, read_shown(item.path), None),
                probabilities=[*item.prediction.probabilities.values()],
                maps={method: own[row] for method, own in maps.items()},
                heads=None,
            )
            # Names that every file system takes, in any script; the number keeps those of one stem apart.
            name = f"{item.number:03d}_{item.path.stem[:60]}.png"
            save_figure(plot_image(explained, classifier.classes), out / name)


def to_jsonl(rows: Sequence[Row]) -> str:
    """Return one JSON object a line."""
    records = (
        {
            "path": str(path),
            "class": top[0][0],
            "probability": top[0][1],
            "top": [{"class": name, "probability": share} for name, share in top],
        }
        for path, top in rows
    )
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def to_csv(rows: Sequence[Row], first: bool) -> str:
    """Return a line an image, with the classes after the best in columns of their own."""
    more = [f"{what}_{rank}" for rank in range(2, len(rows[0][1]) + 1) for what in ("class", "probability")]
    columns = ["path", "class", "probability", *more]
    # It may be a terminal that reads this, which would obey what is in a name; JSON has escapes of its own.
    named = (
        [printable(str(path)), *chain(*((printable(name), share) for name, share in top))]
        for path, top in rows
    )
    text = csv_text(columns, [dict(zip(columns, cells, strict=True)) for cells in named])
    return text if first else text.partition("\n")[2]


def to_table(rows: Sequence[Row], first: bool, console: Console, widths: tuple[int, int]) -> str:
    """Return rows of a table for people.

    Args:
        console: it is for.
        widths: of paths and classes, the same from the first batch to the last.
    """
    table = Table(box=None, header_style="bold cyan", show_header=first, pad_edge=False)
    table.add_column("image", width=widths[0])
    table.add_column("class", width=widths[1])
    table.add_column("probability", justify="right", width=len("probability"))
    table.add_column("then" if len(rows[0][1]) > 1 else "")
    for path, ((name, probability), *others) in rows:
        then = ", ".join(f"{plain(other)} {share:.1%}" for other, share in others)
        table.add_row(shorten_path(path), plain(name), f"{probability:.1%}", then)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def shorten_path(path: Path) -> str:
    """Return the end of a path, which tells files apart."""
    text = plain(str(path))
    return text if len(text) <= LONGEST_PATH else "…" + text[1 - LONGEST_PATH :]
