"""Run folders → groups over seeds → statistics → tables, figures and one page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from vitlab.compare.groups import SPLITS, Comparison, make_comparison
from vitlab.compare.read import read_runs
from vitlab.compare.table import leaderboard_csv, leaderboard_md, runs_csv, show
from vitlab.compare.verdict import Finding, find
from vitlab.core.console import make_console, plain, say
from vitlab.core.errors import UserError
from vitlab.core.files import check_links, json_text, write_atomic
from vitlab.core.run_folder import RunFolder

MARGIN = 0.5  # points of accuracy within which two groups count as equal


def compare(
    folders: Sequence[str | Path],
    baseline: Sequence[str],
    out: str | Path | None,
    console: Console,
    *,
    margin: float = MARGIN,
    detect: float = MARGIN,
    all_tests: bool = False,
    as_json: bool = False,
) -> None:
    """Compare the runs below ``folders``; print the verdict and the table, and write the report.

    Args:
        baseline: ``key=value`` of exactly one group, or its name; empty for the group of the first run.
        out: where to write; None for ``report`` in the folder, or outputs/comparison for several.
        margin: points of accuracy within which two groups count as equal.
        detect: points for which the seeds that are needed are counted.
        all_tests: show every group's test accuracy.
        as_json: print one JSON object in place of the table.

    Raises:
        UserError: there are no runs, the baseline is not one group, a number is none that can be used, or
            ``out`` cannot be written to.
    """
    for name, points in (("margin", margin), ("detect", detect)):
        if not 0 < points < 100:
            raise UserError(
                f"--{name} {points:g}: expected points of accuracy between 0 and 100, such as 0.5."
            )
    title = " and ".join(dict.fromkeys(plain(Path(f).resolve().name) for f in folders))
    comparison = make_comparison(read_runs(folders), baseline, title, all_tests=all_tests)
    finding = find(comparison, margin / 100, detect / 100)
    if not as_json:
        show(console, comparison, finding)
    default = Path(folders[0], "report") if len(folders) == 1 else "outputs/comparison"
    target = Path(default if out is None else out)
    if out is None and len(folders) == 1:
        check_links(target, Path(folders[0]))
    try:
        target.mkdir(parents=True, exist_ok=True)
        write(comparison, finding, target)
    except OSError as error:
        raise UserError(
            f"--out {target} cannot be written to: {error.strerror}. Give another folder."
        ) from error
    if as_json:
        told = {"title": title, **asdict(finding), "report": str(target)}
        print(json_text(told))
        return
    console.print(
        f"\nreport  {target / 'report.html'}, leaderboard.md, leaderboard.csv, runs.csv, figures",
        markup=False,
    )


def show_leaderboard(folder: Path) -> None:
    """Print the verdict and the table of a sweep that has ended."""
    comparison = make_comparison(read_runs([folder]), [], folder.name)
    place = RunFolder(folder)
    say(f"{place}, best {SPLITS[comparison.split]} first")
    show(make_console(), comparison, find(comparison, MARGIN / 100, MARGIN / 100))
    say(f"more: python compare.py {place}")


def write(comparison: Comparison, finding: Finding, out: Path) -> None:
    """Write tables, figures and page into ``out``; figures that only an earlier one had are removed."""
    from vitlab.compare.figures import NAMES, draw  # matplotlib takes half a second: after the table is shown
    from vitlab.compare.page import page

    pictures = draw(comparison)
    files = {
        "leaderboard.csv": leaderboard_csv(comparison, finding).encode(),
        "leaderboard.md": leaderboard_md(comparison, finding).encode(),
        "runs.csv": runs_csv(comparison).encode(),
        "report.html": page(comparison, finding, pictures, out).encode(),
        **{f"{picture.name}.png": picture.png for picture in pictures},
    }
    for name, data in files.items():
        write_atomic(out / name, data)
    for name in {f"{name}.png" for name in NAMES} - files.keys():
        (out / name).unlink(missing_ok=True)
