"""The names of the attribution methods, known before torch is imported."""

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest

ATTENTION = ("attention", "rollout", "gradient_rollout")
# Of torchcam's classes those without randomness of their own.
CAMS = {"gradcam": "GradCAM", "gradcam_pp": "GradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}
PIXELS = ("integrated_gradients", "occlusion")  # captum's
NAMES = (*ATTENTION, *CAMS, *PIXELS)
# One of each family.
USUAL = (*ATTENTION, "gradcam", *PIXELS)


def parse_methods(text: str, flag: str) -> list[str]:
    """Return the methods of ``NAME[,NAME]``; ``all`` is every one.

    Args:
        flag: what it was given as, for the message.

    Raises:
        UserError: one does not exist.
    """
    names = NAMES if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"{flag} {name}: there is no such method{suggest(name, NAMES)}; there are {', '.join(NAMES)}."
            )
    return list(names)


def parse_numbers(text: str | None, flag: str) -> list[int] | None:
    """Return the numbers of ``0,3``; None for ``all``, and where nothing is given.

    Raises:
        UserError: it is something else.
    """
    if text in (None, "all"):
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise UserError(f"{flag} {text}: expected whole numbers from 0, such as {flag} 0,3, or {flag} all.")
    return [int(part) for part in text.split(",")]
