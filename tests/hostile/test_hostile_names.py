"""Links that lead out, images that claim much, and names that are code."""

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.helpers import Answers, Payload, edit, put
from vitlab.compare import compare
from vitlab.core.console import make_console
from vitlab.core.errors import UserError


@pytest.mark.parametrize("name", ["train.log", ".lock", "checkpoints", "figures", "evaluation"])
def test_nothing_is_written_through_a_link_that_leads_out(
    answer: Answers, unfinished: Path, tmp_path: Path, name: str
) -> None:
    path, outside = unfinished / name, tmp_path / "outside"
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "precious" if "." in name else outside)
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert f"{name} is a link that leads out" in text


def test_a_report_is_not_written_through_a_link_that_leads_out(copied: Path, tmp_path: Path) -> None:
    (copied / "report").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="report is a link that leads out"):
        compare([copied], [], None, make_console())


def test_an_image_that_claims_gigabytes_is_reported_and_the_others_are_predicted(
    answer: Answers, finished: Path, image: Path, tmp_path: Path
) -> None:
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    (tmp_path / "payload.jpg").write_bytes(pickle.dumps(Payload(tmp_path)))
    code, text = answer("predict", finished, image, tmp_path / "bomb.png", tmp_path / "payload.jpg")
    assert code == 1
    assert "image.png" in text
    assert "bomb.png: Image size (3600000000 pixels) exceeds limit" in text, text
    assert "2 of 3 images cannot be read" in text


NAMES = [
    "<script>",
    "\x1b[31mred",
    "two\nlines",
    "[bold]b",
    "$x^2$",
    "a|b`c",
    "100%s",
    "\u202efdp",
    "=cmd()",
    "../x",
]


def test_names_of_classes_and_files_are_text_wherever_they_are_shown(
    answer: Answers, copied: Path, tmp_path: Path
) -> None:
    put(copied, edit(vitlab__classes=NAMES))
    odd = tmp_path / "a\nb\x1b[2J.png"
    Image.new("RGB", (16, 16)).save(odd)
    code, text = answer("predict", copied, odd, "--top", 1)
    assert (code, text.count("\n")) == (0, 2)  # a heading and a line
    _, text = answer("predict", copied, odd, "--top", 10)
    assert text.replace("\n", "").isprintable()
    for name in ("<script>", "[bold]b", "$x^2$", "two lines"):
        assert name in " ".join(text.split())
    _, text = answer("predict", copied, odd, "--format", "csv", "--top", 10)
    assert "'=cmd()" in text
    assert "\x1b" not in text
    _, text = answer("predict", copied, odd, "--format", "jsonl")
    assert json.loads(text)["path"] == str(odd)
    _, text = answer("export", copied, "--format", "safetensors")
    card = (copied / "export" / "safetensors" / "README.md").read_text()
    assert r"\<script\>" in card
    assert r"two lines, \[bold\]b, \$x^2\$, a\|b\`c" in card
    assert card.replace("\n", "").isprintable()
