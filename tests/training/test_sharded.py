"""``trainer=fsdp``: a network in pieces on two processes learns what a whole one learns."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.conftest import (
    TINY,
    Train,
    checkpoint,
    on_two,
    same_weights,
    slow,
    started,
    summary,
    verb,
    wait_for,
)
from tests.models.helpers import build, small_vit
from vitlab.core.errors import UserError
from vitlab.models.sharding import check_shardable, shard

# Layer decay makes groups whose parameters stand in another order than the network's; weights lie nearer to
# each other after SGD than after Adam, which divides rounding by itself.
OPTIONS = [
    *(option for option in TINY if option != "model.dropout=0.1"),
    *("augment=none", "model.dropout=0", "data.val_size=17", "optimizer=sgd", "optimizer.lr=0.1"),
    *("optimizer.layer_decay=0.7", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5"),
]
SHARDED = "trainer.strategy=fsdp"


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two devices, of which this process is the first and the other does nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_each_of_two_devices_holds_half(mesh: DeviceMesh) -> None:
    net = small_vit()
    whole = sum(parameter.numel() for parameter in net.parameters())
    shard(net, mesh)
    pieces = [parameter.to_local() for parameter in net.parameters() if isinstance(parameter, DTensor)]
    assert len(pieces) == len(list(net.parameters()))
    assert sum(piece.numel() for piece in pieces) == pytest.approx(
        whole / 2, rel=0.05
    )  # some divide unevenly


@pytest.mark.parametrize(
    ("model", "said"), [("resnet18", "ViT"), ("vit_convstem_tiny", r"BatchNorm.*model\.tokenizer\.norm")]
)
def test_a_network_that_cannot_be_shared_out(model: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}.*strategy=ddp"):
        check_shardable(build(f"model={model}"))


def _assert_close(one: Path, other: Path, atol: float = 1e-6) -> None:
    """Compare two runs: weights, the optimizer's state by its numbers, test metrics."""
    a, b = checkpoint(one), checkpoint(other)
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=1e-4, atol=atol)
    (a,), (b,) = a["optimizer_states"], b["optimizer_states"]
    torch.testing.assert_close(a["state"], b["state"], rtol=1e-3, atol=atol)
    groups = [[(group["name"], group["params"]) for group in state["param_groups"]] for state in (a, b)]
    assert groups[0] == groups[1]
    metrics = [summary(folder)["metrics"] for folder in (one, other)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


FROZEN = ("task.freeze=first_2",)
MUON = ("optimizer=muon", "optimizer.lr=0.01")  # which rounds to bfloat16 on the way
LIBRARY = (
    *("model=timm_vit_b16", "model.name=vit_tiny_patch16_224", "model.image_size=16"),
    "+model.kwargs.patch_size=8",
)


@pytest.mark.parametrize(
    "options", [(), slow(FROZEN), slow(LIBRARY), slow(("compile=true",)), slow(MUON)], ids=str
)
def test_pieces_train_as_a_whole(train: Train, tmp_path: Path, options: tuple[str, ...]) -> None:
    given = tuple(option.partition("=")[0] for option in options)
    own = [*(option for option in OPTIONS if not option.startswith(given)), *options]
    ended = verb(*on_two(*own), SHARDED, "callbacks.figures=true", f"hydra.run.dir={tmp_path}/pieces")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "pieces" / "figures" / "predictions.png").exists()
    atol = 1e-3 if options == MUON else 1e-6
    _assert_close(train(name="whole", base=own), tmp_path / "pieces", atol)


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "ended"), [("fsdp", "fsdp"), ("fsdp", "auto"), ("auto", "fsdp")])
def test_a_run_goes_on_in_pieces_or_whole(tmp_path: Path, begun: str, ended: str) -> None:
    options = [*OPTIONS, "trainer.max_epochs=12"]
    commands = {"fsdp": [*on_two(*options), SHARDED], "auto": options}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert verb(*commands[begun], f"hydra.run.dir={whole}").returncode == 0
    with started(*commands[begun], f"hydra.run.dir={stopped}") as process:
        wait_for((stopped / "checkpoints" / "last.ckpt").exists)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert summary(stopped)["status"] == "interrupted"
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    config["trainer"] |= {"strategy": ended, "devices": 2 if ended == "fsdp" else 1}
    (stopped / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    resumed = verb(f"resume={stopped}")
    assert resumed.returncode == 0, resumed.stderr
    _assert_close(whole, stopped)
    if begun == ended:
        assert same_weights(whole, stopped)
