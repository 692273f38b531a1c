"""The data module: the protocol of the splits, and Lightning taking its loaders as they are."""

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from tests.data.helpers import assert_same, config, decoded, image_tree
from vitlab.augment import Compose
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.data import decode as images_module
from vitlab.data.datamodule import ImageData

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"train": 40, "test": 20}


class FakeDataset:
    """Images whose first pixel is their place; remembers what was decoded."""

    name = "fake"
    classes = ("a", "b")
    channels = 3
    shape = (6, 6)
    on_disk = False

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

    def __init__(self):
        super().__init__()
        self.epochs = []

    def forward(self, images, targets, generator, epoch):
        self.epochs.append(epoch)
        noise = torch.randint(0, 256, images.shape, generator=generator)
        return noise.to(torch.uint8), targets * 0.5 + 0.25


class Probe(lightning.LightningModule):
    """A model that notes the batches it is shown."""

    def __init__(self, pixels=6 * 6):
        super().__init__()
        self.layer = nn.Linear(3 * pixels, 2)
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


def module(sizes=SIZES, dataset=None, stage=None, **changes) -> ImageData:
    """Return a data module, set up for ``stage`` if one is given."""
    options = {
        "augment": Compose(ops=[]),
        "batch_size": 8,
        "val_size": 10,
        "split_seed": 0,
        "normalization": "dataset",
        "input_size": (6, 6),
        "seed": 0,
        "num_classes": 2,
        "in_memory": "auto",
        "num_workers": None,
        "device": torch.device("cpu"),
        "processes": 1,
    }
    data = ImageData(dataset=dataset or FakeDataset(sizes), **options | changes)
    if stage:
        data.setup(stage)
    return data


def fit(tmp_path, data, model=None, ckpt_path=None, **options) -> tuple[Probe, lightning.Trainer]:
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
    trainer, model = lightning.Trainer(**defaults | options), model or Probe()
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model, trainer


def places(loader) -> list[int]:
    return sorted(int(i) for batch in loader for i in batch.images[: batch.valid, 0, 0, 0].tolist())


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_hold_out_and_the_training_images_are_the_training_split(in_memory):
    data = module(in_memory=in_memory, stage="fit")
    assert (data.num_train, data.num_val, data.num_test) == (30, 10, 20)
    held = places(data.val_dataloader())
    assert len(held) == 10
    trained = set(places(data.train_dataloader()))
    assert len(trained) == 24, "30 images in batches of 8"
    assert not trained & set(held)
    assert sum(int(batch.targets[: batch.valid].sum()) for batch in data.val_dataloader()) == 5
    assert len(data.train_dataloader()) == 3


