"""What `auto` means on which machine."""

import pytest
import torch

from vitlab.core import hardware
from vitlab.core.errors import UserError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend that there are two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert hardware.device_type("auto") == "cpu"
    assert hardware.num_processes("auto", "cpu") == 1
    assert hardware.num_processes(2, "cpu") == 2
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu.*trainer=cpu"):
        hardware.device_type("gpu")


@pytest.mark.usefixtures("cuda")
def test_with_two_gpus() -> None:
    assert hardware.device_type("auto") == hardware.device_type("gpu") == "cuda"
    assert hardware.device_type("cpu") == "cpu"
    assert [hardware.num_processes(d, "cuda") for d in ("auto", -1, 1, [1], "0,1", "2")] == [2, 2, 1, 1, 2, 2]
    with pytest.raises(UserError, match=r"devices=3, but this machine has 2"):
        hardware.num_processes(3, "cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512_bf16 sse", "bf16-mixed"), ("amx_bf16", "bf16-mixed"), ("avx512f avx2", "32-true")],
)
def test_precision_auto_on_a_cpu_asks_for_real_bf16_units(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: ["model name : X", f"flags : {flags}"])
    assert hardware.precision("auto", "cpu") == expected


def test_precision_auto_on_cuda_does_not_count_emulation(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert hardware.precision("auto", "cuda") == "32-true"


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"16-mixed needs a GPU.*bf16-mixed"):
        hardware.precision("16-mixed", "cpu")
    assert hardware.precision("16-mixed", "cuda") == "16-mixed"
    assert hardware.precision(64, "cpu") == "64-true"
    assert hardware.precision("16", "cuda") == "16-mixed", "one name, whatever was typed"


def test_compile_auto_is_for_runs_that_win_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_compiler", lambda kind: True)
    assert not hardware.compiles("auto", "cpu", 1e12)
    assert hardware.compiles("auto", "cpu", 1e15)
    assert hardware.compiles(True, "cpu", 1.0)
    monkeypatch.setattr(hardware, "has_compiler", lambda kind: False)
    assert not hardware.compiles("auto", "cpu", 1e15)
    assert not hardware.compiles(False, "cpu", 1e15)
    with pytest.raises(UserError, match=r"C\+\+ compiler.*compile=false"):
        hardware.compiles(True, "cpu", 1.0)
