"""What people do wrong ends in one sentence, with nothing lost and nothing left behind."""

import signal
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.conftest import ROOT, TINY, Train, answer_without_torch, checkpoint, summary
from vitlab.config.arguments import check_folder
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.training.run import run

CALLS = [
    ("--help", "Parts"),
    ("model=vit_smal", "did you mean vit_small"),
    ("resume=outputs/nowhere", "error: resume=outputs/nowhere does not exist"),
]


def test_help_and_typos_answer_without_torch() -> None:
    for argument, said in CALLS:
        ended = answer_without_torch("train.py", argument)
        assert said in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("augment.crop.padding_mode=mirror", "padding_mode"),
        ("trainer.barebones=true", "barebones"),
        ("trainer.strategy=foo", "Trainer refuses"),
        ("trainer.limit_test_batches=0.01", "limit_test_batches=0.01 of 6 batches is none"),
        ("trainer.val_check_interval=10000", "more than the 8 batches"),
        ("trainer.check_val_every_n_epoch=null", "val_check_interval"),
        ("compile=true", "compiler"),
        ("callbacks.ema.decay=1", r"callbacks\.ema\.decay"),
        ("model.num_classes=5", "num_classes=10"),
        ("data.val_size=80", "val_size"),
        ("data.batch_size=65", "batch_size"),
        ("trainer=ddp trainer.accelerator=cpu trainer.devices=2 data.batch_size=7", "batch_size"),
        ("optimizer=sgd optimizer.momentum=0", "nesterov"),
        ("model=timm_vit_b16 model.name=swin_tiny", "did you mean"),
        ("model=timm_vit_b16 model.checkpoint_path=/nowhere.pth", "/nowhere.pth"),
        ("model=timm_vit_b16 model.name=resnet10t +model.kwargs.foo=1", r"take model\.kwargs\.foo"),
        ("model=timm_vit_b16 model.checkpoint_path=train.py", r"cannot be read.*\(UnpicklingError\)"),
        ("model=torchvision_vit_b16 model.pretrained=true", r"fetch https://.*/vit_b_16-\w+\.pth; put"),
    ],
)
def test_refused_and_nothing_left(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: str, said: str
) -> None:
    def unplugged(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("vitlab.models.hub.urlopen", unplugged)
    monkeypatch.setattr("vitlab.core.hardware.has_compiler", lambda kind: False)
    base = [o for o in TINY if "model=" not in overrides or not o.startswith("model")]
    with pytest.raises(UserError, match=said):
        train(*overrides.split(), base=base)
    assert not (tmp_path / "run").exists()


def test_resume_is_of_exactly_the_folder_named(finished: Path) -> None:
    for wrong in ("typo", "typo/foo", "checkpoints/best.ckpt"):
        with pytest.raises(UserError):
            RunFolder.find(finished / wrong)


def test_a_folder_that_is_taken_is_refused_before_anything_is_written(
    copied: Path, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"holds a run already.*resume="):
        train(name=copied.name)
    assert summary(copied)["status"] == "finished"
    with pytest.raises(UserError, match=r"holds a sweep already.*hydra\.sweep\.dir"):
        check_folder(tmp_path, "sweep")
    with pytest.raises(UserError, match="written to"):
        check_folder(copied / "config.yaml" / "x")


def test_a_sanity_check_does_not_choose_the_checkpoint(train: Train) -> None:
    folder = train("trainer.num_sanity_val_steps=2", "optimizer.lr=1e-9")
    assert checkpoint(folder, "best")["global_step"] > 0


@pytest.mark.parametrize("switch", ["fast_dev_run=true", "profiler=simple", "precision=64-true"])
def test_lightnings_own_switches(train: Train, switch: str) -> None:
    folder = train(f"trainer.{switch}", "trainer.max_epochs=1")
    assert summary(folder)["status"] == "finished"
    assert bool(list(folder.glob("*profile*.txt"))) == switch.startswith("profiler")


def test_ctrl_c_before_training_can_be_resumed(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitlab.training.run.build", pressed)
    with pytest.raises(Interrupted) as stop:
        train()
    assert stop.value.exit_code == 128 + signal.SIGINT


def test_a_lost_summary_is_made_again(copied: Path) -> None:
    before = summary(copied)["metrics"]
    (copied / "summary.json").write_text("{ half")
    run(RunFolder(copied))
    assert summary(copied)["metrics"] == before
    assert summary(copied)["train"]["resumed_at"] == [16]
