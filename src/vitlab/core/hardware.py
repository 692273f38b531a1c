"""What the machine can do, and what ``auto`` therefore means."""

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from vitlab.core.cpu_count import cores
from vitlab.core.errors import UserError

# torch.compile takes about a minute and then makes a step 1.5 to 4 times as fast, so `auto` asks whether
# the run is long enough. FLOP/s of an eager step, within a factor of a few; only the choice hangs on them.
EAGER_FLOPS = {"cpu": 1e11, "cuda": 2e13}
WORTH_COMPILING_SECONDS = 180
# Lightning takes these as well; here and in summaries a precision has one name.
LIGHTNING_SHORT = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def device_type(accelerator: str) -> str:
    """Return the torch device type ("cpu", "cuda", "mps" …) that ``trainer.accelerator`` means here.

    Raises:
        UserError: the accelerator asked for is not there.
    """
    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    if accelerator in ("cpu", "auto"):
        return "cpu"
    if accelerator in ("cuda", "gpu", "mps"):
        built = "" if torch.version.cuda else f" (torch {torch.__version__} is a build without CUDA)"
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no such device here{built}. Use trainer=auto or "
            "trainer=cpu, or check the driver with `nvidia-smi`."
        )
    return accelerator


def device_name(kind: str) -> str:
    """Return the processor's own name, and how much of a CPU this process may use, for summaries."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "cpu":
        names = [line for line in _cpuinfo() if line.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else "CPU"
        count = cores()
        return f"{name}, {count} core{'s' if count > 1 else ''}"
    return kind


def peak_memory(kind: str) -> dict[str, int | None]:
    """Return the most bytes this process has held at once, in RAM and on its GPU (None without one)."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host, "device": torch.cuda.max_memory_allocated() if kind == "cuda" else None}


def num_processes(devices: int | str | list[int], kind: str) -> int:
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


def precision(asked: str | int, kind: str) -> str:
    """Resolve ``trainer.precision=auto``: bf16-mixed where the hardware computes in bfloat16, else 32.

    Emulated bfloat16 is slower than float32, so only real units count: CUDA from compute capability 8.0,
    and CPUs with AMX or AVX512-BF16.

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
def matmul_precision(name: str) -> Iterator[None]:
    """Compute float32 products at least as precisely as ``name`` says, until the context is left.

    ``highest`` float32 throughout; ``high`` TensorFloat32 (10 bits of mantissa for 23) where the hardware has
    it, mostly NVIDIA GPUs since Ampere; ``medium`` bfloat16 (7 bits) where it has that, CPUs included.
    Convolutions, for which cuDNN has a switch of its own, take TensorFloat32 but for ``highest``.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def has_bf16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        flags = {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.split()}
        return bool(flags & {"amx_bf16", "avx512_bf16"})
    return False


def has_compiler(kind: str) -> bool:
    """Say whether torch.compile finds what it needs: a C++ compiler on the CPU, Triton on CUDA."""
    if kind == "cuda":
        from torch.utils._triton import has_triton  # private, and what torch.compile itself asks

        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiles(asked: bool | str, kind: str, training_flops: float) -> bool:
    """Resolve ``compile=auto``: compile where the run is long enough to win back the compilation.

    Args:
        training_flops: of the whole run on one process, forward and backward.

    Raises:
        UserError: ``compile=true`` and no compiler.
    """
    if asked == "auto":
        seconds = training_flops / EAGER_FLOPS.get(kind, float("inf"))
        return seconds > WORTH_COMPILING_SECONDS and has_compiler(kind)
    if asked and not has_compiler(kind):
        what = "Triton" if kind == "cuda" else "a C++ compiler (g++ or clang++) on the PATH"
        raise UserError(f"compile=true needs {what}, and there is none. Install it or set compile=false.")
    return bool(asked)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
