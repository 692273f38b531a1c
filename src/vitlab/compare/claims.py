"""Claims: what a study found, written so that a program can hold new runs against it.

``experiments/<study>/claim.yaml`` has the keys of `Record`. Accuracies in it are percent, tolerances points.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vitlab.compare.groups import SPLITS
from vitlab.compare.statistics import Spread
from vitlab.compare.table import code
from vitlab.core.console import escape_markdown, plain
from vitlab.core.errors import UserError
from vitlab.core.files import write_atomic
from vitlab.core.suggest import join_or, suggest
from vitlab.core.untrusted import misfits, read_yaml, unknown_keys

FILE = "claim.yaml"
DIR = "DIR"  # in a command: a folder that only the person at the keyboard knows
# Which weights a test accuracy is of; "test images": of the best epoch by the test images themselves.
SELECTIONS = ("hold-out", "last epoch", "test images")
BEGIN, END = "<!-- results: `make results` writes this table from experiments/ -->", "<!-- end of results -->"
UNKNOWN = "not recorded"
COLUMNS = ("recipe", "data", "hardware", "time", "test accuracy")


class Data(TypedDict):
    """Which images: what they are called; of image files also which, as a run's summary.json says it."""

    label: str
    fingerprint: NotRequired[str]


class Protocol(TypedDict):
    """How many images there are of each part, and which weights are tested (None: not known)."""

    train: int
    val: int
    test: int
    selection: str | None  # one of ``SELECTIONS``


class Source(TypedDict):
    """Who found it: "ours", or where it was published, and the protocol there."""

    by: str
    protocol: NotRequired[Protocol]
    note: NotRequired[str]


class Figure(TypedDict):
    """An accuracy over seeds."""

    name: str
    metric: NotRequired[str]  # val/accuracy or test/accuracy, which is the default
    overrides: NotRequired[list[str]]  # what this figure's runs have beside the claim's command
    command: NotRequired[str]  # of a figure that train.py does not make; it is told and not run
    mean: float | None  # ours; None: not yet measured
    sd: NotRequired[float | None]  # over seeds; of one there is none
    n: NotRequired[int | None]
    tolerance: NotRequired[float | None]  # points by which a new mean may differ
    published: NotRequired[float]  # the source's
    seconds: NotRequired[float | None]  # of wall time, the mean over seeds
    result: NotRequired[bool]  # whether README's table has it


class Record(TypedDict):
    """``claim.yaml``."""

    claim: str  # one sentence
    command: str  # python train.py …, without seeds
    seeds: list[int]
    data: Data
    protocol: Protocol
    settings: dict[str, Any]  # keys of the runs' config as they were when the figures were measured
    hardware: str | None
    commit: str | None
    source: Source
    figures: list[Figure]


@dataclass(frozen=True)
class Claim:
    """A claim and the folder of its study."""

    folder: Path
    record: Record

    @property
    def overrides(self) -> list[str]:
        """The overrides of the command."""
        return [word for word in _split(self.record["command"])[2:] if word != "-m"]


