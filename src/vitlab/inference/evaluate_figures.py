"""The figures of an evaluation that a run's own test does not have."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vitlab.core.plotting import GREY, TRAIN, VAL, new_figure, style_axes
from vitlab.inference.calibration import Reliability
from vitlab.inference.scores import wilson


def plot_reliability(curves: Mapping[str, Reliability], confidence: np.ndarray, title: str) -> Figure:
    """Draw accuracy against confidence, and below it how many images have which confidence.

    Args:
        curves: name → bins; each bin is a point with its 95 % interval. The first is of the network as it is.
        confidence: (N,) of the network as it is.
    """
    figure = new_figure(width=5.2, height=6.6)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="as often right as it says")
    for (name, found), colour in zip(curves.items(), (TRAIN, VAL), strict=False):
        right = np.rint(found.accuracy * found.count).astype(int)
        low, high = np.array(
            [wilson(*bin) for bin in zip(right.tolist(), found.count.tolist(), strict=True)]
        ).T
        bars = np.abs([found.accuracy - low, high - found.accuracy])
        label = f"{name}: ECE {found.ece:.2%}"
        style = {"fmt": "o-", "markersize": 4, "linewidth": 1, "elinewidth": 1}
        upper.errorbar(found.confidence, found.accuracy, bars, color=colour, label=label, **style)
    upper.set(ylabel="accuracy of the bin", xlim=(0, 1.02), ylim=(0, 1.02))
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.hist(
        confidence,
        bins=np.linspace(0, 1, 21),
        color=TRAIN,
        weights=np.full(len(confidence), 1 / len(confidence)),
    )
    lower.yaxis.set_major_formatter("{x:.0%}")
    lower.set(xlabel="confidence (largest probability)", ylabel="images")
    for axes in (upper, lower):
        style_axes(axes)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_robustness(accuracy: Mapping[str, Sequence[float]], clean: float, title: str) -> Figure:
    """Draw accuracy against the strength of corruptions.

    Args:
        accuracy: corruption → accuracy at strengths 1, 2, …
        clean: without any.
    """
    figure = new_figure(width=6.6, height=4.2)
    axes = figure.subplots()
    strengths = range(1, 1 + len(next(iter(accuracy.values()))))
    axes.axhline(clean, color=GREY, linestyle="--", label=f"clean: {clean:.1%}")
    for name, values in accuracy.items():
        axes.plot(strengths, values, marker="o", markersize=3, linewidth=1, label=name)
    mean = np.mean([*accuracy.values()], axis=0)
    axes.plot(strengths, mean, color="black", linewidth=3, label=f"mean: {mean.mean():.1%}")
    axes.set(xlabel="strength", ylabel="accuracy", xticks=strengths)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter("{x:.0%}")
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(title, fontsize=10)
    return figure