def test_the_split_seed_alone_decides_the_hold_out():
    def held(**changes):
        data = module(**changes, stage="fit")
        return places(data.val_dataloader())

    assert held() == held(seed=5, batch_size=4)
    assert held() != held(split_seed=1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_statistics_are_those_of_the_images_trained_on(in_memory):
    data = module(in_memory=in_memory, stage="fit")
    held = set(places(data.val_dataloader()))
    images, _ = FakeDataset(SIZES).load("train")
    rest = images[[i for i in range(40) if i not in held]] / 255
    np.testing.assert_allclose(data.mean, rest.mean((0, 2, 3)))
    np.testing.assert_allclose(data.std, rest.std((0, 2, 3)))


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [
        ({"mean": [0, 0.2, 1], "std": [0.4, 0.5, 1]}, [0.0, 0.2, 1.0], [0.4, 0.5, 1.0]),
        ("half", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ],
)
def test_given_statistics_need_no_images(normalization, mean, std):
    data = module(normalization=normalization, stage="test")
    assert (data.mean, data.std) == (mean, std)
    assert data.dataset.loaded == []


def test_no_hold_out_means_no_validation_but_by_a_set_of_its_own():
    assert module(val_size=0, stage="fit").val_dataloader() == []
    data = module(sizes=SIZES | {"val": 6}, stage="fit")
    assert (data.num_train, data.num_val) == (40, 6)
    assert places(data.val_dataloader()) == list(range(6))


@pytest.mark.parametrize("own", [True, False])
def test_the_first_batches_of_an_evaluation_are_a_sample_of_all(own):
    """Folders list class after class, and trainer.limit_val_batches=0.1 must not see one class alone."""
    dataset = FakeDataset({"train": 400, "test": 200} | ({"val": 200} if own else {}))
    load = dataset.load
    dataset.load = lambda split: (load(split)[0], np.sort(load(split)[1]))
    data = module(dataset=dataset, val_size=200, stage="fit")
    for loader in (data.val_dataloader(), data.test_dataloader()):
        labels = torch.cat([batch.targets for batch in loader][:5])  # 40 of 200
        assert 10 < int(labels.sum()) < 30
        again = [batch.targets for batch in loader]
        assert torch.equal(labels, torch.cat(again[:5])), "the same for every run and epoch"
        assert sum(int(t.sum()) for t in again) == 100


def test_setup_twice_decodes_once():
    data = module(stage="fit")
    data.setup("fit")
    data.setup("validate")
    assert data.dataset.loaded == ["train"]


def test_too_few_images_for_one_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size 64 is more than the 30"):
        module(batch_size=64, stage="fit")


def test_lightning_trains_and_the_test_images_wait_for_their_turn(tmp_path):
    data = module(augment=Tag(), input_size=(4, 8))
    model, trainer = fit(tmp_path, data, Probe(4 * 8))
    assert data.dataset.loaded == ["train"]
    assert data.augment.epochs == [0, 0, 0, 1, 1, 1]
    shown = model.shown["train"]
    assert [(b.epoch, b.index) for b in shown] == [(e, i) for e in range(2) for i in range(3)]
    for batch in [*shown, *model.shown["val"]]:
        assert batch.images.shape == (8, 3, 4, 8)
        assert batch.images.dtype == torch.float32
        assert batch.targets.shape == (8, 2)
    assert shown[0].targets.unique().tolist() == [0.25, 0.75], "soft targets come through"
    assert model.shown["val"][0].targets.unique().tolist() == [0, 1], "training alone is augmented"
    # Chance is a function of the place in the run: another run repeats it, another place does not.
    again, _ = fit(tmp_path, module(augment=Tag(), input_size=(4, 8)), Probe(4 * 8), max_epochs=1)
    assert torch.equal(again.shown["train"][1].images, shown[1].images)
    assert len({batch.images.numpy().tobytes() for batch in shown}) == 6

    trainer.test(model, data)
    assert data.dataset.loaded == ["train", "test"]
    assert sum(batch.valid for batch in model.shown["test"]) == 20


@pytest.mark.parametrize("stream", [{}, {"in_memory": False}, {"in_memory": False, "num_workers": 2}])
def test_a_run_resumed_in_mid_epoch_sees_the_rest_of_the_epoch(tmp_path, recwarn, stream):
    whole, _ = fit(tmp_path, module(augment=Tag()), max_epochs=3)

    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "five.ckpt")

    fit(tmp_path, module(augment=Tag(), **stream), max_epochs=3, callbacks=[Save()])
    checkpoint = torch.load(tmp_path / "five.ckpt", weights_only=True)
    loader = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"epoch": 1, "batch": 2}]
    again = module(augment=Tag(), **stream)
    rest, _ = fit(tmp_path, again, ckpt_path=tmp_path / "five.ckpt", max_epochs=3)
    assert [(b.epoch, b.index) for b in rest.shown["train"]] == [(1, 2), (2, 0), (2, 1), (2, 2)]
    assert_same(whole.shown["train"][5:], rest.shown["train"])
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


def test_overfitting_repeats_the_same_batches(tmp_path):
    model, _ = fit(tmp_path, module(val_size=0), overfit_batches=2)
    assert_same(model.shown["train"][:2], model.shown["train"][2:])


@pytest.mark.parametrize("num_workers", [None, 2])
def test_streamed_batches_are_those_in_memory(tmp_path, num_workers):
    seen = []
    for options in ({"in_memory": True}, {"in_memory": False, "num_workers": num_workers}):
        data = module(augment=Tag(), **options)
        model, trainer = fit(tmp_path, data)
        assert data.dataset.loaded == ["train"]
        trainer.test(model, data)
        seen.append([batch for stage in model.shown.values() for batch in stage])
    assert len(seen[0]) == 2 * (3 + 2) + 3
    assert_same(*seen)
    assert [batch[2:] for batch in seen[0]] == [batch[2:] for batch in seen[1]]


