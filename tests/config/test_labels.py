"""What sets runs apart is said in a few words."""

from vitlab.config.labels import label, shorten_keys


def test_keys_are_shown_without_their_group() -> None:
    short = {
        "model.depth": "model.depth",
        "task.depth": "task.depth",
        "model.patch_size": "patch_size",
        "callbacks.ema.decay": "ema.decay",
        "model/tokenizer": "tokenizer",
        "data.seed": "data.seed",
        "seed": "seed",
    }
    assert shorten_keys(short) == short


def test_a_label_has_what_was_swept_as_short_as_it_stays_clear() -> None:
    overrides = ["data=shapes", "model.patch_size=4", "seed=1"]
    assert label(overrides, ["seed", "model.patch_size"]) == "patch_size=4 seed=1"
    assert label(["model.tokenizer.norm=batch"], ["model.tokenizer.norm"]) == "tokenizer.norm=batch"
    alike = ["model.dropout", "task.dropout"]
    assert label(["model.dropout=0.1", "task.dropout=0"], alike) == "model.dropout=0.1 task.dropout=0"
