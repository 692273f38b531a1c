"""Whether the images of a run lie in memory or are streamed. Torch-free."""

from dataclasses import dataclass

from vitlab.core.errors import UserError
from vitlab.data.decode import show_bytes


@dataclass(frozen=True)
class Placement:
    in_memory: bool
    why: str  # for the log


def place(asked: bool | str, *, needed: int, free: int | None, where: str) -> Placement:
    """Resolve ``data.in_memory``.

    ``auto`` leaves half of what is free to the network, its activations and the rest of the machine.

    Args:
        asked: true, false or ``auto``.
        needed: bytes of all decoded images of the run.
        free: bytes where the images would lie; None where that is not known.
        where: its name, such as ``cpu``.

    Raises:
        UserError: ``true``, and they do not fit.
    """
    size = f"{show_bytes(needed)} of {show_bytes(free)} free" if free is not None else show_bytes(needed)
    if asked is False:
        return Placement(False, f"{show_bytes(needed)} in all; data.in_memory=false")
    if asked is True:
        if free is not None and needed > free:
            raise UserError(
                f"data.in_memory=true, but the images need {show_bytes(needed)} and {where} has "
                f"{show_bytes(free)} free. Set data.in_memory=false to stream them, or a smaller "
                "data.image_size (a model may enlarge its input on the device)."
            )
        return Placement(True, size)
    if free is not None and needed > free / 2:
        why = f"{show_bytes(needed)} would not fit in half of the {show_bytes(free)} free on {where}; auto"
        return Placement(False, why)
    return Placement(True, f"{size}; auto")
