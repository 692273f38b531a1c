"""The data module: the protocol of the splits, and Lightning taking its loaders as they are."""

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from vitlab.augment import Compose
from vitlab.data.datamodule import ImageData
from vitlab.errors import UserError

SIZES = {"train": 40, "test": 20}


class FakeSource:
    """Images whose first pixel is their place; remembers what was decoded."""

    name = "fake"
    classes = ("a", "b")
    channels = 3

    def __init__(self, sizes):
        self.sizes = sizes
        self.notes = []
        self.loaded = []

    def load(self, split):
        self.loaded.append(split)
        number = self.sizes[split]
        rng = np.random.default_rng(len(split))
        images = rng.integers(0, 256, (number, 3, 6, 6), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(number)
        return images, np.arange(number) % 2


class Tag(nn.Module):
    """An augmentation that writes what it drew into the image, for the test to read."""

    def forward(self, images, targets, generator):
        noise = torch.randint(0, 256, images.shape, generator=generator, device=images.device)
        return noise.to(torch.uint8), targets * 0.5 + 0.25


class Probe(lightning.LightningModule):
    """A model that notes the batches it is shown."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 6 * 6, 2)
        self.shown = {"train": [], "val": [], "test": []}

    def note(self, stage, batch):
        self.shown[stage].append(batch._replace(images=batch.images.clone()))
        return nn.functional.cross_entropy(self.layer(batch.images.flatten(1)), batch.targets)

    def training_step(self, batch, batch_idx):
        return self.note("train", batch)

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def module(sizes=SIZES, source=None, **changes) -> ImageData:
    options = {
        "augment": Compose(ops={}),
        "batch_size": 8,
        "val_size": 10,
        "split_seed": 0,
        "normalization": "dataset",
        "input_size": 6,
        "seed": 0,
        "num_classes": 2,
    }
    return ImageData(source=source or FakeSource(sizes), **options | changes)


def trainer(tmp_path, **options) -> lightning.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
    }
    return lightning.Trainer(**defaults | options)


def places(data, loader) -> list[int]:
    return sorted(int(i) for batch in loader for i in batch.images[: batch.valid, 0, 0, 0].tolist())


def test_the_hold_out_and_the_training_images_are_the_training_split():
    data = module()
    data.setup("fit")
    assert (data.num_train, data.num_val, data.num_test) == (30, 10, 20)
    held = places(data, data.val_dataloader())
    assert len(held) == 10
    trained = set(places(data, data.train_dataloader()))
    assert len(trained) == 24, "30 images in batches of 8"
    assert not trained & set(held)
    assert sorted(int(batch.targets.sum()) for batch in data.val_dataloader()) == [1, 4]
    assert data.batches_per_epoch() == len(data.train_dataloader()) == 3


def test_the_split_seed_alone_decides_the_hold_out():
    def held(**changes):
        data = module(**changes)
        data.setup("fit")
        return places(data, data.val_dataloader())

    assert held() == held(seed=5, batch_size=4)
    assert held() != held(split_seed=1)


def test_the_statistics_are_those_of_the_images_trained_on():
    data = module()
    data.setup("fit")
    held = set(places(data, data.val_dataloader()))
    images, _ = FakeSource(SIZES).load("train")
    rest = images[[i for i in range(40) if i not in held]] / 255
    np.testing.assert_allclose(data.mean, rest.mean((0, 2, 3)))
    np.testing.assert_allclose(data.std, rest.std((0, 2, 3)))
    given = module(normalization={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    given.setup("test")
    assert (given.mean, given.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert given.source.loaded == [], "given values need no images"


def test_no_hold_out_means_no_validation():
    data = module(val_size=0)
    data.setup("fit")
    assert data.num_train == 40
    assert data.val_dataloader() == []


def test_a_validation_set_of_its_own_is_used():
    data = module(sizes=SIZES | {"val": 6})
    data.setup("fit")
    assert (data.num_train, data.num_val) == (40, 6)
    assert places(data, data.val_dataloader()) == list(range(6))


def test_setup_twice_decodes_once():
    data = module()
    data.setup("fit")
    data.setup("fit")
    data.setup("validate")
    assert data.source.loaded == ["train"]


def test_too_few_images_for_one_batch():
    data = module(batch_size=64)
    data.setup("fit")
    with pytest.raises(UserError, match="batch_size=64"):
        data.train_dataloader()


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_the_test_images_wait_for_their_turn(tmp_path):
    data, model = module(augment=Tag(), input_size=[4, 8]), Probe()
    model.layer = nn.Linear(3 * 4 * 8, 2)
    fit = trainer(tmp_path)
    fit.fit(model, data)
    assert data.source.loaded == ["train"]
    shown = model.shown["train"]
    assert [(b.epoch, b.index) for b in shown] == [(e, i) for e in range(2) for i in range(3)]
    for batch in [*shown, *model.shown["val"]]:
        assert batch.images.shape == (8, 3, 4, 8)
        assert batch.images.dtype == torch.float32
        assert batch.targets.shape == (8, 2)
    assert shown[0].targets.unique().tolist() == [0.25, 0.75], "soft targets come through"
    assert model.shown["val"][0].targets.unique().tolist() == [0, 1], "training alone is augmented"
    # Chance is a function of the place in the run: another run repeats it, another place does not.
    again = Probe()
    again.layer = nn.Linear(3 * 4 * 8, 2)
    trainer(tmp_path, max_epochs=1).fit(again, module(augment=Tag(), input_size=[4, 8]))
    assert torch.equal(again.shown["train"][1].images, shown[1].images)
    assert len({batch.images.numpy().tobytes() for batch in shown}) == 6

    fit.test(model, data)
    assert data.source.loaded == ["train", "test"]
    assert sum(batch.valid for batch in model.shown["test"]) == 20


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_in_mid_epoch_sees_the_rest_of_the_epoch(tmp_path, recwarn):
    whole = Probe()
    trainer(tmp_path, max_epochs=3).fit(whole, module(augment=Tag()))

    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "five.ckpt")

    trainer(tmp_path, max_epochs=3, callbacks=[Save()]).fit(Probe(), module(augment=Tag()))
    rest = Probe()
    trainer(tmp_path, max_epochs=3).fit(rest, module(augment=Tag()), ckpt_path=tmp_path / "five.ckpt")
    expected = whole.shown["train"][5:]
    assert [(b.epoch, b.index) for b in rest.shown["train"]] == [(1, 2), (2, 0), (2, 1), (2, 2)]
    for a, b in zip(expected, rest.shown["train"], strict=True):
        assert torch.equal(a.images, b.images)
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


@pytest.mark.filterwarnings("ignore")
def test_overfitting_repeats_the_same_batches(tmp_path):
    model = Probe()
    trainer(tmp_path, overfit_batches=2).fit(model, module(val_size=0))
    first, second = model.shown["train"][:2], model.shown["train"][2:]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
