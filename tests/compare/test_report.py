"""What compare.py writes: tables, figures, and a page that stands alone."""

import csv
import io
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tests.compare.folders import make_grid, make_run
from tests.conftest import ROOT
from vitlab.compare import compare, figures
from vitlab.compare.groups import make_comparison
from vitlab.compare.read import read_runs
from vitlab.compare.table import SHOWN_COSTS


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, and the text of table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are nested"

    def handle_data(self, data: str) -> None:
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(study: Path, *baseline: str, out: Path | None = None, width: int = 120) -> tuple[str, Path]:
    """Compare, and return what was printed and where the report lies."""
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True)
    compare([study], baseline, out, console)
    return console.file.getvalue(), out or study / "report"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep that went as sweeps go, its report, and what was printed."""
    study = tmp_path_factory.mktemp("outputs") / "grid"
    make_grid(study, patches=(2, 4), depths=(4, 6), seeds=(1, 2))
    make_run(study / "failed", "model.patch_size=2", "model.depth=4", "seed=3", status="failed", val=0.9)
    make_run(study / "<script>alert(1)<script>", "model.patch_size=8", "model.depth=4", status="interrupted")
    (study / "torn").mkdir()
    (study / "torn" / "config.yaml").write_text("a: [")
    printed, _ = report(study, "patch_size=4", "depth=4", width=140)
    return study / "report", printed


def test_the_screen_shows_the_table_and_what_is_not_in_it(grid: tuple[Path, str]) -> None:
    _, printed = grid
    lines = printed.splitlines()
    groups = [line for line in lines if "patch_size=" in line and "│" in line]
    assert "patch_size=2 depth=6" in groups[0], "the best is first"
    assert "baseline" in next(line for line in groups if "patch_size=4 depth=4" in line)
    assert "2 of 3" in next(line for line in groups if "patch_size=2 depth=4" in line)
    assert "11 runs: 8 finished, 1 interrupted, 1 failed, 1 broken" in printed
    assert "torn  config.yaml: cannot be read (line 2: " in printed
    assert "<script>alert(1)<script>  after epoch 10 of 10" in printed


@pytest.mark.parametrize("baseline", [(), ("patch_size=4", "depth=4")])
@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_its_window(tmp_path: Path, width: int, baseline: tuple[str, ...]) -> None:
    make_grid(tmp_path / "s", patches=(2, 4), depths=(4, 6), seeds=(1, 2))
    printed, _ = report(tmp_path / "s", *baseline, width=width)
    table = [line for line in printed.splitlines() if line[:1] in "┏┃┡│└" and line]
    assert all(line[-1] in "┓┃┩│┘" and len(line) <= width for line in table), printed
    text = " ".join(" ".join(table).split())
    note = next((line for line in printed.splitlines() if "too narrow a window" in line), "")
    for name in ("parameters", "FLOPs", "images/s"):
        assert (name in text) != (name in note), printed
    assert width < 140 or not note
    for number in ("±", "patch_size=2", "patch_size=4", "depth=4", "depth=6"):
        assert number in text


def test_a_hundred_groups_leave_the_best_on_the_screen(tmp_path: Path) -> None:
    for place in range(60):
        lr = f"optimizer.lr={(place + 1) * 1e-4:g}"
        make_run(tmp_path / "s" / f"{place}-1", lr, "seed=1", val=0.9 - place / 100)
        make_run(tmp_path / "s" / f"{place}-2", lr, "seed=2", status="failed")
    printed, folder = report(tmp_path / "s", "optimizer.lr=0.006")
    shown = [line.split()[1] for line in printed.splitlines() if line.startswith("│ lr=")]
    assert shown == [f"lr={(place + 1) * 1e-4:g}" for place in (*range(40), 59)], "the best, and the baseline"
    assert "and 19 more groups" in printed
    assert printed.count("note:") == 1, "60 groups of which a seed failed are one note"
    assert "60 times the mean is of what finished" in printed
    assert (folder / "leaderboard.md").read_text().count("| `lr=") == 60


def test_the_leaderboard_has_the_numbers(grid: tuple[Path, str]) -> None:
    folder, _ = grid
    rows = [*csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text()))]
    runs = [*csv.DictReader(io.StringIO((folder / "runs.csv").read_text()))]
    assert len(rows) == 5
    assert len(runs) == 11
    finished = [run for run in runs if run["state"] == "finished"]
    for row in rows:
        values = [float(run["val/accuracy"]) for run in finished if run["group"] == row["group"]]
        if values:
            assert float(row["val_accuracy_mean"]) == pytest.approx(sum(values) / 2)
            assert float(row["val_accuracy_std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert int(row["val_accuracy_n"]) == len(values)
    assert float(rows[0]["val_difference_mean"]) > 0.04
    assert (rows[0]["patch_size"], rows[0]["depth"], rows[0]["parameters"]) == ("2", "6", "1771776")
    markdown = (folder / "leaderboard.md").read_text()
    assert "\n| group | verdict | seeds | val accuracy, % |" in markdown
    best = rows[0]
    mean, std = (100 * float(best[f"val_accuracy_{what}"]) for what in ("mean", "std"))
    assert f"| `{best['group']}` | too few seeds | 2 | {mean:.2f} ± {std:.2f} |" in markdown
    assert "| `patch_size=2 depth=4` | too few seeds | 2 of 3 |" in markdown
    assert "- 11 runs: 8 finished, 1 interrupted, 1 failed, 1 broken." in markdown


def test_the_page_stands_alone_and_is_accessible(grid: tuple[Path, str]) -> None:
    folder, _ = grid
    text = (folder / "report.html").read_text()
    found = Page(text)
    assert found.open == []
    assert not found.all("link")
    assert len(images := found.all("img")) == 6
    assert all(i["alt"] and (i["src"] or "").startswith("data:image/png;base64,") for i in images)
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    assert len(text) < 1_000_000
    assert all(head.get("scope") in ("row", "col") for head in found.all("th"))
    assert [h["aria-sort"] for h in found.all("th") if "aria-sort" in h] == ["descending"]
    assert found.rows[1][:3] == ["patch_size=2 depth=6", "too few seeds", "2"]


def test_a_name_that_is_code_is_harmless(grid: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = grid
    found = Page((folder / "report.html").read_text())
    assert len(found.all("script")) == 1
    reason = "after epoch 10 of 10, best val accuracy so far 60.00 %"
    assert ["<script>alert(1)<script>", "interrupted", reason] in found.rows
    for word in ("mean", '" onclick="x'):
        make_run(tmp_path / "s" / str(len(word)), f"model.pool='{word}'")
    _, out = report(tmp_path / "s")
    quoted = Page((out / "report.html").read_text())
    assert not any("onclick" in attributes for _, attributes in quoted.tags)
    assert 'pool=" onclick="x' in [head.get("data-value") for head in quoted.all("th")]


def test_the_only_epoch_of_a_curve_is_marked_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "s" / "a", epochs=1)
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "_picture", lambda *words: kept.append(words[-1]))
    figures.draw(make_comparison(read_runs([tmp_path / "s"]), [], "s"))
    axes = kept[0].axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_links_lead_to_the_runs_and_figures_are_files_too(grid: tuple[Path, str]) -> None:
    folder, _ = grid
    links = [unquote(link["href"] or "") for link in Page((folder / "report.html").read_text()).all("a")]
    assert len(links) > 11
    assert all((folder / link).is_dir() and not link.startswith("/") for link in links)
    assert {path.stem for path in folder.glob("*.png")} == {*figures.NAMES}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_differences_are_drawn_where_there_is_more_than_one_seed(
    grid: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = grid
    alts = [image["alt"] or "" for image in Page((folder / "report.html").read_text()).all("img")]
    assert any(alt.startswith("Chart of 3 paired differences to patch_size=4 depth=4") for alt in alts)
    make_grid(tmp_path / "s", patches=(2, 4), depths=(4,), seeds=(1,))
    _, out = report(tmp_path / "s")
    assert not (out / "differences.png").exists()
    report(tmp_path / "s", "patch_size=4")
    assert (out / "differences.png").exists(), "somebody asked"


def test_the_same_runs_make_the_same_files(grid: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = grid
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report(folder.parent, "patch_size=4", "depth=4")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_elsewhere_the_page_names_runs_without_links_or_paths(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs" / "s" / "a")
    _, out = report(tmp_path / "outputs" / "s", out=tmp_path / "experiments" / "s")
    for path in out.glob("*.[chm]*"):
        assert str(tmp_path) not in path.read_text(), path
    found = Page((out / "report.html").read_text())
    assert not found.all("a")
    assert any(row[0] == "a" for row in found.rows if row)


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    make_grid(tmp_path / "s", patches=(2, 4), depths=(4, 6), seeds=(1,))
    _, out = report(tmp_path / "s")
    (out / "notes.md").write_text("mine")
    for folder in (tmp_path / "s").glob("patch_size-2*"):
        (folder / "config.yaml").write_text("")
    report(tmp_path / "s")
    assert not (out / "heatmap.png").exists()
    assert (out / "curves.png").exists()
    assert (out / "notes.md").exists()


def by_depth(study: Path, **options: Any) -> None:
    for depth in (1, 2):
        make_run(study / str(depth), f"model.depth={depth}", **options)


def by_rate(study: Path, **options: Any) -> None:
    for rate in (1e-3, 1e-2):
        make_run(study / str(rate), f"optimizer.lr={rate}", val=rate, **options)


def half_a_grid(study: Path) -> None:
    for patch, depth in ((2, 4), (4, 6), (8, 4)):
        make_run(study / f"{patch}{depth}", f"model.patch_size={patch}", f"model.depth={depth}")


def unreadable(study: Path) -> None:
    (study / "a").mkdir(parents=True)
    (study / "a" / "config.yaml").write_text("[")


# What there is, and which of the figures can then be drawn.
COSTS = {f"accuracy_{key}" for key in SHOWN_COSTS}
CASES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "one run": (lambda s: make_run(s / "a"), {"curves"}),
    "no run finished": (lambda s: make_run(s / "a", status="failed", epochs=0, val=None, test=None), set()),
    "nothing readable": (unreadable, set()),
    "never validated": (lambda s: by_depth(s, val=None), set()),
    "never tested": (lambda s: by_depth(s, test=None), {"curves"} | COSTS),
    "no cost": (lambda s: by_depth(s, summary={"model": 0, "train": 0}), {"curves"}),
    "one epoch": (lambda s: by_depth(s, epochs=1), {"curves"} | COSTS),
    "one cost for all": (by_rate, {"curves"}),
    "words": (
        lambda s: [make_run(s / w, f"model.pool='{w}'") for w in ("$x$ |", "[red]", "<b>")],
        {"curves"},
    ),
    "long": (lambda s: [make_run(s / w, f"model.pool={w * 200}") for w in "ab"], {"curves"}),
    "half a grid": (half_a_grid, {"curves", "heatmap"} | COSTS),
    "seeds of other lengths": (
        lambda s: [make_run(s / str(e), f"seed={e}", epochs=e) for e in (3, 5)],
        {"curves"},
    ),
}


@pytest.mark.parametrize(("make", "drawn"), CASES.values(), ids=CASES)
def test_there_is_a_report_of_anything_without_empty_figures(
    tmp_path: Path, make: Callable[[Path], object], drawn: set[str], recwarn: pytest.WarningsRecorder
) -> None:
    make(tmp_path / "s")
    printed, out = report(tmp_path / "s", width=60)
    assert "report" in printed
    assert Page((out / "report.html").read_text()).open == []
    assert {path.stem for path in out.glob("*.png")} == drawn
    assert not [str(w.message) for w in recwarn]


def test_one_seed_has_no_spread_and_one_pair_no_interval_and_both_say_so(tmp_path: Path) -> None:
    for depth in (1, 2):
        make_run(tmp_path / "s" / str(depth), f"model.depth={depth}", val=0.5 + 0.01 * depth)
    printed, out = report(tmp_path / "s", "depth=1")
    for text in (printed, (out / "leaderboard.md").read_text()):
        assert "52.00 (n = 1)" in text
    assert "+1.00 [n/a: one pair]" in printed


def verb(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "compare.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_verb_compares_studies_and_says_mistakes_in_one_line(tmp_path: Path) -> None:
    for study in ("one", "two"):
        make_run(tmp_path / "outputs" / study / "a", f"model.depth={len(study) + (study == 'two')}")
    done = verb("outputs/one", "outputs/two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "one and two: 2 runs: 2 finished" in done.stdout
    text = (tmp_path / "outputs" / "comparison" / "report.html").read_text()
    assert "../one/a/" in text
    wrong = verb("outputs/tow", cwd=tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.strip().endswith("(did you mean 'outputs/two'?).")
    assert wrong.stderr.count("\n") == 1
    odd = verb("outputs/one", "--basline", "depth=3", cwd=tmp_path)
    assert (odd.returncode, odd.stderr.startswith("error: ")) == (1, True)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, compare, vitlab.compare.figures, vitlab.compare.page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_five_hundred_runs_take_seconds(tmp_path: Path) -> None:
    make_grid(tmp_path / "s", patches=(1, 2, 4, 8, 16), depths=tuple(range(1, 21)), seeds=(1, 2, 3, 4, 5))
    started = time.process_time()
    printed, _ = report(tmp_path / "s")
    assert "500 runs: 500 finished" in printed
    assert time.process_time() - started < 20