def test_a_data_set_lies_in_memory_once_and_at_its_own_size():
    dataset = FakeDataset(SIZES)
    pixels, labels = dataset.load("train")
    dataset.load = lambda split: (pixels, labels)
    data = module(dataset=dataset, input_size=(224, 224), stage="fit")
    train, val = data.train_dataloader(), data.val_dataloader()
    for loader in (train, val):
        assert loader.reader.images.data_ptr() == pixels.ctypes.data, "the array of the dataset itself"
        assert loader.reader.images.shape == (40, 3, 6, 6)
    batch = data.on_after_batch_transfer(next(iter(train)), 0)
    assert batch.images.shape == (8, 3, 224, 224), "enlarged on its way to the model"


@pytest.mark.parametrize(
    ("free", "in_memory"), [(2 * 60 * 108, True), (2 * 60 * 108 - 1, False), (None, True)]
)
def test_auto_asks_for_half_of_what_is_free(monkeypatch, free, in_memory):
    monkeypatch.setattr("vitlab.data.datamodule.available_memory", lambda: free)
    assert module().in_memory is in_memory, "60 images of 3 x 6 x 6"
    if free:
        assert not module(processes=2).in_memory, "a tensor for each process"
        with pytest.raises(UserError, match=r"data\.in_memory=true"):
            module(processes=3, in_memory=True)


def test_what_is_said_about_the_place_of_the_images(monkeypatch):
    monkeypatch.setattr("vitlab.data.datamodule.available_memory", lambda: 2**30)
    monkeypatch.setenv("VITLAB_CORES", "6")
    assert module().describe_storage() == "in memory on cpu (0 MiB of 1.0 GiB free; auto)"
    streamed = module(in_memory=False)
    assert streamed.describe_storage().startswith("streamed in the training process (")
    assert streamed.notes == []
    assert module(in_memory=False, num_workers=3).describe_storage().startswith("streamed by 3 worker(s) (")
    assert "num_workers has no effect" in module(num_workers=3).notes[0]
    dataset = FakeDataset(SIZES)
    dataset.on_disk = True
    files = module(dataset=dataset, in_memory=False, processes=2)
    assert files.num_workers == 3, "a core each, shared by the processes"
    assert "measured at every start" in files.notes[0]
    monkeypatch.setenv("VITLAB_CORES", "200")
    assert module(dataset=dataset, in_memory=False).num_workers == 16


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_for_figures(in_memory):
    data = module(in_memory=in_memory, stage="fit")
    images, labels = data.train_images(5)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    found = images[:, 0, 0, 0].tolist()
    assert [p % 2 for p in found] == [0, 1, 0, 1, 0]
    assert not set(found) & set(places(data.val_dataloader())), "none that is held out"
    assert len(data.train_images(100)[0]) == 30
    assert data.dataset.loaded == ["train"]
    images, labels = data.read("test", torch.tensor([7, 2]))
    assert images[:, 0, 0, 0].tolist() == [7, 2]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("cache", ["cache", None])
def test_files_are_decoded_once_and_those_of_the_test_last(tmp_path, monkeypatch, in_memory, cache):
    root = image_tree(tmp_path / "set", {"train/a": 20, "train/b": 20, "test/a": 10, "test/b": 10})
    reads = []
    real = images_module.read_image
    monkeypatch.setattr(images_module, "read_image", lambda path, *a: reads.append(path) or real(path, *a))
    options = {"root": str(root), "cache": cache and str(tmp_path / cache), "image_size": 6}
    dataset = datasets.build(config("image_folder", **options, batch_size=8, val_size=10))
    data = module(dataset=dataset, in_memory=in_memory, num_workers=0)
    assert reads == []
    model, trainer = fit(tmp_path, data)
    assert {path.parts[-3] for path in reads} == {"train"}
    if in_memory or cache:
        assert len(reads) == 40
    if cache:
        assert len(list((tmp_path / cache).glob("*.npy"))) == 1, "the hold-out lies in the same file"
    trainer.test(model, data)
    if in_memory or cache:
        assert len(reads) == 60
    array = FakeDataset(SIZES)
    array.load = lambda split: decoded(dataset, split)
    expected, _ = fit(tmp_path, module(dataset=array))
    assert_same(expected.shown["train"], model.shown["train"])
