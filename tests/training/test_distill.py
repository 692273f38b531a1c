"""``task=distill``: what the student learns from, what is kept of it, and what is refused."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import vitlab
from tests.conftest import ROOT, TINY, checkpoint, same_weights, summary, verb
from tests.models.helpers import SMALL, build
from vitlab.config import compose, preflight, to_plain
from vitlab.core.errors import UserError
from vitlab.core.files import sha256
from vitlab.core.hardware import has_compiler
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.data import datasets
from vitlab.sweep.data_check import check_data
from vitlab.tasks.distill import Distill
from vitlab.tasks.losses import hard_distillation, soft_cross_entropy, soft_distillation
from vitlab.training.run import run
from vitlab.training.teacher import Teacher, load_teacher

Train = Callable[..., Path]

DATA = [o for o in TINY if not o.startswith("model")]
TOKEN = ("model=vit_distilled_tiny",)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional network, trained for two epochs."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        import train as verb_module

        options = [
            "model=resnet18",
            "model.width=4",
            "model.blocks=[1]",
            "data.normalization=half",
            f"hydra.run.dir={folder}",
        ]
        patch.setattr(sys, "argv", ["train.py", *DATA, *options])
        verb_module.main()
    return folder


@pytest.fixture
def distill(train: Train, teacher: Path) -> Train:
    """Train a student of ``teacher``."""

    def call(*options: str, **names: str) -> Path:
        return train("task=distill", f"task.teacher={teacher}", *options, **names)

    return call


@pytest.fixture
def own(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the teacher to be spoiled."""
    return Path(shutil.copytree(teacher, tmp_path / "own_teacher"))


def config(*overrides: str) -> dict[str, Any]:
    return to_plain(compose([*TINY, "task=distill", *overrides]))


def loaded(path: Path, *overrides: str) -> Teacher:
    node = config(f"task.teacher={path}", *overrides)
    return load_teacher(node, datasets.build(node["data"]))


# The loss


@pytest.fixture
def batch() -> Any:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(32, 10, generator=generator)  # soft, as after mixup
    images = torch.randn(32, 3, 16, 16, generator=generator)
    return SimpleNamespace(images=images, targets=targets / targets.sum(1, keepdim=True))


def student(net: nn.Module, said: Callable[[Tensor], Tensor], **options: Any) -> Distill:
    return Distill(
        net=net.eval(),
        teacher=said,
        optimizer=lambda net: torch.optim.SGD(net.parameters()),
        schedule=lambda step, total: 1.0,
        total_steps=1,
        num_classes=10,
        freeze="none",
        seed=0,
        meta={},
        **{"kind": "hard", "temperature": 3.0, "weight": 0.5, "label_smoothing": 0.0, **options},
    )


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("model", ["vit_tiny", "vit_distilled_tiny"])
def test_labels_and_teacher_share_the_loss(batch: Any, kind: str, model: str) -> None:
    net = build(f"model={model}", **SMALL)
    said = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
    seen = []
    task = student(net, lambda x: seen.append(x) or said, kind=kind, weight=0.3, label_smoothing=0.1)
    loss, shown = task.objective(batch)
    if model == "vit_tiny":
        labels = taught = net(batch.images)
    else:
        labels, taught = net(batch.images, per_head=True).unbind(1)
    label_loss = soft_cross_entropy(labels, batch.targets, 0.1)
    teacher_loss = hard_distillation(taught, said) if kind == "hard" else soft_distillation(taught, said, 3.0)
    torch.testing.assert_close(loss, 0.7 * label_loss + 0.3 * teacher_loss)
    truth, answers, guesses = (x.argmax(1) for x in (batch.targets, said, (labels + taught) / 2))
    expected = [
        (guesses == truth).sum(),
        32 * label_loss,
        32 * teacher_loss,
        (guesses == answers).sum(),
        (answers == truth).sum(),
    ]
    assert [v.item() for v in shown] == pytest.approx([v.item() for v in expected])
    assert len(Distill.shown) == 1 + len(shown)
    assert seen[0] is batch.images, "the teacher sees what the student sees"
    assert not any(value.requires_grad for value in shown)


# The teacher


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


