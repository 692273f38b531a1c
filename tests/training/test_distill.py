"""``task=distill``: what a run with a teacher learns, records and keeps, and how it resumes."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vitlab
from tests.conftest import Train, checkpoint, on_test_split, same_weights, summary, train_in
from vitlab.core.errors import UserError
from vitlab.core.files import sha256
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run
from vitlab.training.teacher import Teacher, load_teacher

OPTIONS = (
    *("task=distill", "model=vit_distilled_tiny", "augment=mixup_cutmix"),
    *("task.kind=soft", "task.weight=0.25"),
)


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Teacher]:
    """A finished run, whose teacher is gone from its place; and that teacher as the run had it."""
    kept: list[Teacher] = []

    def keeping(*arguments: Any) -> Teacher:
        kept.append(load_teacher(*arguments))
        return kept[-1]

    folder = tmp_path_factory.mktemp("student")
    given = shutil.copytree(teacher, folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitlab.training.build.load_teacher", keeping)
        train_in(folder / "run", *OPTIONS, f"task.teacher={given}")
    shutil.rmtree(given)
    return folder / "run", kept[0]


def test_a_run_keeps_the_record_of_the_teacher_and_nothing_else_of_it(
    student: tuple[Path, Teacher], teacher: Path
) -> None:
    folder, kept = student
    found, last = summary(folder), checkpoint(folder)
    net = vitlab.load(folder).net
    assert found["model"]["parameters"] == sum(p.numel() for p in net.parameters())
    names = {name.removeprefix("net.") for name in last["state_dict"] if name.startswith("net.")}
    assert names == {*net.state_dict()}
    assert len(last["optimizer_states"][0]["state"]) == len(list(net.parameters()))
    record, meta = found["teacher"], last["vitlab"]
    assert record["path"] == str(folder.parent / "teacher")
    assert record["sha256"] == sha256(teacher / "checkpoints" / "best.ckpt")
    assert record["model"] == "resnet18"
    assert record["metrics"]["test/accuracy"] == summary(teacher)["metrics"]["test/accuracy"]
    assert meta["teacher"]["sha256"] == record["sha256"]
    assert kept.mean.flatten().tolist() == pytest.approx(meta["mean"])
    assert kept.std.flatten().tolist() == pytest.approx(meta["std"])
    # It stayed in evaluation mode and as it was, BatchNorm's statistics included.
    assert not any(module.training for module in kept.net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in kept.net.parameters())
    before = checkpoint(teacher, "best")["state_dict"]
    assert all(torch.equal(value, before[f"net.{n}"]) for n, value in kept.net.state_dict().items())
    assert copy.deepcopy({"teacher": kept})["teacher"] is kept


def test_both_parts_of_the_loss_are_on_record(student: tuple[Path, Teacher]) -> None:
    rows = read_metrics(RunFolder(student[0]))
    assert len(rows) == 2
    for row in rows:
        parts = 0.75 * row["train/label_loss"] + 0.25 * row["train/teacher_loss"]
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= row["train/teacher_agreement"] <= 1
        assert 0 <= row["train/teacher_accuracy"] <= 1
    log = (student[0] / "train.log").read_text()
    assert "resnet18" in log
    assert "soft, temperature 3, weight 0.25" in log


def test_the_prediction_needs_no_teacher(student: tuple[Path, Teacher]) -> None:
    logits, labels = on_test_split(vitlab.load(student[0]))
    right = (logits.argmax(1) == labels).float().mean()
    assert summary(student[0])["metrics"]["test/accuracy"] == pytest.approx(right.item())
    run(RunFolder(student[0]))  # which is finished, and says so


def test_a_run_that_goes_on_ends_with_the_same_weights_and_sums(
    student: tuple[Path, Teacher], stopped: Train, teacher: Path
) -> None:
    cut = stopped(11, *OPTIONS, f"task.teacher={teacher}")
    run(RunFolder(cut))
    assert summary(cut)["train"]["resumed_at"] == [11]
    assert same_weights(student[0], cut)
    rows = [read_metrics(RunFolder(folder)) for folder in (student[0], cut)]
    assert rows[0] == [pytest.approx(row, rel=1e-6) for row in rows[1]]


def test_a_run_goes_on_with_its_own_teacher_only(stopped: Train, teacher: Path, tmp_path: Path) -> None:
    own = shutil.copytree(teacher, tmp_path / "own_teacher")
    cut = stopped(4, "task=distill", f"task.teacher={own}")
    moved = own.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"own_teacher does not exist.*task\.teacher into .*config\.yaml"):
        run(RunFolder(cut))
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace(f"teacher: {own}", f"teacher: {moved}"))
    best = moved / "checkpoints" / "best.ckpt"
    sound = best.read_bytes()
    content = checkpoint(moved, "best")
    content["state_dict"]["net.head.bias"] += 1
    best.with_name("best.ckpt.sha256").unlink()
    torch.save(content, best)
    with pytest.raises(UserError, match="no longer the teacher"):
        run(RunFolder(cut))
    best.write_bytes(sound)
    assert run(RunFolder(cut))["status"] == "finished"


def test_a_network_of_timms_teaches(train: Train, timm_file: Path) -> None:
    options = ["task=distill", "task.teacher=timm/test_resnet", f"task.teacher_checkpoint={timm_file}"]
    folder = train(*options, "trainer.max_steps=2", "trainer.max_epochs=-1")
    record = summary(folder)["teacher"]
    assert record["path"] == "timm/test_resnet"
    assert record["sha256"] == sha256(timm_file)
    assert "teacher_accuracy" in (folder / "train.log").read_text(), "a note about the teacher"
