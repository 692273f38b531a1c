"""What is no longer finite, memory that runs out, a GPU that is gone, and a time that is up."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT, TINY, Train, checkpoint, on_two, summary, verb
from tests.data.helpers import image_tree
from tests.training.test_faults import OFTEN
from tests.training.test_resume import assert_alike
from vitlab.core.batch import Batch
from vitlab.core.errors import Diverged, UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import PARENT
from vitlab.core.slurm import requeue
from vitlab.data import datasets
from vitlab.data.datamodule import ImageData
from vitlab.tasks.classify import Classify
from vitlab.training.faults import memory_problem
from vitlab.training.run import run

Bad = Callable[[Batch], bool]


@pytest.fixture
def broken_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[Tensor]]:
    """Make a pixel of the first image of a micro-batch infinite; return the images that were read for it."""

    def break_at(epoch: int, index: int) -> list[Tensor]:
        seen: list[Tensor] = []
        real = ImageData.on_after_batch_transfer

        def transfer(self: ImageData, batch: Batch, dataloader_idx: int) -> Batch:
            made = real(self, batch, dataloader_idx)
            if self.trainer.training and (batch.epoch, batch.index) == (epoch, index):
                seen.append(batch.images)
                made.images[0, 0, 0, 0] = torch.inf
            return made

        monkeypatch.setattr(ImageData, "on_after_batch_transfer", transfer)
        return seen

    return break_at


def assert_finite(folder: Path) -> None:
    paths = list((folder / "checkpoints").glob("*.ckpt"))
    assert paths
    for path in paths:
        state = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in state), path


def nonfinite(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "nonfinite.json").read_text())


# numbers


def test_a_loss_that_is_not_finite_is_found_later_and_named_by_its_step_and_its_images(
    train: Train, tmp_path: Path, broken_batch: Callable[[int, int], list[Tensor]]
) -> None:
    seen = broken_batch(1, 2)
    with pytest.raises(
        Diverged, match=r"loss of optimizer step 11 is nan \(epoch 2, learning rate 0\.000"
    ) as e:
        train("trainer.log_every_n_steps=2")
    folder = tmp_path / "run"
    assert "optimizer.lr (0.001)" in str(e.value)
    assert f"model.checkpoint_path={folder}" in str(e.value)
    assert summary(folder)["train"]["optimizer_steps"] == 14, "sent at 12, read at 14"
    found = nonfinite(folder)
    assert [found[key] for key in ("not_finite", "step", "epoch", "batch")] == ["loss", 11, 2, 2]
    before, bad = found["batches"]
    assert [before["step"], bad["step"], bad["loss"]] == [10, 11, "nan"]
    assert isinstance(before["loss"], float)
    images, _ = datasets.build(RunFolder(folder).read_config()["data"]).load("train")
    assert torch.equal(torch.as_tensor(images[bad["indices"]]), seen[0])
    assert_finite(folder)
    assert checkpoint(folder)["global_step"] == 8


def test_a_run_that_diverged_resumes_to_the_same_end_and_past_it_where_the_machine_was_at_fault(
    finished: Path, train: Train, tmp_path: Path, broken_batch: Callable[[int, int], list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(ImageData, "on_after_batch_transfer", ImageData.on_after_batch_transfer)
        broken_batch(0, 4)
        for attempt in (lambda: train(OFTEN), lambda: run(RunFolder(tmp_path / "run"))):
            with pytest.raises(Diverged, match="the loss of optimizer step 5 is nan"):
                attempt()
            assert checkpoint(tmp_path / "run")["global_step"] == 4
            assert_finite(tmp_path / "run")
    run(RunFolder(tmp_path / "run"))
    assert_alike(finished, tmp_path / "run")


def test_weights_that_a_step_made_infinite_are_not_saved(train: Train, tmp_path: Path) -> None:
    root = image_tree(tmp_path / "photos", {"cat": 12, "dog": 12})
    options = [
        f"data.root={root}",
        "data.cache=null",
        "data.val_size=8",
        "optimizer=sgd",
        "trainer.accumulate_grad_batches=2",
    ]
    base = [o for o in TINY if not o.startswith(("data=", "data.num_", "data.val_size"))]
    options += ["optimizer.lr=999", "trainer.gradient_clip_val=null"]
    with pytest.raises(Diverged, match=r"gradient_clip_val=1\.0") as error:
        train(OFTEN, *options, "trainer.max_epochs=60", base=["data=image_folder", *base])
    folder = tmp_path / "run"
    found = nonfinite(folder)
    assert f"optimizer step {found['step']}" in str(error.value)
    assert checkpoint(folder)["global_step"] == found["step"] - 1
    assert_finite(folder)
    listed = [name for batch in found["batches"] for name in batch["files"]]
    assert listed
    assert all(Path(name).parent.parent == root and Path(name).is_file() for name in listed)
    assert {batch["step"] for batch in found["batches"]} <= {found["step"] - 1, found["step"]}


BREAK_RANK_1 = """
import os
if os.environ.get("LOCAL_RANK") == "1":
    import torch
    from vitlab.data.datamodule import ImageData
    real = ImageData.on_after_batch_transfer
    def transfer(self, batch, dataloader_idx):
        made = real(self, batch, dataloader_idx)
        if self.trainer.training and (batch.epoch, batch.index) == (0, 3):
            made.images[0] = torch.inf
        return made
    ImageData.on_after_batch_transfer = transfer
