"""The page in a real browser: it sorts, fits a phone, shows its figures and runs no code but its own."""

import html
import io
import json
import re
import subprocess
from typing import Any

import pytest
from rich.console import Console

from tests.browser import CHROMIUM, FLAGS
from tests.compare.folders import make_run
from vitlab.compare import compare

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

# What a reader would do, and what would then be seen.
READER = """<script>
const names = () => [...document.querySelectorAll("table.sortable tbody th")].map(head => head.textContent);
const heads = [...document.querySelectorAll("table.sortable thead th")];
const press = label => {
  const head = heads.find(head => head.textContent.startsWith(label));
  head.querySelector("button").click();
  return [names(), head.getAttribute("aria-sort"), heads.filter(h => h.ariaSort !== "none").length];
};
addEventListener("load", () => {
  const seen = {
    first: names(),
    val: press("val"), val_again: press("val"), test: press("test"), parameters: press("parameters"),
    group: press("group"), group_again: press("group"),
    unknown: press("val"),
    hacked: window.hacked === true,
    figures: [...document.images].every(image => image.naturalWidth > 0), number: document.images.length,
    wide: document.documentElement.scrollWidth > innerWidth,
  };
  document.title = JSON.stringify(seen);
});
</script></body>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("browser")
    for depth, val, test in ((2, 0.5, 0.7), (10, 0.6, 0.5), (4, 0.7, 0.6)):
        name = f"<img src=x onerror=hacked=true>{depth}"
        make_run(folder / "s" / name, f"model.depth={depth}", val=val, test=test)
    failed = {"status": "failed", "error": "<script>hacked=true</script>"}
    make_run(folder / "s" / "none", "model.depth=6", summary=failed)
    compare([folder / "s"], [], None, Console(file=io.StringIO()))
    page = folder / "s" / "report" / "report.html"
    page.write_text(page.read_text().replace("</body>", READER))
    assert CHROMIUM
    command = [CHROMIUM, *FLAGS, "--window-size=390,800", f"--user-data-dir={folder / 'profile'}"]
    command += ["--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr
    return json.loads(html.unescape(title[1]))


def test_it_sorts_by_every_column_and_says_how(seen: dict[str, Any]) -> None:
    best_first = ["depth=4", "depth=10", "depth=2", "depth=6"]
    assert seen["first"] == best_first
    # The table comes sorted by it, so pressing it turns the order; what is not known stays last.
    assert seen["val"] == [["depth=2", "depth=10", "depth=4", "depth=6"], "ascending", 1]
    assert seen["val_again"] == [best_first, "descending", 1]
    assert seen["test"] == [best_first, "descending", 1], "one alone is shown, and it is the best"
    assert seen["parameters"] == [["depth=10", "depth=4", "depth=2", "depth=6"], "descending", 1]
    by_number = ["depth=2", "depth=4", "depth=6", "depth=10"]
    assert seen["group"] == [by_number, "ascending", 1]
    assert seen["group_again"][1:] == ["descending", 1]
    assert seen["unknown"] == [best_first, "descending", 1]


def test_it_fits_a_phone_and_shows_its_figures(seen: dict[str, Any]) -> None:
    assert not seen["wide"], "only the tables scroll sideways"
    assert seen["figures"]
    assert seen["number"] == 4


def test_names_run_no_code(seen: dict[str, Any]) -> None:
    assert not seen["hacked"]
