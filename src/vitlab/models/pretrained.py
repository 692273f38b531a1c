"""Weights from a file: find it, read its tensors, fit them to a network, say what became of each."""

import argparse
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from vitlab.core.checkpoint import verify
from vitlab.core.errors import UserError
from vitlab.core.run_folder import find_checkpoint
from vitlab.models.hub import HUB_FILES

Weights = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Where checkpoints of timm, of the original repositories and of trainers keep the weights; averaged
# ones first.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
SHOWN = 6  # names that a table or a message gives before it only counts


@dataclass(frozen=True)
class Images:
    """What the images were like that weights were trained on.

    Attributes:
        mean, std: of the normalisation, one a channel, for pixels on the 0..1 scale.
        size: (height, width) in pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Loaded:
    """What became of the tensors in a file of weights, for people to read.

    Attributes:
        source: the file.
        tensors, numbers: how much of the network came from it.
        resized: "name (shape in the file) → (shape in the network)".
        new: "name (shape)" of what is in the network alone: it starts at random.
        left_out: names of what is in the file alone.
        images: what the weights were trained on, or, where the file does not say so, what the published
            weights of this network were trained on. None: unknown.
        certain: whether ``images`` is certainly about these weights.
    """

    source: str
    tensors: int
    numbers: int
    resized: list[str]
    new: list[str]
    left_out: list[str]
    images: Images | None
    certain: bool

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the rows of the table: what happened, and to what."""
        yield "weights", self.source
        yield "  loaded", f"{self.tensors:,} tensors, {self.numbers:,} parameters and statistics"
        for kind, names in (("resized", self.resized), ("new", self.new), ("left out", self.left_out)):
            for row, name in enumerate(some(names)):
                yield "" if row else f"  {kind}", name

    def notes(
        self, mean: Sequence[float], std: Sequence[float], image_size: tuple[int, int]
    ) -> Iterator[str]:
        """Yield what differs between the images these weights know and those they are about to see."""
        if self.images is None:
            return
        whose = "the weights" if self.certain else "the published weights of this network"
        known = [list(self.images.mean), list(self.images.std)]
        if len(mean) == 1:  # the kernels' channels were added up, so their mean is what is left
            known = [[sum(values) / len(values)] for values in known]
        if not torch.allclose(torch.tensor(known), torch.tensor([list(mean), list(std)]), rtol=0, atol=0.01):
            means, stds = ([round(value, 4) for value in values] for values in known)
            half = {*means, *stds} == {0.5}
            option = (
                "data.normalization=half" if half else f"'data.normalization={{mean: {means}, std: {stds}}}'"
            )
            yield (
                f"{whose} were trained on images normalised by mean {means} and std {stds}; set {option}, or "
                "they see other contrasts than they know."
            )
        if self.images.size != image_size:
            (high, wide), (height, width) = self.images.size, image_size
            yield (
                f"{whose} were trained on images of {high}x{wide} pixels, and model.image_size is "
                f"{height}x{width}; {high}x{wide} transfers best, at its cost in time."
            )


def some(names: Iterable[str], most: int = SHOWN) -> list[str]:
    """Return the first ``most`` names, and how many more there are."""
    names = list(names)
    return [*names[:most], f"and {len(names) - most} more"] if len(names) > most else names


# Reading a file


