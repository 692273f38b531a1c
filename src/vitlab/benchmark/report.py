"""The table of a layer, and the figure of them all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vitlab.core.plotting import GREY, TRAIN, hide_spines, new_figure


def show_table(console: Console, title: str, rows: Mapping[str, Any]) -> None:
    """Print images/s and what the first candidate reaches of each other's; median, and min to max.

    Where each step was timed, also milliseconds: the median and the 99th percentile.
    """
    first = next(iter(rows))
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold cyan")
    shares = any(row["mfu"] is not None for row in rows.values())
    latencies = all("latency_ms" in row for row in rows.values())
    table.add_column("candidate", no_wrap=True)
    for head in ("images/s", f"{first} / it", *["ms (p99)"] * latencies, *["of peak"] * shares):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name, row in rows.items():
        cells = [name, describe_spread(row["images_per_second"], ",.0f")]
        cells.append(describe_spread(row["ratio"], ".2f") if row["ratio"] else "")
        if latencies:
            cells.append("{median:,.2f} ({p99:,.2f})".format(**row["latency_ms"]))
        if shares:
            cells.append("" if row["mfu"] is None else f"{row['mfu']:.1%}")
        table.add_row(*cells, row["note"])
    console.print()
    console.print(table, soft_wrap=False)


def describe_spread(values: Mapping[str, float], form: str) -> str:
    """Return ``"median (min–max)"``."""
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"


def plot_throughput(layers: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draw images per second of several candidates as bars: the median, whiskers from min to max.

    Args:
        layers: title of a panel → name → {"images_per_second": {"median", "min", "max"}, "ratio": the
            same or None}. A bar says its median, and how many times that the first one reaches.
        title: says what was measured on what.
    """
    counts = [len(rows) for rows in layers.values()]
    figure = new_figure(width=9, height=0.8 + sum(0.75 + 0.42 * count for count in counts))
    panels = figure.subplots(len(layers), 1, squeeze=False, height_ratios=[count + 0.6 for count in counts])
    for axes, (name, rows) in zip(panels.ravel(), layers.items(), strict=True):
        rates = [row["images_per_second"] for row in rows.values()]
        low, median, high = np.array([[rate[key] for rate in rates] for key in ("min", "median", "max")])
        whiskers = [median - low, high - median]
        colours = [TRAIN] + [GREY] * (len(rates) - 1)
        axes.barh(list(rows), median, xerr=whiskers, color=colours, capsize=3, error_kw={"linewidth": 1})
        for place, (row, rate) in enumerate(zip(rows.values(), rates, strict=True)):
            text = f"  {rate['median']:,.0f}"
            if row["ratio"]:
                text += f"   ({next(iter(rows))}: {row['ratio']['median']:.2f} times)"
            axes.text(rate["max"], place, text, va="center", fontsize=9)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlim(0, 1.45 * max(high))  # room for the words
        axes.invert_yaxis()
        hide_spines(axes)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=9)
    panels[-1, 0].set_xlabel("images per second")
    figure.suptitle(title, fontsize=10)
    return figure
