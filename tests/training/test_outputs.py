"""What a finished run leaves: the numbers, and that they are right."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

import vitlab
from tests.conftest import Train, checkpoint, on_test_split, summary, train_in
from vitlab.core.errors import UserError
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder


def test_reported_test_metrics_are_those_of_the_best_checkpoint(finished: Path) -> None:
    model = vitlab.load(finished)
    logits, labels = on_test_split(model)
    found = summary(finished)
    assert found["tested"] == "best checkpoint by validation accuracy"
    assert found["metrics"]["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = logits.argmax(1) == labels
    assert found["metrics"]["test/accuracy"] == pytest.approx(right.float().mean().item())
    for index, name in enumerate(model.classes):
        assert found["per_class"][name] == pytest.approx(right[labels == index].float().mean().item())
    best = max(read_metrics(RunFolder(finished)), key=lambda row: row["val/accuracy"])
    assert found["metrics"]["val/accuracy"] == pytest.approx(best["val/accuracy"])
    assert best["step"] == checkpoint(finished, "best")["global_step"] == 8, "not the last"


def test_summary_has_what_other_tools_rely_on(finished: Path) -> None:
    found = summary(finished)
    assert found["status"] == "finished"
    assert {"val/accuracy", "val/loss", "test/accuracy", "test/loss"} <= found["metrics"].keys()
    assert found["model"]["name"] == "vit_tiny"
    assert found["model"]["parameters"] == sum(p.numel() for p in vitlab.load(finished).parameters())
    assert found["model"]["flops_per_image"] > 2 * 16 * 16 * 3 * 16, "more than the patch projection"
    trained = found["train"]
    assert (trained["epochs"], trained["optimizer_steps"], trained["resumed_at"]) == (2, 16, [])
    assert trained["images_per_second"] > 0
    assert trained["wall_seconds"] > 0
    assert 2**28 < trained["peak_memory_bytes"]["host"] < 2**36, "torch alone takes a quarter of a GiB"
    assert trained["peak_memory_bytes"]["device"] is None
    assert found["seed"] == 0
    assert "model.dim=16" in found["overrides"]
    assert "torch" in found["versions"]
    assert {"device", "commit"} <= found.keys()
    columns = list(read_metrics(RunFolder(finished))[0])
    assert columns[:6] == ["epoch", "step", "train/loss", "train/accuracy", "val/loss", "val/accuracy"]


def test_without_validation_the_last_checkpoint_is_tested(train: Train) -> None:
    folder = train("data.val_size=0", "trainer.max_epochs=1")
    found = summary(folder)
    assert found["tested"] == "last checkpoint"
    assert not any(name.startswith("val/") for name in found["metrics"])
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    assert found["train"]["optimizer_steps"] == 10, "the hold-out is trained on"
    assert found["train"]["images_per_second"] is None, "ten steps are too few for a rate"
    said = (folder / "train.log").read_text()
    assert "summary" in said
    assert "\nfigures " not in said, "there are none"
    assert "\nwatch " not in said


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaves figures and TensorBoard's events: six optimizer steps of three batches each."""
    options = ["trainer.accumulate_grad_batches=3", "trainer.max_epochs=4", "trainer.log_every_n_steps=2"]
    folder = tmp_path_factory.mktemp("shown") / "run"
    return train_in(folder, *options, "callbacks.figures=true", "logger=tensorboard")


def test_figures_are_drawn(shown: Path, finished: Path) -> None:
    for name in ("history", "confusion_matrix", "predictions"):
        assert (shown / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert Image.open(shown / "figures" / "augmentations.png").size[0] > 1000
    (event,) = EventAccumulator(str(shown), size_guidance={IMAGES: 0}).Reload().Images("augmentations")
    assert event.width > 1000
    assert "\nfigures " in (shown / "train.log").read_text()
    assert not (finished / "figures").exists(), "with callbacks.figures=false"


def test_tensorboard_compares_runs(shown: Path) -> None:
    assert len(list(shown.glob("events.out.*"))) == 1
    events = EventAccumulator(str(shown)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/loss_step", "learning_rate", "val/accuracy", "test/accuracy"} <= tags
    assert {"hp/val_accuracy", "hp/test_accuracy", "hp/parameters", "hp/images_per_second"} <= tags
    assert "\nwatch " in (shown / "train.log").read_text()
    points = events.Scalars("train/loss_step")
    assert [p.step for p in points] == [1, 3, 5, 7, 9, 11]  # from 0, as of all of Lightning's
    assert all(1.5 < p.value < 3.5 for p in points), "ten classes start at ln 10 = 2.3, accumulated or not"
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"model.patch_size" in content
    assert b"model/tokenizer" in content
    assert b"optimizer.lr" in content


def test_a_checkpoint_is_plain_and_says_how_to_use_it(finished: Path) -> None:
    content = checkpoint(finished, "best")  # weights_only=True: no code
    assert not any("_orig_mod" in key for key in content["state_dict"])
    meta = content["vitlab"]
    assert meta["config"]["model"]["dim"] == 16
    assert len(meta["classes"]) == 10
    assert len(meta["mean"]) == len(meta["std"]) == 3
    assert meta["input_size"] == [16, 16]


def test_load_takes_raw_pixels_of_any_size(finished: Path) -> None:
    model = vitlab.load(finished)
    assert not model.training
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels.float() / 255))
    assert model(torch.rand(2, 3, 40, 24)).shape == (2, 10)


def test_load_says_what_is_wrong(finished: Path, tmp_path: Path) -> None:
    assert vitlab.load(finished / "config.yaml").classes
    (tmp_path / "notes.ckpt").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        vitlab.load(tmp_path / "notes.ckpt")
    with pytest.raises(UserError, match="no checkpoint"):
        vitlab.load(tmp_path / "nothing.ckpt")


def test_a_checkpoint_cannot_name_code_to_run(finished: Path, tmp_path: Path) -> None:
    content = checkpoint(finished)
    content["vitlab"]["config"]["model"] = {"_target_": "os.system", "command": f"touch {tmp_path}/owned"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"os\.system"):
        vitlab.load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


# Under an average that hardly moves too: a run is judged by its raw weights.
@pytest.mark.parametrize("ema", [[], ["callbacks.ema.decay=0.9999", "callbacks.ema.warmup=false"]])
def test_a_diverging_run_fails_and_keeps_the_weights_from_before(
    train: Train, tmp_path: Path, ema: list[str]
) -> None:
    options = ["optimizer=sgd", "optimizer.lr=900", "trainer.gradient_clip_val=null", "trainer.max_epochs=30"]
    with pytest.raises(UserError, match=r"diverged.*optimizer\.lr"):
        train(*options, *ema)
    folder = tmp_path / "run"
    assert summary(folder)["status"] == "failed"
    assert "diverged" in summary(folder)["error"]
    assert summary(folder)["error_kind"] == "diverged"
    for path in (folder / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(torch.isfinite(w).all() for w in weights)


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished: Path, train: Train) -> None:
    runs = finished, train(name="same"), train("seed=1", name="other")
    a, b, c = (checkpoint(folder)["state_dict"]["net.head.weight"] for folder in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