"""


@pytest.mark.slow
def test_the_rank_whose_loss_was_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAK_RANK_1)
    folder = tmp_path / "run"
    options = ["trainer.log_every_n_steps=1", f"hydra.run.dir={folder}"]
    ended = verb(*on_two(*TINY), *options, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert ended.returncode == 1
    assert re.search(
        r"error: training diverged: the loss of optimizer step 4 is nan .*rank 1\)", ended.stderr
    )
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.stderr.count("error:") == 1, ended.stderr
    found = nonfinite(folder)
    assert [found["rank"], len(found["batches"][-1]["indices"])] == [1, 4]
    assert summary(folder)["error_kind"] == "diverged"


# memory and devices


def fail_at(patch: pytest.MonkeyPatch, batch: int, error: Exception) -> None:
    """Let the n-th micro-batch that is trained on raise ``error``."""
    real, count = Classify.training_step, 0

    def step(self: Classify, *given: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == batch:
            raise error
        return real(self, *given)

    patch.setattr(Classify, "training_step", step)


def test_where_a_gpu_has_no_more_memory_the_overrides_that_train_the_same_are_said(
    train: Train, tmp_path: Path
) -> None:
    cnn = ["model=resnet18", "model.width=4", "model.blocks=[1]", "data.num_train=85"]
    base = [o for o in TINY if not o.startswith(("model", "data.num_train"))]
    said: list[str] = []
    small = [o for o in TINY if o != "data.batch_size=8"]
    for options in ([*base, *cnn], [*small, "data.batch_size=1"]):
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
            with pytest.raises(UserError) as error:
                train(base=options, name=f"{len(said)}")
        said.append(str(error.value))
        assert "(optimizer step 3: CUDA out of memory. Tried to allocate 2.00 GiB.)" in said[-1]
    assert "8 images of 16 × 16 pixels in 32-true" in said[0]
    assert "data.batch_size=4 trainer.accumulate_grad_batches=2 needs less and trains the same" in said[0]
    assert "in 18 optimizer steps for 16 but for BatchNorm, whose statistics are then of 4 images" in said[0]
    assert "cannot be smaller" in said[1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\n[enforce fail at alloc.cpp:127] err == 0. "
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out_is_known_by_whoever_says_it(error: Exception) -> None:
    assert re.match("MemoryError|std::bad|.*Cannot alloc|DefaultCPU|CUDA error", memory_problem(error) or "")
    assert memory_problem(ValueError("out of memory")) is None
    assert memory_problem(RuntimeError("shapes differ")) is None


LIMITED = """
import resource, sys
from vitlab.core.cli import finish
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run
import torch
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(finish(lambda: run(RunFolder(sys.argv[1]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["data.batch_size=4000", "model.dim=256"],
            r"\(optimizer step 1: .*allocate.*4,000 images of 16 × 16 .*data\.batch_size=2000 "
            r"trainer\.accumulate_grad_batches=2",
        ),
        (
            ["data.image_size=256"],
            r"need 753 MiB of memory, and 3\d\d MiB is available\. Set a smaller data\.im",
        ),
    ],
)
def test_under_ulimit_v_a_run_ends_in_one_sentence(fresh: Train, options: list[str], said: str) -> None:
    folder = fresh("data.num_train=4016", "data.in_memory=false", *options)
    command = [sys.executable, "-c", LIMITED, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 1, ended.stderr
    assert re.search(said, ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert summary(folder)["status"] == "failed"


def test_a_gpu_that_fails_leaves_a_run_that_can_go_on(
    finished: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …")

    def ask(kind: str) -> None:
        raise gone  # a GPU that has failed says so whatever it is asked

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("vitlab.core.hardware.measure_peak_memory", ask)
        fail_at(patch, 5, gone)
        with pytest.raises(
            UserError, match=r"GPU failed at optimizer step 5 \(CUDA error: unspecified launch"
        ):
            train(OFTEN)
    assert summary(folder)["status"] == "failed"
    assert f"resume={folder}" in summary(folder)["error"]
    assert summary(folder)["train"]["optimizer_steps"] == 4
    assert checkpoint(folder)["global_step"] == 4
    run(RunFolder(folder))
    assert_alike(finished, folder)


def test_an_assertion_on_a_gpu_is_a_fault_and_keeps_its_traceback(train: Train) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, 2, torch.AcceleratorError("CUDA error: device-side assert triggered"))
        with pytest.raises(torch.AcceleratorError):
            train()


# SLURM


ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
REQUEUE = "callbacks.checkpoint.requeue=true"


def test_slurms_warning_puts_a_job_back_into_the_queue_once_its_checkpoint_is_there(
    finished: Path, stopped: Train, scontrol: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(4, REQUEUE, signum=signal.SIGUSR1)
    assert scontrol() == "requeue 42\n"
    assert "queued again as job 42" in capsys.readouterr().out
    assert checkpoint(folder)["global_step"] == 4
    run(RunFolder(folder))
    assert_alike(finished, folder)


@pytest.mark.parametrize(
    ("wanted", "signum", "env", "called", "said"),
    [
        (True, signal.SIGUSR1, ARRAY, "requeue 7_3\n", "queued again as job 7_3"),
        (True, signal.SIGUSR1, {"FAILS": "1"}, "requeue 42\n", "not queued again: .*requeue 42: no job"),
        (True, signal.SIGUSR1, {"PATH": ""}, "", "not queued again: .*scontrol"),
        (True, signal.SIGUSR1, {"SLURM_JOB_ID": ""}, "", "no job of SLURM"),
        (True, signal.SIGUSR1, {PARENT: "1"}, "", "^$"),
        (True, signal.SIGTERM, {}, "", "^$"),
        (False, signal.SIGUSR1, {}, "", "^$"),
    ],
)  # fmt: skip
def test_who_is_put_back_into_the_queue(
    scontrol: Callable[[], str], monkeypatch: pytest.MonkeyPatch,
    wanted: bool, signum: int, env: dict[str, str], called: str, said: str,
) -> None:  # fmt: skip
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    assert re.search(said, requeue({"callbacks": {"checkpoint": {"requeue": wanted}}}, signum))
    assert scontrol() == called
