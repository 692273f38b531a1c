"""What `auto` means on which machine."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

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
    assert hardware.resolve_device_type("auto") == "cpu"
    assert hardware.count_processes("auto", "cpu") == 1
    assert hardware.count_processes(2, "cpu") == 2
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu.*trainer=cpu"):
        hardware.resolve_device_type("gpu")


@pytest.mark.usefixtures("cuda")
def test_with_two_gpus() -> None:
    assert hardware.resolve_device_type("auto") == hardware.resolve_device_type("gpu") == "cuda"
    assert hardware.resolve_device_type("cpu") == "cpu"
    for devices, count in (("auto", 2), (-1, 2), (1, 1), ([1], 1), ("0,1", 2), ("2", 2)):
        assert hardware.count_processes(devices, "cuda") == count
    with pytest.raises(UserError, match=r"devices=3, but this machine has 2"):
        hardware.count_processes(3, "cuda")


def test_precision_auto_on_a_cpu_is_bf16_where_its_instructions_multiply_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(hardware, "_multiplies_bf16", lambda has=has: has)
        assert hardware.resolve_precision("auto", "cpu") == expected


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="oneDNN may not use all that the CPU has")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instructions are x86's")
def test_a_cpu_with_bf16_instructions_multiplies_with_them() -> None:
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert hardware.has_bf16("cpu") == has


REPORT = """
from vitlab.core import hardware
print(hardware.resolve_precision("auto", "cpu"), hardware.rounds_float32("medium"))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets are x86's")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_a_cpu_held_to_older_instructions_has_no_bf16(isa: str) -> None:
    """AVX-512 alone emulates it, at a quarter of float32's speed."""
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", REPORT], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["32-true", "False"], done.stderr


def test_a_cpu_without_a_listed_name_is_called_after_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert hardware.describe_device("cpu").startswith(f"{platform.machine()}, ")


def test_precision_auto_on_cuda_does_not_count_emulation(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert hardware.resolve_precision("auto", "cuda") == "32-true"


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"16-mixed needs a GPU.*bf16-mixed"):
        hardware.resolve_precision("16-mixed", "cpu")
    assert hardware.resolve_precision("16-mixed", "cuda") == "16-mixed"
    assert hardware.resolve_precision(64, "cpu") == "64-true"
    assert hardware.resolve_precision("16", "cuda") == "16-mixed", "one name, whatever was typed"


def test_compile_auto_is_for_runs_that_win_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_compiler", lambda kind: True)
    assert not hardware.resolve_compile("auto", "cuda", 1e14)
    assert hardware.resolve_compile("auto", "cuda", 1e17)
    assert not hardware.resolve_compile("auto", "cpu", 1e17), "which wins nothing there"
    assert hardware.resolve_compile(True, "cpu", 1.0)
    monkeypatch.setattr(hardware, "has_compiler", lambda kind: False)
    assert not hardware.resolve_compile("auto", "cuda", 1e17)
    assert not hardware.resolve_compile(False, "cpu", 1e15)
    with pytest.raises(UserError, match=r"C\+\+ compiler.*compile=false"):
        hardware.resolve_compile(True, "cpu", 1.0)


FAULTS = """
import resource, torch
from vitlab.core.hardware import keep_freed_memory
keep_freed_memory()

def step():
    kept = [torch.zeros(3_000_000) for _ in range(6)]  # 72 MB, freed together

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_a_step_frees_is_not_fetched_from_the_kernel_again() -> None:
    ended = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 72e6 / resource.getpagesize(), "less than one step's memory in ten steps"
