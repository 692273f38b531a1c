"""The table of a layer."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(console: Console, title: str, rows: Mapping[str, Any]) -> None:
    """Print images/s and what the first contender reaches of each other's; median, and min to max."""
    first = next(iter(rows))
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold cyan")
    table.add_column("contender", no_wrap=True)
    table.add_column("images/s", justify="right", no_wrap=True)
    table.add_column(f"{first} / it", justify="right", no_wrap=True)
    shares = any(row["mfu"] is not None for row in rows.values())
    if shares:
        table.add_column("of peak", justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name, row in rows.items():
        cells = [name, spread(row["images_per_second"], ",.0f")]
        cells.append(spread(row["ratio"], ".2f") if row["ratio"] else "")
        if shares:
            cells.append("" if row["mfu"] is None else f"{row['mfu']:.1%}")
        table.add_row(*cells, row["note"])
    console.print()
    console.print(table, soft_wrap=False)


def spread(values: Mapping[str, float], form: str) -> str:
    """Return ``"median (min–max)"``."""
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"
