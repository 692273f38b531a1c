"""Alarms: what in a run's diagnostics looks like a fault, said in one line.

The limits are from healthy runs of ours and from broken ones, see experiments/diagnostics.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypedDict

Rows = Sequence[Mapping[str, Any]]

UNIFORM = 0.98  # entropy above which attention tells no tokens apart
COLLAPSED = 0.05  # entropy under which a head sees one token
JUMPS = 4.0  # times a norm grows from one measurement to the next
FALLS, SHRUNK = 3, 0.5  # measurements in a row in which a norm falls, and what is left of its largest
DEAD = 0.2  # share of units that are near zero at every token
CLIPPED = 10.0  # times the mean gradient norm, after warmup, is what it is clipped to


NORMS = {"residual_norm": "residual stream", "feature_norm": "feature"}


class Alarm(TypedDict):
    """An entry of ``alarms`` in summary.json.

    Attributes:
        kind: of fault.
        epoch: when it was first seen.
        layer: where; empty for the whole network.
        value: what was measured.
        message: all of it, and what to try.
    """

    kind: str
    epoch: int
    layer: str
    value: float
    message: str


@dataclass
class Alarms:
    """The alarms of a run, each kind once a layer, when it was first seen.

    Attributes:
        warmup_epochs: how long the rate rises: before its end little has been learned.
        clip: the norm that gradients are clipped to; None where they are not.
        found: by kind and layer.
        norms: by measure and layer, the largest so far and then the last ones.
    """

    warmup_epochs: float
    clip: float | None = None
    found: dict[tuple[str, str], Alarm] = field(default_factory=dict)
    norms: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def look(self, rows: Rows) -> list[Alarm]:
        """Return the alarms that are new with further rows of diagnostics.csv, of whole measurements."""
        warmup, known = self.warmup_epochs, {*self.found}
        seen = (*_uniform(rows, warmup), *_single(rows, warmup, self.clip), *_norms(rows, self.norms))
        for alarm in sorted(seen, key=lambda alarm: alarm["epoch"]):
            self.found.setdefault((alarm["kind"], alarm["layer"]), alarm)
        return [alarm for key, alarm in self.found.items() if key not in known]


def _uniform(rows: Rows, warmup_epochs: float) -> Iterator[Alarm]:
    """Yield the epochs at which no head of any layer tells tokens apart."""
    least: dict[int, float] = {}
    for row in rows:
        if row["measure"] == "entropy" and row["epoch"] > warmup_epochs:
            least[row["epoch"]] = min(row["value"], least.get(row["epoch"], 1.0))
    for epoch, value in least.items():
        if value > UNIFORM:
            reason = (
                f"attention is uniform in all layers: the lowest entropy of a head is {value:.3f} of the "
                f"largest possible, and under {UNIFORM} is usual after warmup. Tokens are only averaged: try "
                "model.position=learnable, or another optimizer.lr"
            )
            yield _alarm("uniform attention", {"epoch": epoch, "layer": "", "value": value}, reason)


def _single(rows: Rows, warmup_epochs: float, clip: float | None) -> Iterator[Alarm]:
    """Yield what is seen in one value alone."""
    for row in rows:
        measure, epoch, value = row["measure"], row["epoch"], row["value"]
        if measure == "entropy" and epoch and value < COLLAPSED:
            reason = (
                f"attention has collapsed: a head's entropy is {value:.3f} of the largest possible, and over "
                f"{COLLAPSED} is usual. Each token sees one other: lower optimizer.lr, lengthen the warmup, "
                "or try model.attention.qk_norm=true"
            )
            yield _alarm("entropy collapse", row, reason)
        if measure == "dead" and epoch and value > DEAD:
            reason = (
                f"{value:.0%} of the MLP's units are near zero at every token of every image, and under "
                f"{DEAD:.0%} is usual. Lower optimizer.lr or optimizer.weight_decay"
            )
            yield _alarm("dead units", row, reason)
        if measure == "gradient_norm" and epoch > max(warmup_epochs, 1) and clip and value > CLIPPED * clip:
            reason = (
                f"most steps are clipped, and hard: the mean gradient norm is {value:.3g} and is clipped to "
                f"{clip:g}; under {CLIPPED:g} times that is usual after warmup. Lower optimizer.lr, or "
                "lengthen the warmup"
            )
            yield _alarm("clipped steps", row, reason)


def _norms(rows: Rows, norms: dict[tuple[str, str], list[float]]) -> Iterator[Alarm]:
    """Yield norms that jump from one measurement to the next, or fall steadily; see `Alarms.norms`."""
    for row in rows:
        if row["measure"] not in NORMS or not row["epoch"]:  # the first epochs leave the random start
            continue
        name, key, new = NORMS[row["measure"]], (row["measure"], row["layer"]), row["value"]
        largest, *last = norms.get(key, [new])
        if last and new > JUMPS * last[-1]:
            reason = (
                f"the norm of the {name} rose from {last[-1]:.3g} to {new:.3g}, and less than {JUMPS:g} "
                "times from one measurement to the next is usual. Lower optimizer.lr, or lengthen the warmup"
            )
            yield _alarm(f"{name} jumps", row, reason)
        largest, last = max(largest, new), [*last[-FALLS:], new]
        norms[key] = [largest, *last]
        falls = len(last) > FALLS and all(b < a for a, b in pairwise(last))
        if falls and new < SHRUNK * largest:
            reason = (
                f"the norm of the {name} has fallen {FALLS} times in a row, to {new:.3g} from at most "
                f"{largest:.3g}; it usually grows or stays. Lower optimizer.weight_decay"
            )
            yield _alarm(f"{name} falls", row, reason)


def _alarm(kind: str, row: Mapping[str, Any], reason: str) -> Alarm:
    epoch, layer = row["epoch"], row["layer"]
    place = f"{layer}, epoch {epoch}" if layer else f"epoch {epoch}"
    return Alarm(kind=kind, epoch=epoch, layer=layer, value=row["value"], message=f"{place}: {reason}.")
