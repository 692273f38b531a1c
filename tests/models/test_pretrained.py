"""Which file a path means, what is read from it, and what a run is told about it."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitlab.core.errors import UserError
from vitlab.models.pretrained import Images, Loaded, find_weights, read_weights


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": torch.ones(2)}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["net.pth", "README.md"], "net.pth"),
        (["model.safetensors", "pytorch_model.bin", "other.pth"], "model.safetensors"),
        (["pytorch_model.bin", "other.pth"], "pytorch_model.bin"),
        (["snapshots/0a1b/model.safetensors", "refs/main"], "snapshots/0a1b/model.safetensors"),
        (["config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"], "checkpoints/best.ckpt"),
        (["config.yaml", "checkpoints/last.ckpt"], "checkpoints/last.ckpt"),
    ],
    ids=str,
)
def test_a_folder_stands_for_the_weights_in_it(tmp_path: Path, names: list[str], found: str) -> None:
    assert find_weights(fill(tmp_path, *names)) == tmp_path / found
    assert find_weights(tmp_path / found) == tmp_path / found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.pth", "b.safetensors", "c.txt"], r"holds 2 files of weights \(a.pth, b.safetensors\)"),
        (["README.md", "sub/a.pth"], "holds no file of weights"),
        (["config.yaml"], "has no checkpoint"),
        (["checkpoints/best.ckpt", "checkpoints/last.ckpt"], "holds no file of weights"),
    ],
    ids=str,
)
def test_a_folder_that_does_not_say_which(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_weights(fill(tmp_path, *names))


def test_a_relative_path_starts_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "net.pth")
    monkeypatch.chdir(tmp_path)
    assert read_weights(find_weights(Path("net.pth")))[0].keys() == {"weight"}
    with pytest.raises(UserError, match=f"no file nte.pth .looked for {tmp_path}/nte.pth"):
        find_weights(Path("nte.pth"))


def test_a_checkpoint_of_ours_gives_its_network_alone(tmp_path: Path) -> None:
    state = {"net.net.weight": torch.ones(2), "confusion.confmat": torch.zeros(3, 3)}
    meta = {"mean": [0.5], "std": [0.2], "input_size": [32, 48], "config": {}, "classes": ["a"]}
    torch.save({"state_dict": state, "vitlab": meta}, tmp_path / "best.ckpt")
    weights, images = read_weights(tmp_path / "best.ckpt")
    assert weights.keys() == {"weight"}
    assert images == Images((0.5,), (0.2,), (32, 48))


def test_a_checkpoint_that_changed_since_it_was_written(tmp_path: Path) -> None:
    fill(tmp_path, "best.ckpt")
    (tmp_path / "best.ckpt.sha256").write_text("0" * 64)
    with pytest.raises(UserError, match="is damaged"):
        read_weights(tmp_path / "best.ckpt")


ONES = {"weight": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3, "state_dict": {"module.weight": torch.ones(2)}},
        # As timm's own training script and DeiT's write them.
        {"model": ONES, "args": argparse.Namespace(lr=0.1)},
        {"state_dict": {"weight": torch.zeros(2)}, "state_dict_ema": ONES},
    ],
    ids=["wrapped", "settings beside them", "averaged"],
)
def test_weights_are_found_in_what_a_trainer_saves(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "last.ckpt")
    weights, images = read_weights(tmp_path / "last.ckpt")
    assert weights.keys() == {"weight"}
    assert torch.equal(weights["weight"], torch.ones(2))
    assert images is None


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(ONES, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")[0]["weight"], torch.ones(2))


class Trap:
    """A pickle that would run code; loading must refuse it and not run it."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no weights at all", "cannot be read"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({"weight": Trap()}, "cannot be read"),
    ],
    ids=["empty", "text", "no tensors", "a list", "code"],
)
def test_files_that_hold_no_weights(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_weights(path)
    assert not Trap.sprung


def loaded(**changes: Any) -> Loaded:
    known = Images((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    fields: dict[str, Any] = {"resized": [], "new": [], "left_out": [], "images": known, "certain": True}
    return Loaded(source="w.pth", tensors=3, numbers=1200, **(fields | changes))


def test_other_images_than_the_weights_know_are_noted() -> None:
    same = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert list(loaded().notes(*same, (224, 224))) == []
    assert list(loaded(images=None).notes(*same, (32, 32))) == []
    (size,) = loaded().notes(*same, (32, 64))
    assert "224x224 pixels, and model.image_size is 32x64" in size
    (normalised,) = loaded().notes([0.5] * 3, [0.25] * 3, (224, 224))
    assert "set 'data.normalization={mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}'" in normalised
    half = Images((0.5,) * 3, (0.5,) * 3, (224, 224))
    (note,) = loaded(images=half, certain=False).notes([0.49] * 3, [0.25] * 3, (224, 224))
    assert note.startswith("the published weights of this network were trained")
    assert "set data.normalization=half," in note
    # Grey images are held against the mean over the channels.
    assert list(loaded().notes([0.449], [0.226], (224, 224))) == []


def test_the_table_stays_short() -> None:
    rows = list(loaded(resized=[f"table_{i} (4,) → (9,)" for i in range(24)], left_out=["x"]).lines())
    assert rows[2] == ("  resized", "table_0 (4,) → (9,)")
    assert rows[8:] == [("", "and 18 more"), ("  left out", "x")]
