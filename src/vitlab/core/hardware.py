"""What the machine can do, and what ``auto`` therefore means."""

import contextlib
import ctypes
import functools
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError

# torch.compile takes about a minute and then makes a step on a GPU 1.5 to 4 times as fast, so `auto` asks
# whether the run is long enough. FLOP/s of an eager step, within a factor of a few; only the choice hangs on
# them. On a CPU a step gains next to nothing, or loses: experiments/input_speed, "Compiling on a CPU".
EAGER_FLOPS = 2e13
WORTH_COMPILING_SECONDS = 180
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
# Lightning takes these as well; here and in summaries a precision has one name.
LIGHTNING_SHORT = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def resolve_device_type(accelerator: str) -> str:
    """Return the torch device type ("cpu", "cuda", "mps" …) that ``trainer.accelerator`` means here.

    Raises:
        UserError: the accelerator asked for is not there.
    """
    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    if accelerator in ("cuda", "gpu", "mps"):
        built = "" if torch.version.cuda else f" (torch {torch.__version__} is a build without CUDA)"
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no such device here{built}. Use trainer=auto or "
            "trainer=cpu, or check the driver with `nvidia-smi`."
        )
    return "cpu" if accelerator == "auto" else accelerator


def describe_device(kind: str) -> str:
    """Return the processor's own name, and how much of a CPU this process may use, for summaries."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "cpu":
        count = count_cores()
        return f"{_name_cpu()}, {count} core{'s' if count > 1 else ''}"
    return kind


def keep_freed_memory() -> None:
    """Have the memory that a step frees stay with this process, where the C library is glibc.

    It would give large blocks back to the kernel, and fetch them anew for the next step, a fault for each
    4 kB. Source: mallopt(3); 32 MB is the most that its first threshold takes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TOP_PAD, 64 * 2**20), (M_TRIM_THRESHOLD, -1)):
            mallopt(option, size)


def measure_peak_memory(kind: str) -> dict[str, int | None]:
    """Return the most bytes this process has held at once, in RAM and on its GPU (None without one)."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host, "device": torch.cuda.max_memory_allocated() if kind == "cuda" else None}


def count_processes(devices: int | str | list[int], kind: str) -> int:
    """Return how many processes ``trainer.devices`` means on devices of ``kind``.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    present = torch.cuda.device_count() if kind == "cuda" else 1
    if devices in ("auto", -1, "-1"):
        return present
    if isinstance(devices, str):
        parts = [part for part in devices.split(",") if part.strip()]
        count = len(parts) if "," in devices else int(devices)
    else:
        count = len(devices) if isinstance(devices, list) else devices
    if kind != "cpu" and count > present:
        raise UserError(f"trainer.devices={devices}, but this machine has {present} {kind} device(s).")
    return count


def resolve_precision(asked: str | int, kind: str) -> str:
    """Resolve ``trainer.precision=auto``: bf16-mixed where `has_bf16`, else 32.

    Raises:
        UserError: 16-mixed on a CPU, which Lightning would silently turn into bf16.
    """
    asked = LIGHTNING_SHORT.get(str(asked), str(asked))
    if asked == "auto":
        return "bf16-mixed" if has_bf16(kind) else "32-true"
    if asked == "16-mixed" and kind == "cpu":
        raise UserError(
            "trainer.precision=16-mixed needs a GPU: float16 training scales its loss, which CPUs do not "
            "support. Use trainer.precision=bf16-mixed, 32, or auto."
        )
    return asked


@contextlib.contextmanager
def use_matmul_precision(name: str) -> Iterator[None]:
    """Compute float32 products at least as precisely as ``name`` says, until the context is left.

    ``highest`` is float32 throughout. ``high`` is TensorFloat32 (10 bits of mantissa for 23) on NVIDIA GPUs
    since Ampere and CPUs with AMX-FP16. ``medium`` is bfloat16 (7 bits) on CPUs with AMX and as ``high`` on
    GPUs. Other CPUs compute in float32 whatever the name: `rounds_float32` tells. Convolutions on GPUs, for
    which cuDNN has a switch of its own, take TensorFloat32 unless ``highest``.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@functools.cache
def rounds_float32(name: str) -> bool:
    """Say whether this CPU rounds the factors of float32 products under ``matmul_precision=name``."""
    # Asked by multiplying, because it depends on torch's version, the processor, and the instructions that
    # ONEDNN_MAX_CPU_ISA leaves to oneDNN: 1 + 2^-12 is 1 in TensorFloat32 and in bfloat16.
    factor = torch.full((128, 128), 1 + 2**-12, device="cpu", dtype=torch.float32)
    with use_matmul_precision(name):
        product = torch.mm(factor, torch.eye(128, device="cpu", dtype=torch.float32))
    return not torch.equal(product, factor)


def has_bf16(kind: str) -> bool:
    """Say whether the hardware multiplies in bfloat16; to emulate it is slower than float32."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and _multiplies_bf16()


@functools.cache
def _multiplies_bf16() -> bool:
    """Ask the CPU by multiplying: torch says yes of all AVX-512 CPUs, and most of them emulate.

    The instructions of AMX and AVX512-BF16 (TDPBF16PS, VDPBF16PS) and Arm's BFMMLA take subnormal factors for
    zero; an emulation in float32 keeps them. ``ONEDNN_MAX_CPU_ISA`` may leave the instructions unused.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    subnormal, large = (
        torch.full((128, 128), value, device="cpu", dtype=torch.bfloat16) for value in (1e-39, 1e30)
    )
    return not torch.mm(subnormal, large).any()


def matmul_notes(name: str) -> Iterator[str]:
    """Yield whether ``matmul_precision`` changes nothing on this CPU."""
    if not rounds_float32("high" if name == "highest" else name) and name != "high":
        yield f"matmul_precision={name} has no effect on this processor: its float32 products stay float32."


def has_compiler(kind: str) -> bool:
    """Say whether torch.compile finds what it needs: a C++ compiler on the CPU, Triton on CUDA."""
    if kind == "cuda":
        from torch.utils._triton import has_triton  # private, and what torch.compile itself asks

        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def resolve_compile(asked: bool | str, kind: str, training_flops: float) -> bool:
    """Resolve ``compile=auto``: compile on a GPU, where the run is long enough to win back the compilation.

    Args:
        training_flops: of the whole run on one process, forward and backward.

    Raises:
        UserError: ``compile=true`` and no compiler.
    """
    if asked == "auto":
        long = training_flops / EAGER_FLOPS > WORTH_COMPILING_SECONDS
        return kind == "cuda" and long and has_compiler(kind)
    if asked and not has_compiler(kind):
        what = "Triton" if kind == "cuda" else "a C++ compiler (g++ or clang++) on the PATH"
        raise UserError(f"compile=true needs {what}, and there is none. Install it or set compile=false.")
    return bool(asked)


def _name_cpu() -> str:
    """Return the processor's name, which torch 2.11 does not know: Linux does, on x86."""
    with contextlib.suppress(OSError):
        if name := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return name[1].strip()
    return platform.processor() or platform.machine() or "CPU"
