"""What people do wrong ends in one sentence, with nothing lost and nothing left behind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest

import vitlab
from tests.conftest import ROOT, TINY, checkpoint, summary, verb
from vitlab.config.arguments import check_folder, parse_arguments
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.training.run import run

Train = Callable[..., Path]


def test_help_and_typos_answer_without_torch() -> None:
    code = (
        "import sys, runpy\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    for argument, said in (("--help", "Parts"), ("model=vit_smal", "did you mean vit_small")):
        ended = subprocess.run(
            [sys.executable, "-c", code, argument], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert said in ended.stdout + ended.stderr
        assert ended.stderr.strip().endswith("False"), "torch was imported"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("augment.crop.padding_mode=mirror", "padding_mode"),
        ("trainer.barebones=true", "barebones"),
        ("trainer.strategy=foo", "Trainer refuses"),
        ("trainer.limit_test_batches=0.01", "limit_test_batches=0.01 of 5 batches is none"),
        ("trainer.val_check_interval=10000", "more than the 8 batches"),
        ("trainer.check_val_every_n_epoch=null", "val_check_interval"),
        ("compile=true", "compiler"),
        ("model.num_classes=5", "num_classes=10"),
        ("data.val_size=80", "val_size"),
        ("data.batch_size=65", "batch_size"),
    ],
)
def test_refused_and_nothing_left(
    train: Train, tmp_path: Path, override: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitlab.core.hardware.has_compiler", lambda kind: False)
    with pytest.raises(UserError, match=said):
        train("augment=basic", override)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("optimizer=sgd", "optimizer.momentum=0"), "nesterov"),
        (("model=timm_vit_b16", "model.name=swin_tiny"), "did you mean"),
        (("model=timm_vit_b16", "model.checkpoint_path=/nowhere.pth"), "/nowhere.pth"),
        (("model=timm_vit_b16", "model.name=resnet10t", "+model.kwargs.foo=1"), r"take model\.kwargs\.foo"),
        (("model=timm_vit_b16", "model.checkpoint_path=train.py"), r"cannot be read.*\(UnpicklingError\)"),
        (("model=torchvision_vit_b16", "model.pretrained=true"), r"fetch https://.*/vit_b_16-\w+\.pth; put"),
    ],
)
def test_what_a_constructor_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    def unplugged(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("vitlab.models.hub.urlopen", unplugged)
    import train as verb_module

    base = [o for o in TINY if not o.startswith("model") or "_vit_b16" not in " ".join(overrides)]
    monkeypatch.setattr(sys, "argv", ["train.py", *base, *overrides, f"hydra.run.dir={tmp_path}/run"])
    with pytest.raises(UserError, match=said):
        verb_module.main()
    assert not (tmp_path / "run").exists()


def test_resume_is_of_exactly_the_folder_named(train: Train) -> None:
    folder = train()
    assert RunFolder.find(folder / "checkpoints" / "last.ckpt").path == folder
    for wrong in (folder / "typo", folder / "typo" / "foo", folder / "checkpoints" / "best.ckpt"):
        with pytest.raises(UserError):
            RunFolder.find(wrong)
    with pytest.raises(UserError, match="resume="):
        parse_arguments(["resume="])


def test_a_folder_that_is_taken_is_refused_before_anything_is_written(train: Train, tmp_path: Path) -> None:
    folder = train()
    with pytest.raises(UserError, match=r"holds a run already.*resume="):
        train()
    assert summary(folder)["status"] == "finished"
    with pytest.raises(UserError, match=r"holds a sweep already.*hydra\.sweep\.dir"):
        check_folder(tmp_path, "sweep")
    with pytest.raises(UserError, match="written to"):
        check_folder(folder / "config.yaml" / "x")


def test_a_sanity_check_does_not_choose_the_checkpoint(train: Train) -> None:
    folder = train("trainer.num_sanity_val_steps=2", "optimizer.lr=1e-9")
    assert checkpoint(folder, "best")["global_step"] > 0


def test_the_step_loss_does_not_shrink_under_accumulation(train: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train("trainer.accumulate_grad_batches=3", "trainer.log_every_n_steps=1", "logger=tensorboard")
    points = EventAccumulator(str(folder)).Reload().Scalars("train/loss_step")
    assert [p.step for p in points] == [1, 2, 3, 4, 5, 6]
    assert all(1.5 < p.value < 3.5 for p in points), "ten classes start at ln 10 = 2.3"


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_pure_precisions_train(train: Train, precision: str) -> None:
    assert summary(train(f"trainer.precision={precision}", "trainer.max_epochs=1"))["status"] == "finished"


@pytest.mark.parametrize("options", [("trainer.fast_dev_run=true",), ("trainer.profiler=simple",)])
def test_lightnings_own_switches(train: Train, options: tuple[str, ...]) -> None:
    folder = train(*options, "trainer.max_epochs=1")
    assert summary(folder)["status"] == "finished"
    if "profiler" in options[0]:
        assert list(folder.glob("*profile*.txt"))


def test_ctrl_c_before_training_can_be_resumed(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitlab.training.run.build", pressed)
        with pytest.raises(Interrupted) as stop:
            train()
    assert stop.value.exit_code == 128 + signal.SIGINT


def test_a_lost_summary_is_made_again(train: Train) -> None:
    folder = train()
    before = summary(folder)["metrics"]
    (folder / "summary.json").write_text("{ half")
    run(RunFolder(folder))
    assert summary(folder)["metrics"] == before
    assert summary(folder)["train"]["resumed_at"] == [16]


def test_load_says_what_is_wrong(train: Train, tmp_path: Path) -> None:
    folder = train()
    assert vitlab.load(folder / "config.yaml").classes
    (tmp_path / "notes.ckpt").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        vitlab.load(tmp_path / "notes.ckpt")
    with pytest.raises(UserError, match="no checkpoint"):
        vitlab.load(tmp_path / "nothing.ckpt")


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    options = [o for o in TINY if not o.startswith("trainer.max_epochs")]
    with subprocess.Popen(
        [sys.executable, "train.py", *options, "trainer.max_epochs=2000", f"hydra.run.dir={tmp_path}/run"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] in ("running", "interrupted")
    assert verb(f"resume={tmp_path}/elsewhere").returncode == 1
