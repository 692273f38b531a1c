"""What the machine refuses, in plain words: memory that runs out, and a GPU that fails."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.modules.batchnorm import _BatchNorm

from vitlab.config.plan import make_plan
from vitlab.core import hardware
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.suggest import join_or
from vitlab.training.build import Components

# Of torch's allocators and libraries, numpy, C++ and the kernel. A worker's error arrives as text.
NO_MEMORY = re.compile(r"out of memory|alloc_?failed|unable to allocate|can(no|')t allocate|bad_alloc", re.I)
# Of a GPU that is gone or broken. The others (an assertion, an illegal address) are faults of a program.
NO_DEVICE = re.compile(r"(CUDA|cuDNN) error: (?!.*(assert|illegal|misaligned|invalid|no kernel image))", re.I)


def _find(error: BaseException | None, matches: Callable[[BaseException, str], object]) -> str | None:
    """Return the first line that matches, of an error and what caused it."""
    seen: list[BaseException] = []  # chains may be circles
    while error is not None and error not in seen:
        seen.append(error)
        for line in str(error).splitlines() or [""]:
            if matches(error, line):
                return re.sub(r"^\[.*\] err == 0\. ", "", line.strip()) or type(error).__name__
        error = error.__cause__ or error.__context__
    return None


def memory_problem(error: BaseException) -> str | None:
    """Return what said that there is no more memory; None if nothing did."""

    def matches(error: BaseException, line: str) -> bool:
        if isinstance(error, MemoryError) and len(str(error).splitlines()) < 2:
            return True
        if isinstance(error, OSError):
            return error.errno == errno.ENOMEM
        return isinstance(error, RuntimeError | MemoryError) and bool(NO_MEMORY.search(line))

    return _find(error, matches)


def device_problem(error: BaseException) -> str | None:
    """Return what a GPU said last that has failed; None if none did."""
    return _find(error, lambda error, line: isinstance(error, RuntimeError) and NO_DEVICE.search(line))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Say in plain words what people run into that is no bug."""
    try:
        yield
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(f"Lightning refuses this: {error}") from error
    except Exception as error:
        if problem := memory_problem(error):
            raise UserError(
                f"there is not enough memory ({problem}). Lower data.batch_size or data.image_size, take a "
                "smaller model, or stream images from the disk (data.in_memory=false)."
            ) from error
        raise


@contextlib.contextmanager
def explain_faults(folder: RunFolder, parts: Components, step: Callable[[], int]) -> Iterator[None]:
    """Say what to do where memory runs out in training, or a GPU fails.

    Args:
        step: returns the optimizer steps that are done.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        saved = folder.last.exists()
        if problem := memory_problem(error):
            said = f"there is not enough memory (optimizer step {step() + 1:,}: {problem}). {_advice(parts)}"
            if saved:
                said += f" That is a new run; this one goes on where there is more memory, by resume={folder}"
        elif problem := device_problem(error):
            back = f"When it is back: {folder.resume_command}" if saved else "Nothing was saved yet."
            said = (
                f"the GPU failed at optimizer step {step() + 1:,} ({problem}). Ask nvidia-smi, dmesg. {back}"
            )
        else:
            raise
        raise UserError(said) from error


def _advice(parts: Components) -> str:
    """Return what a step holds, and the settings with which it holds less and trains the same."""
    plan, (height, width) = parts.plan, parts.data.input_size
    nodes = parts.config["trainer"]["num_nodes"]
    world = parts.processes * nodes
    shared = f", shared by {world} processes" if world > 1 else ""
    said = (
        f"A batch has {plan.batch_size:,} images of {height} × {width} pixels in {parts.precision}{shared}. "
    )
    each = plan.batch_size // world
    others = ["a smaller model", "a smaller model.image_size"]
    if parts.data.num_workers and not parts.data.in_memory:
        others.append(f"fewer data.num_workers (now {parts.data.num_workers})")
    if parts.precision == "32-true" and hardware.has_bf16(parts.kind):
        others.append("trainer.precision=bf16-mixed")
    if each == 1:
        return f"{said}It cannot be smaller: take {join_or(others)}."
    times = next(n for n in range(2, each + 1) if each % n == 0)
    batch, accumulate = plan.batch_size // times, plan.accumulate * times
    changed = {
        "data": parts.config["data"] | {"batch_size": batch},
        "trainer": parts.config["trainer"] | {"accumulate_grad_batches": accumulate},
    }
    same, steps = "trains the same", make_plan(parts.config | changed, parts.data.num_train).total_steps
    if steps != plan.total_steps:
        same += f" in {steps:,} optimizer steps for {plan.total_steps:,}"
    if any(isinstance(module, _BatchNorm) for module in parts.net.modules()):
        same += f" but for BatchNorm, whose statistics are then of {each // times:,} images"
    return (
        f"{said}data.batch_size={batch} trainer.accumulate_grad_batches={accumulate} needs less and {same}. "
        f"Another result would come of {join_or(others)}."
    )