def test_a_run_keeps_the_record_of_the_teacher_and_nothing_else_of_it(
    distill: Train, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint(teacher, "best")["state_dict"]
    kept: list[Teacher] = []

    def keeping(*arguments: Any) -> Teacher:
        kept.append(load_teacher(*arguments))
        return kept[-1]

    monkeypatch.setattr("vitlab.training.build.load_teacher", keeping)
    folder = distill("augment=mixup_cutmix", "trainer.max_epochs=1")
    found = summary(folder)
    net = vitlab.load(folder).net
    assert found["model"]["parameters"] == sum(p.numel() for p in net.parameters())
    names = {
        name.removeprefix("net.") for name in checkpoint(folder)["state_dict"] if name.startswith("net.")
    }
    assert names == {*net.state_dict()}
    optimizer = checkpoint(folder)["optimizer_states"][0]["state"]
    assert len(optimizer) == len(list(net.parameters()))
    record = found["teacher"]
    assert record["path"] == str(teacher)
    assert record["sha256"] == sha256(teacher / "checkpoints" / "best.ckpt")
    assert record["model"] == "resnet18"
    assert record["metrics"]["test/accuracy"] == summary(teacher)["metrics"]["test/accuracy"]
    assert checkpoint(folder)["vitlab"]["teacher"]["sha256"] == record["sha256"]
    meta = checkpoint(folder)["vitlab"]
    assert kept[0].mean.flatten().tolist() == pytest.approx(meta["mean"])
    assert kept[0].std.flatten().tolist() == pytest.approx(meta["std"])
    # It stayed in evaluation mode and as it was, BatchNorm's statistics included.
    net = kept[0].net
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    assert all(torch.equal(value, before[f"net.{n}"]) for n, value in net.state_dict().items())
    assert copy.deepcopy({"teacher": kept[0]})["teacher"] is kept[0]


@pytest.mark.parametrize("options", [(), TOKEN])
def test_both_parts_of_the_loss_are_on_record(distill: Train, options: tuple[str, ...]) -> None:
    folder = distill(*options, "task.kind=soft", "task.weight=0.25")
    rows = read_metrics(RunFolder(folder))
    assert len(rows) == 2
    for row in rows:
        parts = 0.75 * row["train/label_loss"] + 0.25 * row["train/teacher_loss"]
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= row["train/teacher_agreement"] <= 1
        assert 0 <= row["train/teacher_accuracy"] <= 1
    log = (folder / "train.log").read_text()
    assert "resnet18" in log
    assert "soft, temperature 3, weight 0.25" in log


def test_the_prediction_needs_no_teacher(train: Train, own: Path) -> None:
    folder = train("task=distill", f"task.teacher={own}", *TOKEN)
    shutil.rmtree(own)
    model = vitlab.load(folder)
    images, labels = (torch.from_numpy(a) for a in datasets.build(model.config["data"]).load("test"))
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean()
    assert summary(folder)["metrics"]["test/accuracy"] == pytest.approx(right.item())
    run(RunFolder(folder))  # which is finished, and says so


# Going on


@pytest.fixture
def broken(distill: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Train a student until something breaks in its n-th batch; there is a checkpoint of each step."""

    def call(batch: int, *options: str) -> Path:
        count = iter(range(batch - 1))
        real = Distill.objective

        def breaking(task: Distill, data: Any) -> Any:
            if next(count, None) is None:
                raise OSError("the power is gone")
            return real(task, data)

        with monkeypatch.context() as patch:
            patch.setattr(Distill, "objective", breaking)
            with pytest.raises(OSError, match="power"):
                distill(*options, "callbacks.checkpoint.every_minutes=1e-6", name="stopped")
        return tmp_path / "stopped"

    return call


def test_a_run_that_goes_on_ends_with_the_same_weights_and_sums(distill: Train, broken: Train) -> None:
    options = (*TOKEN, "augment=mixup_cutmix", "task.kind=soft")
    whole, stopped = distill(*options, name="whole"), broken(12, *options)
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [11]
    assert same_weights(whole, stopped)
    rows = [read_metrics(RunFolder(folder)) for folder in (whole, stopped)]
    assert rows[0] == [pytest.approx(row, rel=1e-6) for row in rows[1]]


def test_a_run_goes_on_with_its_own_teacher_only(broken: Train, own: Path, tmp_path: Path) -> None:
    stopped = broken(5, f"task.teacher={own}")
    moved = own.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"own_teacher does not exist.*task\.teacher into .*config\.yaml"):
        run(RunFolder(stopped))
    text = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(text.replace(f"teacher: {own}", f"teacher: {moved}"))
    best = moved / "checkpoints" / "best.ckpt"
    sound = best.read_bytes()
    content = checkpoint(moved, "best")
    content["state_dict"]["net.head.bias"] += 1
    best.with_name("best.ckpt.sha256").unlink()
    torch.save(content, best)
    with pytest.raises(UserError, match="no longer the teacher"):
        run(RunFolder(stopped))
    best.write_bytes(sound)
    assert run(RunFolder(stopped))["status"] == "finished"


# timm


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=10)
    save_file(net.state_dict(), path := tmp_path_factory.mktemp("timm") / "ten.safetensors")
    return path


def test_a_network_of_timms_teaches(train: Train, timm_file: Path) -> None:
    options = ["task=distill", "task.teacher=timm/test_resnet", f"task.teacher_checkpoint={timm_file}"]
    folder = train(*options, "trainer.max_steps=2", "trainer.max_epochs=-1")
    record = summary(folder)["teacher"]
    assert record["path"] == "timm/test_resnet"
    assert record["sha256"] == sha256(timm_file)
    assert "teacher_accuracy" in (folder / "train.log").read_text()


def test_timms_network_sees_its_own_size_and_statistics(timm_file: Path) -> None:
    found = loaded(Path("timm/test_resnet"), f"task.teacher_checkpoint={timm_file}")
    found.undo(mean=[0.0] * 3, std=[1.0] * 3)
    net = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(timm_file)).eval()
    (_, *size), mean, std = (net.pretrained_cfg[key] for key in ("input_size", "mean", "std"))
    pixels = torch.rand(2, 3, 16, 16)
    large = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = net((large - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(found(pixels), expected, rtol=1e-4, atol=1e-4)


# Mistakes, and what has no effect


def test_a_thousand_classes_are_refused(timm_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "imagenet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(UserError, match=r"no head for the 10 classes of shapes.*Fine-tune it"):
        loaded(Path("timm/test_resnet"), f"task.teacher_checkpoint={file}")
    with pytest.raises(UserError, match="did you mean"):
        loaded(Path("timm/test_resnt"), f"task.teacher_checkpoint={file}")
    file.write_text("hello")
    with pytest.raises(UserError, match=r"task\.teacher=timm/test_resnet .*cannot be read"):
        loaded(Path("timm/test_resnet"), f"task.teacher_checkpoint={file}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], r"task=distill needs a trained teacher: add task\.teacher=RUN_FOLDER.*resnet18"),
        (["task.teacher=timm/resnet18.a1_in1k"], "task.teacher_checkpoint=FILE, or fine-tune"),
        (["task.teacher=x", "task.teacher_checkpoint=y"], "leave it out"),
        (["task.teacher=x", "task.kind=sotf"], "task.kind=sotf: expected hard or soft"),
        (["task.teacher=x", "task.temperature=0"], "task.temperature=0: expected a number above 0"),
        (["task.teacher=x", "task.weight=1.5"], "task.weight=1.5"),
        (["task.teacher=x", "task.weight=0", *TOKEN], "leaves the teacher out, and one of this model's two"),
        (["task.teacher=x", "task.weight=1.0", *TOKEN], "leaves the labels out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        preflight(["task=distill", "data=shapes", *options])


def test_a_teacher_that_is_not_there_leaves_no_folder(train: Train, teacher: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("seed: 0")
    for options, said in (
        (
            [f"task.teacher={teacher}s"],
            rf"task\.teacher={teacher}s: .* does not exist \(did you mean '{teacher}'",
        ),
        ([f"task.teacher={teacher}/checkpoints/bst.ckpt"], "there is no such file"),
        ([f"task.teacher={empty}"], "has no checkpoint: that run has not finished an epoch"),
        (
            ["task.teacher=timm/test_resnet", "task.teacher_checkpoint=nowhere.pth"],
            "nowhere.pth: there is no",
        ),
        ([f"task.teacher={teacher}", "data.channels=1"], "3 channel"),
    ):
        with pytest.raises(UserError, match=said):
            train("task=distill", *options)
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="does not exist"):  # in a sweep, before its first job
        check_data([config(f"task.teacher={teacher}s")])


def test_what_is_doubtful_is_said(train: Train, own: Path) -> None:
    found = json.loads((own / "summary.json").read_text()) | {"status": "interrupted"}
    (own / "summary.json").write_text(json.dumps(found))
    options = ["task=distill", f"task.teacher={own}/checkpoints/last.ckpt", "data.split_seed=5"]
    folder = train(*options, "task.temperature=4", "task.weight=0", "trainer.max_epochs=1")
    log = (folder / "train.log").read_text()
    for said in (
        "run is interrupted and not finished: its last.ckpt",
        "held out other images",
        "task.temperature has no effect with task.kind=hard",
        "task.weight=0: the teacher is asked",
        "accuracy unknown",
    ):
        assert said in " ".join(log.split()), said
    assert summary(folder)["teacher"]["metrics"] == {}


def test_two_heads_without_a_teacher_are_noted() -> None:
    (note,) = build("model=vit_distilled_tiny", **SMALL).notes_without_teacher()
    assert "task=distill gives it one" in note


# Slow


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
def test_compiled_losses_are_the_eager_ones(teacher: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        options = [f"task.teacher={teacher}", *TOKEN, "model.dropout=0", f"compile={compiled}"]
        changed = {o.split("=")[0]: o for o in [*TINY, "task=distill", *options, f"hydra.run.dir={folder}"]}
        ended = verb(*changed.values())
        assert ended.returncode == 0, ended.stderr
        rows = read_metrics(RunFolder(folder))
        losses.append([row[f"train/{key}"] for row in rows for key in ("label_loss", "teacher_loss")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_sweep_over_the_kind_on_two_processes(teacher: Path, tmp_path: Path) -> None:
    options = [o for o in TINY if o not in ("trainer=cpu", "model=vit_tiny")]
    options += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    options += ["task=distill", f"task.teacher={teacher}", "task.kind=hard,soft", *TOKEN]
    ended = verb("-m", *options, f"hydra.sweep.dir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    jobs = ["kind-hard", "kind-soft"]
    assert [summary(tmp_path / job)["status"] for job in jobs] == ["finished"] * 2
    kinds = [RunFolder(tmp_path / job).read_config()["task"]["kind"] for job in jobs]
    assert kinds == ["hard", "soft"]
