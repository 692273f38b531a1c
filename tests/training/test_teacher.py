"""The teacher of ``task=distill``: what it sees and says, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import vitlab
from tests.conftest import TINY, Train, checkpoint
from tests.models.helpers import SMALL, build
from vitlab.config import compose, preflight, to_plain
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.sweep.data_check import check_data
from vitlab.training.teacher import Teacher, load_teacher

TOKEN = "model=vit_distilled_tiny"


@pytest.fixture
def own(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the teacher to be spoiled."""
    return shutil.copytree(teacher, tmp_path / "own_teacher")


def config(*overrides: str) -> dict[str, Any]:
    return to_plain(compose([*TINY, "task=distill", *overrides]))


def loaded(path: Path | str, *overrides: str) -> Teacher:
    node = config(f"task.teacher={path}", *overrides)
    return load_teacher(node, datasets.build(node["data"]))


def test_the_teacher_sees_the_students_batch_in_its_own_way(teacher: Path) -> None:
    found = loaded(teacher)
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.3, 0.1]  # of the student; the teacher's are all one half
    found.undo(mean=mean, std=std)
    for side in (16, 24):  # as large as the teacher's images, and larger
        pixels = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(side))
        batch = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        net = vitlab.load(teacher).net
        small = F.interpolate(pixels, (16, 16), mode="bilinear", antialias=True)
        with torch.no_grad():
            expected = net((small - 0.5) / 0.5)
        torch.testing.assert_close(found(batch), expected, rtol=1e-4, atol=1e-5)
        assert not found(batch.requires_grad_()).requires_grad


def test_classes_in_another_order_are_matched_by_name(own: Path) -> None:
    plain = loaded(own)
    path = own / "checkpoints" / "best.ckpt"
    content = checkpoint(own, "best")
    classes = content["vitlab"]["classes"]
    content["vitlab"]["classes"] = classes[::-1]  # so its first logit now speaks of the last class
    torch.save(content, path)
    path.with_name("best.ckpt.sha256").unlink()
    mapped = loaded(own)
    batch = torch.rand(2, 3, 16, 16)
    for each in (plain, mapped):
        each.undo(mean=[0.5] * 3, std=[0.5] * 3)
    torch.testing.assert_close(mapped(batch), plain(batch).flip(1))
    assert any("matched by name" in note for note in mapped.notes)
    content["vitlab"]["classes"] = ["disk", *[f"other_{i}" for i in range(9)]]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"10 classes, shapes has 10, .*exactly these; '.* ….*resnet18"):
        loaded(own)


def test_timms_network_sees_its_own_size_and_statistics(timm_file: Path) -> None:
    found = loaded("timm/test_resnet", f"task.teacher_checkpoint={timm_file}")
    found.undo(mean=[0.0] * 3, std=[1.0] * 3)
    net = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(timm_file)).eval()
    (_, *size), mean, std = (net.pretrained_cfg[key] for key in ("input_size", "mean", "std"))
    pixels = torch.rand(2, 3, 16, 16)
    large = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = net((large - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(found(pixels), expected, rtol=1e-4, atol=1e-4)


def test_a_thousand_classes_are_refused(timm_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "imagenet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(UserError, match=r"no head for the 10 classes of shapes.*Fine-tune it"):
        loaded("timm/test_resnet", f"task.teacher_checkpoint={file}")
    with pytest.raises(UserError, match="did you mean"):
        loaded("timm/test_resnt", f"task.teacher_checkpoint={file}")
    file.write_text("hello")
    with pytest.raises(UserError, match=r"task\.teacher=timm/test_resnet .*cannot be read"):
        loaded("timm/test_resnet", f"task.teacher_checkpoint={file}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", r"task=distill needs a trained teacher: add task\.teacher=RUN_FOLDER.*resnet18"),
        ("task.teacher=timm/resnet18.a1_in1k", "task.teacher_checkpoint=FILE, or fine-tune"),
        ("task.teacher=x task.teacher_checkpoint=y", "leave it out"),
        ("task.teacher=x task.kind=sotf", "task.kind=sotf: expected hard or soft"),
        ("task.teacher=x task.temperature=0", "task.temperature=0: expected a number above 0"),
        ("task.teacher=x task.weight=1.5", "task.weight=1.5"),
        (f"task.teacher=x task.weight=0 {TOKEN}", "leaves the teacher out, and one of this model's two"),
        (f"task.teacher=x task.weight=1.0 {TOKEN}", "leaves the labels out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        preflight(["task=distill", "data=shapes", *options.split()])


def test_a_teacher_that_is_not_there_leaves_no_folder(train: Train, teacher: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("seed: 0")
    for options, said in (
        (f"{teacher}s", rf"task\.teacher={teacher}s does not exist \(did you mean '{teacher}'"),
        (f"{teacher}/checkpoints/bst.ckpt", "there is no such file"),
        (f"{empty}", "has no checkpoint: that run has not finished an epoch"),
        ("timm/test_resnet task.teacher_checkpoint=nowhere.pth", "nowhere.pth: there is no"),
        (f"{teacher} data.channels=1", "3 channel"),
    ):
        with pytest.raises(UserError, match=said):
            train("task=distill", *f"task.teacher={options}".split())
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="does not exist"):  # in a sweep, before its first job
        check_data([config(f"task.teacher={teacher}s")])


def test_what_is_doubtful_is_said(own: Path) -> None:
    found = json.loads((own / "summary.json").read_text()) | {"status": "interrupted"}
    (own / "summary.json").write_text(json.dumps(found))
    options = ["data.split_seed=5", "task.temperature=4", "task.weight=0"]
    teacher = loaded(own / "checkpoints/last.ckpt", *options)
    task = config("task.teacher=x", *options)["task"]
    notes = " ".join([teacher.describe(), *teacher.all_notes(task, options)])
    for said in (
        "run is interrupted and not finished: its last.ckpt",
        "held out other images",
        "task.temperature has no effect with task.kind=hard",
        "task.weight=0: the teacher is asked",
        "accuracy unknown",
    ):
        assert said in notes
    assert teacher.record["metrics"] == {}


def test_two_heads_without_a_teacher_are_noted() -> None:
    (note,) = build("model=vit_distilled_tiny", **SMALL).notes_without_teacher()
    assert "task=distill gives it one" in note
