"""Whether the images of a run are kept in memory or streamed."""

from vitlab.core.errors import UserError
from vitlab.data.decode import format_bytes


def decide_in_memory(asked: bool | str, *, needed: int, free: int | None, device: str) -> tuple[bool, str]:
    """Resolve ``data.in_memory``.

    ``auto`` leaves half of what is free to the network, its activations and the rest of the machine.

    Args:
        asked: true, false or ``auto``.
        needed: bytes of all decoded images of the run.
        free: bytes free where the images would be kept; None where that is not known.
        device: the name of that place, such as ``cpu``.

    Returns:
        Whether the images are kept in memory, and the reason, for the log.

    Raises:
        UserError: ``true``, and they do not fit.
    """
    size = format_bytes(needed)
    if asked is False:
        return False, f"{size} in all; data.in_memory=false"
    if free is None:
        return True, size if asked is True else f"{size}; auto"
    if asked is True:
        if needed > free:
            raise UserError(
                f"data.in_memory=true, but the images need {size} and {device} has {format_bytes(free)} "
                "free. Set data.in_memory=false to stream them, or a smaller data.image_size (a model may "
                "enlarge its input on the device)."
            )
        return True, f"{size} of {format_bytes(free)} free"
    if needed > free / 2:
        return False, f"{size} would not fit in half of the {format_bytes(free)} free on {device}; auto"
    return True, f"{size} of {format_bytes(free)} free; auto"
