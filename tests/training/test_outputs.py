"""What a finished run leaves: the numbers, and that they are right."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vitlab
from tests.conftest import checkpoint, summary
from vitlab.core.errors import UserError
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.data import datasets

Train = Callable[..., Path]


def test_reported_test_metrics_are_those_of_the_best_checkpoint(train: Train) -> None:
    # 41 test images in batches of 8: the last batch has one real row.
    folder = train("data.num_test=41", "trainer.max_epochs=3")
    model = vitlab.load(folder)
    images, labels = (torch.from_numpy(a) for a in datasets.build(model.config["data"]).load("test"))
    with torch.no_grad():
        logits = model(images)
    found = summary(folder)
    assert found["tested"] == "best checkpoint by validation accuracy"
    assert found["metrics"]["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = logits.argmax(1) == labels
    assert found["metrics"]["test/accuracy"] == pytest.approx(right.float().mean().item())
    for index, name in enumerate(model.classes):
        assert found["per_class"][name] == pytest.approx(right[labels == index].float().mean().item())
    best = max(row["val/accuracy"] for row in read_metrics(RunFolder(folder)))
    assert found["metrics"]["val/accuracy"] == pytest.approx(best)


def test_summary_has_what_other_tools_rely_on(train: Train) -> None:
    folder = train()
    found = summary(folder)
    assert found["status"] == "finished"
    assert {"val/accuracy", "val/loss", "test/accuracy", "test/loss"} <= found["metrics"].keys()
    assert found["model"]["name"] == "vit_tiny"
    assert found["model"]["parameters"] == sum(p.numel() for p in vitlab.load(folder).parameters())
    assert found["model"]["flops_per_image"] > 2 * 16 * 16 * 3 * 16, "more than the patch projection"
    train_part = found["train"]
    assert (train_part["epochs"], train_part["optimizer_steps"], train_part["resumed_at"]) == (
        2,
        16,
        [],
    )
    assert train_part["images_per_second"] > 0
    assert train_part["wall_seconds"] > 0
    assert 2**28 < train_part["peak_memory_bytes"]["host"] < 2**36, "torch alone takes a quarter of a GiB"
    assert train_part["peak_memory_bytes"]["device"] is None
    assert found["seed"] == 0
    assert "model.dim=16" in found["overrides"]
    assert "torch" in found["versions"]
    assert {"device", "commit"} <= found.keys()
    columns = list(read_metrics(RunFolder(folder))[0])
    assert columns[:6] == [
        "epoch",
        "step",
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
    ]


def test_ten_steps_are_too_few_for_a_rate(train: Train) -> None:
    assert summary(train("trainer.max_epochs=1"))["train"]["images_per_second"] is None


def test_without_validation_the_last_checkpoint_is_tested(train: Train) -> None:
    folder = train("data.val_size=0")
    found = summary(folder)
    assert found["tested"] == "last checkpoint"
    assert not any(name.startswith("val/") for name in found["metrics"])
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    assert found["train"]["optimizer_steps"] == 20, "the hold-out is trained on"
    said = (folder / "train.log").read_text()
    assert "summary" in said
    assert "\nfigures " not in said, "there are none"
    assert "\nwatch " not in said


def test_figures_are_drawn(train: Train) -> None:
    folder = train("callbacks.figures=true", "trainer.max_epochs=1")
    for name in ("history", "confusion_matrix", "predictions"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "\nfigures " in (folder / "train.log").read_text()


def test_a_checkpoint_is_plain_and_says_how_to_use_it(train: Train) -> None:
    content = checkpoint(train(), "best")  # weights_only=True: no code
    assert not any("_orig_mod" in key for key in content["state_dict"])
    meta = content["vitlab"]
    assert meta["config"]["model"]["dim"] == 16
    assert len(meta["classes"]) == 10
    assert len(meta["mean"]) == len(meta["std"]) == 3
    assert meta["input_size"] == [16, 16]


def test_load_takes_raw_pixels_of_any_size(train: Train) -> None:
    model = vitlab.load(train())
    assert not model.training
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels.float() / 255))
    assert model(torch.rand(2, 3, 40, 24)).shape == (2, 10)


def test_a_checkpoint_cannot_name_code_to_run(train: Train, tmp_path: Path) -> None:
    content = checkpoint(train())
    content["vitlab"]["config"]["model"] = {
        "_target_": "os.system",
        "command": f"touch {tmp_path}/owned",
    }
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"os\.system"):
        vitlab.load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


def test_tensorboard_compares_runs(train: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train("logger=tensorboard", "trainer.log_every_n_steps=4")
    assert len(list(folder.glob("events.out.*"))) == 1
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/loss_step",
        "learning_rate",
        "val/accuracy",
        "test/accuracy",
    } <= tags
    assert {"hp/val_accuracy", "hp/test_accuracy", "hp/parameters", "hp/images_per_second"} <= tags
    assert "\nwatch " in (folder / "train.log").read_text()
    assert [e.step for e in events.Scalars("train/loss_step")] == [4, 8, 12, 16]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"model.patch_size" in content
    assert b"model/tokenizer" in content
    assert b"optimizer.lr" in content


def test_a_diverging_run_fails_and_keeps_the_weights_from_before(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged.*optimizer\.lr"):
        train(
            "optimizer=sgd",
            "optimizer.lr=900",
            "trainer.gradient_clip_val=null",
            "trainer.max_epochs=30",
        )
    folder = tmp_path / "run"
    assert summary(folder)["status"] == "failed"
    assert "diverged" in summary(folder)["error"]
    assert summary(folder)["error_kind"] == "diverged"
    for path in (folder / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(torch.isfinite(w).all() for w in weights)


def test_the_same_seed_gives_the_same_run_and_another_does_not(train: Train) -> None:
    one, same, other = (train(f"seed={seed}", name=name) for seed, name in ((1, "a"), (1, "b"), (2, "c")))
    a, b, c = (checkpoint(f)["state_dict"]["net.head.weight"] for f in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_learning_rate_follows_the_schedule_under_accumulation(train: Train) -> None:
    rates = []
    for accumulate, batch in ((1, 16), (2, 8)):  # four steps an epoch either way
        folder = train(
            f"data.batch_size={batch}",
            f"trainer.accumulate_grad_batches={accumulate}",
            name=f"{accumulate}",
        )
        rates.append([row["learning_rate"] for row in read_metrics(RunFolder(folder))])
    assert rates[0] == pytest.approx(rates[1])
    # 8 steps, 5 % of which is no warmup: the last step stands at 7/8 of half a cosine.
    assert rates[0][-1] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
