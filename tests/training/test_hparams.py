"""TensorBoard's HParams tab in a real browser: every run of a sweep, what was swept, and what came of it."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Page, opened
from tests.conftest import TINY, summary, verb
from vitlab.training.trackers.tracker import METRICS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]

# The table, wherever in TensorBoard's shadow trees it is: its headings and its rows, as they are read.
TABLE = """(() => {
  const find = (root, name) => {
    for (const node of root.querySelectorAll("*")) {
      const found = node.localName === name ? node : node.shadowRoot && find(node.shadowRoot, name);
      if (found) return found;
    }
    return null;
  };
  const grid = find(document, "vaadin-grid");
  if (!grid) return null;
  const text = cell => [...cell.querySelectorAll("slot")].flatMap(slot => slot.assignedNodes())
    .map(node => node.textContent.trim()).join(" ");
  const rows = part => [...grid.shadowRoot.querySelectorAll(`${part} tr`)].filter(row => !row.hidden)
    .map(row => [...row.children].map(text));
  const body = rows("tbody").filter(row => row.some(Boolean));
  return body.length >= RUNS ? {head: rows("thead"), body} : null;
})()"""


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve a folder as ``tensorboard --logdir`` does; yield the address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", "0", "--reload_interval", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr
            said = []
            for line in process.stderr:
                said.append(line)
                if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            assert address, "".join(said)
            yield address[0]
        finally:
            process.terminate()


def read_table(page: Page, address: str, runs: int) -> dict[str, Any] | None:
    """Return headings and rows, when there are so many; TensorBoard may still be reading at first."""
    for _ in range(6):
        page.open(f"{address}/#hparams")
        if table := page.wait(TABLE.replace("RUNS", str(runs)), 20):
            return table
    return None


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hparams")
    typed = [o for o in TINY if o.partition("=")[0] not in ("logger", "model.depth", "trainer.max_epochs")]
    typed += ["trainer.max_epochs=4", "model.depth=1,2", "seed=1,2"]
    ended = verb("-m", *typed, f"hydra.sweep.dir={folder}/outputs/study/day")
    assert ended.returncode == 0, ended.stderr
    return folder / "outputs"


def test_every_run_has_a_row_with_what_was_swept_and_its_metrics(outputs: Path, tmp_path: Path) -> None:
    with tensorboard(outputs) as address, opened(tmp_path / "profile") as page:
        table = read_table(page, address, 4)
    assert table
    (head,) = table["head"]
    rows = {row[0]: dict(zip(head, row, strict=False)) for row in table["body"]}
    assert head[-4:] == list(METRICS)
    assert len(rows) == 4
    for depth in (1, 2):
        for seed in (1, 2):
            name = f"study/day/depth-{depth}_seed-{seed}"
            seen, said = rows[name], summary(outputs / name)
            assert (float(seen["model.depth"]), float(seen["seed"])) == (depth, seed)
            assert seen["swept"] == f"depth={depth} seed={seed}"
            assert seen["model"] == "vit_tiny"
            expected = (
                said["metrics"]["val/accuracy"],
                said["metrics"]["test/accuracy"],
                said["model"]["parameters"],
                said["train"]["images_per_second"],
            )
            assert [float(seen[m]) for m in METRICS] == pytest.approx(expected, rel=1e-3)