def find_weights(path: Path) -> Path:
    """Return the file of weights that ``path`` means: itself, or the one in the folder.

    A run folder of ours stands for its best checkpoint, or the last; any other folder, such as a snapshot
    of the hub, for its model.safetensors or pytorch_model.bin, or else for its only file of weights.

    Raises:
        UserError: there is none, or there are several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"model.checkpoint_path: there is no file {path}"
            + ("." if path.is_absolute() else f" (looked for {path.absolute()}).")
        )
    if (path / "config.yaml").is_file():
        return find_checkpoint(path, "model.checkpoint_path")
    if found := next((path / name for name in HUB_FILES if (path / name).is_file()), None):
        return found
    for pattern in ("*", "snapshots/*/*"):  # the second is how the hub's cache looks inside
        files = sorted(file for file in path.glob(pattern) if file.suffix in SUFFIXES and file.is_file())
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(some(str(file.relative_to(path)) for file in files))
            raise UserError(
                f"model.checkpoint_path: {path} holds {len(files)} files of weights ({names}); give the path "
                "of one of them."
            )
    raise UserError(
        f"model.checkpoint_path: the folder {path} holds no file of weights ({', '.join(SUFFIXES)}), and no "
        "run of vitlab with a checkpoint."
    )


def read_weights(path: Path) -> tuple[Weights, Images | None]:
    """Read the tensors of a weights file by name, without running anything that it may contain.

    Returns:
        The tensors, and, for a checkpoint of ours, what its network was trained on.

    Raises:
        UserError: the file is missing, broken, or holds no weights.
    """
    verify(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            # A Namespace, which only holds values, is how many repositories keep their settings in it.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A broken file raises nearly anything, an empty one an EOFError without a word; and the unpickler
        # advises to run what is in the file.
        bare = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = type(error).__name__ if bare else str(error).splitlines()[0]
        raise UserError(
            f"model.checkpoint_path: {path} cannot be read as a file of weights ({reason}); it "
            "must be .safetensors, or a plain dictionary of tensors saved by torch.save."
        ) from error
    meta = found.get("vitlab") if isinstance(found, Mapping) else None
    for container in CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(container), Mapping):
            found = found[container]
            break
    tensors = dict(found) if isinstance(found, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    images = None
    if isinstance(meta, Mapping):  # ours: the metrics' counts lie beside the network
        tensors = {name: value for name, value in tensors.items() if name.startswith("net.")}
        height, width = meta["input_size"]
        images = Images(tuple(meta["mean"]), tuple(meta["std"]), (height, width))
    if not tensors:
        raise UserError(f"model.checkpoint_path: {path} holds no weights.")
    while wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in tensors)), None):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors, images


# Fitting a file to a network


def fit_channels(kernel: Tensor, channels: int) -> Tensor:
    """Fit a kernel for three channels ``(out, 3, height, width)`` to another number, as timm does it.

    One channel gets their sum, since grey is the same value three times. Any other kernel stays.
    """
    return adapt_input_conv(channels, kernel) if kernel.ndim == 4 and kernel.shape[1] == 3 else kernel


def load_pretrained(
    net: nn.Module,
    path: Path,
    *,
    convert: Callable[[Weights, tuple[int, int] | None], Weights],
    heads: Sequence[str],
    stems: Sequence[str],
    images: Images | None,
    fetched: str | None,
) -> Loaded:
    """Fill ``net`` from a file; a head for another number of classes stays new.

    Args:
        path: what `find_weights` takes.
        convert: translates the file for ``net``: old names, positions for another size of image. It is also
            given the (height, width) of the images before, None where the file does not say so.
        heads: names of the modules that depend on the number of classes.
        stems: names of the convolutions that see the image, whose kernels `fit_channels` fits.
        images: what these weights were trained on, unless the file itself says so.
        fetched: what the file is called where it came from, if it was fetched for exactly this network:
            what is left over then is the library's affair. None: the user's own file, which must fit.

    Returns:
        What became of each tensor.

    Raises:
        UserError: anything but the head is missing, left over or of another shape.
    """
    path = find_weights(path)
    original, own_images = read_weights(path)
    shapes = {name: tuple(value.shape) for name, value in original.items()}
    try:
        weights = convert(original, own_images.size if own_images else None)
    except Exception as error:  # it expects the architecture's names and shapes and checks none
        raise UserError(
            f"model.checkpoint_path: {path} holds no weights of this architecture "
            f"({type(error).__name__}: {error})."
        ) from error
    own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    for name in own.keys() & weights.keys() & {f"{stem}.weight" for stem in stems}:
        if len(own[name]) == 4:
            weights[name] = fit_channels(weights[name], own[name][1])

    head = {name for name in own if name.startswith(tuple(f"{part}." for part in heads))}
    if any(name not in weights or tuple(weights[name].shape) != own[name] for name in head):
        weights = {name: value for name, value in weights.items() if name not in head}
    else:
        head = set()

    reshaped = {
        name: f"{name} {tuple(value.shape)} for {own[name]}"
        for name, value in weights.items()
        if tuple(value.shape) != own.get(name, value.shape)
    }
    weights = {name: value for name, value in weights.items() if name not in reshaped}
    # Modules translate names of their own older versions while they load, so torch compares the names.
    result = net.load_state_dict(weights, strict=False)
    differences = {
        "missing": set(result.missing_keys) - head - reshaped.keys(),
        "unexpected": [] if fetched else result.unexpected_keys,
        "of another shape": reshaped.values(),
    }
    if any(differences.values()):
        details = "; ".join(
            f"{len(names)} {kind}: " + ", ".join([*sorted(names)[:4], "..."][: len(names)])
            for kind, names in differences.items()
            if names
        )
        raise UserError(
            f"model.checkpoint_path: the weights in {path} do not fit the model ({details}). "
            "Check that the model is the one they were trained in: its name, sizes, channels and parts."
        )
    taken = own.keys() - head
    return Loaded(
        source=fetched or str(path),
        tensors=len(taken),
        numbers=sum(value.numel() for name, value in net.state_dict().items() if name in taken),
        resized=[
            f"{name} {shapes[name]} → {shape}"
            for name, shape in own.items()
            if name not in head and shapes.get(name, shape) != shape
        ],
        new=[f"{name} {shape}" for name, shape in own.items() if name in head],
        left_out=list(result.unexpected_keys),
        images=own_images or images,
        certain=bool(own_images or fetched),
    )