def read_claim(path: str | Path) -> Claim:
    """Read the claim of a study.

    Args:
        path: the study's folder, or the file.

    Raises:
        UserError: there is none, or it is not as it should be.
    """
    given = Path(path)
    file = given if given.name == FILE else given / FILE
    try:
        content = _make_plain(read_yaml(file))
    except (FileNotFoundError, NotADirectoryError):
        below = [str(found.parent) for found in sorted(given.rglob(FILE))]
        beside = [str(found.parent) for found in given.parent.glob(f"*/{FILE}")]
        meant = f"; name one of {join_or(below)}" if below else suggest(str(given), beside)
        raise UserError(
            f"{path}: expected a folder with a {FILE}, such as experiments/quickstart{meant}."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    if wrong := [*_find_problems(content)]:
        raise UserError("\n".join([f"{file}:", *wrong]))
    return Claim(file.parent, content)


def find_claims(folder: Path) -> list[Claim]:
    """Return the claims of all studies below a folder, by name. Raises as `read_claim` does."""
    return [read_claim(file) for file in sorted(folder.rglob(FILE))]


def _make_plain(value: Any) -> Any:
    """Return plain values with every text on one line and without control characters."""
    if isinstance(value, dict):
        return {_make_plain(key): _make_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(_make_plain, value)]
    return plain(value) if isinstance(value, str) else value


def _find_problems(content: Any) -> Iterator[str]:
    """Yield what is wrong in a claim, each as one sentence."""
    unknown = [*unknown_keys(content, Record)]
    for key, names in unknown:
        name = key.rpartition(".")[2]
        yield f"{key}: no such key{suggest(name, names) or f'; the keys there are {join_or(names)}'}"
    # A key that is misspelt is missing too, which would be said twice.
    if wrong := [] if unknown else [*misfits(content, Record)]:
        yield f"{', '.join(wrong) or 'the file'}: missing, or not of its type (see {__name__})"
    if unknown or wrong:
        return
    record: Record = content
    words = _split(record["command"])
    if words[:2] != ["python", "train.py"] or any(word.startswith("seed=") for word in words):
        yield f"command: expected python train.py … without seeds, found {record['command']}"
    seeds = record["seeds"]
    if not seeds or len({*seeds}) < len(seeds) or min(seeds) < 0:
        yield f"seeds: expected different whole numbers from 0, found {seeds}"
    for protocol in (record["protocol"], record["source"].get("protocol")):
        if protocol and protocol["selection"] not in (None, *SELECTIONS):
            yield f"selection: expected {join_or(SELECTIONS)} or null, found {protocol['selection']}"
    if any("published" in figure for figure in record["figures"]) and "protocol" not in record["source"]:
        yield "source: a published figure needs the protocol that it was found by"
    names = [figure["name"] for figure in record["figures"]]
    if not names or len({*names}) < len(names):
        yield f"figures: expected one or more with different names, found {names}"
    for figure in record["figures"]:
        yield from (f"figures: {figure['name']}: {problem}" for problem in _find_figure_problems(figure))


def _find_figure_problems(figure: Figure) -> Iterator[str]:
    mean, published = figure["mean"], figure.get("published")
    sd, n = figure.get("sd"), figure.get("n")
    if get_metric(figure) not in SPLITS.values():
        yield f"metric: expected {join_or([*SPLITS.values()])}, found {get_metric(figure)}"
    for key, value in (("mean", mean), ("published", published)):
        if value is not None and not 0 <= value <= 100:
            yield f"{key}: expected percent from 0 to 100, found {value}"
    if (n is None and mean is not None) or (n is not None and n < 1):
        yield f"n: expected the number of seeds that the mean is of, found {n}"
    elif (sd is None) == ((n or 1) > 1) or (sd or 0) < 0:
        yield f"sd: expected a deviation where n is 2 or more, and only there; found {sd} and n = {n}"
    if (mean is not None or published is not None) and (figure.get("tolerance") or 0) <= 0:
        yield "tolerance: expected points by which a new mean may differ"


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark without another
        return []


def get_metric(figure: Figure) -> str:
    """Return what a figure is an accuracy of: ``test/accuracy`` where nothing is said."""
    return figure.get("metric", SPLITS["test"])


def get_claimed(figure: Figure) -> Spread | None:
    """Return the figure that is claimed, as a fraction: ours, else the published one, else None.

    One whose number of runs is not known counts as of one.
    """
    mean = figure["mean"] if figure["mean"] is not None else figure.get("published")
    if mean is None:
        return None
    sd = figure.get("sd")
    return Spread(mean / 100, None if sd is None else sd / 100, figure.get("n") or 1)


def make_table(claims: Sequence[Claim], home: Path) -> str:
    """Return the table of measured figures in Markdown, of those claims that ask for a place in it.

    Args:
        home: the folder of the file that it is for, from which its links lead.
    """
    lines: list[tuple[str, ...]] = []
    for claim in claims:
        link = Path(os.path.relpath(claim.folder, home)).as_posix()
        for figure in claim.record["figures"]:
            if figure.get("result") and figure["mean"] is not None:
                sd = "" if figure.get("sd") is None else f" ± {figure['sd']:.2f}"
                shown = escape_markdown if " " in figure["name"] else code  # a recipe's name is code
                cells = (
                    f"[{shown(figure['name'])}]({link})",
                    escape_markdown(claim.record["data"]["label"]),
                    escape_markdown(claim.record["hardware"] or UNKNOWN),
                    describe_time(figure.get("seconds")),
                    f"{figure['mean']:.2f}{sd} % (n = {figure['n']})",
                )
                lines.append(cells)
    head, *rows = (f"| {' | '.join(line)} |" for line in (COLUMNS, *lines))
    return "\n".join([head, "|" + "---|" * len(COLUMNS), *rows])


def write_table(file: Path, claims: Sequence[Claim]) -> bool:
    """Write the table of results into a Markdown file, between its two markers; say whether that changed it.

    Raises:
        UserError: the file cannot be read or written, or has not the markers.
    """
    try:
        text = file.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise UserError(f"{file}: expected the lines {BEGIN} and {END}, between which the table goes.")
        new = f"{before}{BEGIN}\n{make_table(claims, file.parent)}\n{END}{after}"
        if new != text:
            write_atomic(file, new.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read or written: {error}.") from None
    return new != text


def describe_time(seconds: float | None) -> str:
    """Return ``1 h 5 min``, ``25 min 41 s`` or ``9 s``."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"
