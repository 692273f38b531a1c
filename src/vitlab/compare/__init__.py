"""Run folders → groups over seeds → statistics → tables, figures and one page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from vitlab.compare.groups import SPLITS, Comparison, make_comparison
from vitlab.compare.read import read_runs
from vitlab.compare.table import fraction, leaderboard_csv, leaderboard_md, runs_csv, show
from vitlab.core.console import make_console, plain, say
from vitlab.core.errors import UserError
from vitlab.core.files import check_links, write_atomic
from vitlab.core.run_folder import RunFolder

MOST_ROWS = 20  # of a sweep's leaderboard


def compare(
    folders: Sequence[str | Path], baseline: Sequence[str], out: str | Path | None, console: Console
) -> None:
    """Compare the runs below ``folders``; print the table and write the report.

    Args:
        baseline: ``key=value`` of exactly one group, or its name, for the differences; empty for none.
        out: where to write; None for ``report`` in the folder, or outputs/comparison for several.

    Raises:
        UserError: there are no runs, the baseline is not one group, or ``out`` cannot be written to.
    """
    title = " and ".join(dict.fromkeys(plain(Path(f).resolve().name) for f in folders))
    comparison = make_comparison(read_runs(folders), baseline, title)
    show(console, comparison)
    default = Path(folders[0], "report") if len(folders) == 1 else "outputs/comparison"
    target = Path(default if out is None else out)
    if out is None and len(folders) == 1:
        check_links(target, Path(folders[0]))
    try:
        target.mkdir(parents=True, exist_ok=True)
        write(comparison, target)
    except OSError as error:
        raise UserError(
            f"--out {target} cannot be written to: {error.strerror}. Give another folder."
        ) from error
    console.print(
        f"\nreport  {target / 'report.html'}, leaderboard.md, leaderboard.csv, runs.csv, figures",
        markup=False,
    )


def show_leaderboard(folder: Path) -> None:
    """Print the finished runs of a sweep, the best on the hold-out first, a row for each combination."""
    comparison = make_comparison(read_runs([folder]), [], folder.name)
    groups = [group for group in comparison.groups if group.spread("val")]
    table = Table("combination", *(Column(name, justify="right") for name in ("runs", *SPLITS.values())))
    for group in groups[:MOST_ROWS]:
        accuracies = (fraction(group.spread(split)) for split in SPLITS)
        table.add_row(group.name, str(len(group.finished)), *accuracies)
    if len(groups) > MOST_ROWS:
        table.caption = f"and {len(groups) - MOST_ROWS} more"
    place = RunFolder(folder)
    say(f"{place}, best {SPLITS['val']} first")  # no title: the table would break it to its own width
    make_console().print(table, soft_wrap=False)
    say(f"more: python compare.py {place}")


def write(comparison: Comparison, out: Path) -> None:
    """Write tables, figures and page into ``out``; figures that only an earlier one had are removed."""
    from vitlab.compare.figures import NAMES, draw  # matplotlib takes half a second: after the table is shown
    from vitlab.compare.page import page

    pictures = draw(comparison)
    files = {
        "leaderboard.csv": leaderboard_csv(comparison).encode(),
        "leaderboard.md": leaderboard_md(comparison).encode(),
        "runs.csv": runs_csv(comparison).encode(),
        "report.html": page(comparison, pictures, out).encode(),
        **{f"{picture.name}.png": picture.png for picture in pictures},
    }
    for name, data in files.items():
        write_atomic(out / name, data)
    for name in {f"{name}.png" for name in NAMES} - files.keys():
        (out / name).unlink(missing_ok=True)
