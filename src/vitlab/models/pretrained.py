"""Weights from a file: find it, read its tensors, fit them to a network, say what became of each."""

import argparse
import math
import pickle
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from vitlab.core.checkpoint import ImageMeta, check_meta, differences, read_plain, verify
from vitlab.core.errors import UserError
from vitlab.core.run_folder import find_checkpoint
from vitlab.models.hub import HUB_FILES

Weights = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Where checkpoints of timm, original repositories and trainers keep the weights; averaged ones first.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
SHOWN = 6  # names that a table or a message gives before it only counts


@dataclass(frozen=True)
class Images:
    """What the images were like that weights were trained on."""

    mean: tuple[float, ...]  # of the normalisation, one a channel, for pixels on the 0..1 scale
    std: tuple[float, ...]
    size: tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Loaded:
    """What became of the tensors in a file of weights, for people to read."""

    source: str  # the file
    tensors: int  # how much of the network came from it
    numbers: int
    resized: list[str]  # "name (shape in the file) → (shape in the network)"
    new: list[str]  # "name (shape)" of what is in the network alone: it starts at random
    left_out: list[str]  # names of what is in the file alone
    images: Images | None  # what these weights were trained on, as far as it is known
    certain: bool  # that; otherwise the published weights of this network were trained on them

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
        known = np.array([self.images.mean, self.images.std])  # (2, C)
        if len(mean) == 1:  # the kernels' channels were added up, so their mean is what is left
            known = known.mean(axis=1, keepdims=True)
        if not np.allclose(known, [mean, std], rtol=0, atol=0.01):
            means, stds = known.round(4).tolist()
            value = "half" if {*means, *stds} == {0.5} else f"{{mean: {means}, std: {stds}}}"
            option = shlex.quote(f"data.normalization={value}")
            yield (
                f"{whose} were trained on images normalised by mean {means} and std {stds}; set {option}, or "
                "they see other contrasts than they know."
            )
        theirs, ours = ("x".join(map(str, size)) for size in (self.images.size, image_size))
        if theirs != ours:
            yield (
                f"{whose} were trained on images of {theirs} pixels, and model.image_size is {ours}; "
                f"{theirs} transfers best, at its cost in time."
            )


def some(names: Iterable[str]) -> list[str]:
    """Return the first names, and how many more there are."""
    names = list(names)
    return [*names[:SHOWN], f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else names


def find_weights(path: Path) -> Path:
    """Return the file of weights that ``path`` means: itself, or the one in the folder.

    A run folder of ours stands for its best checkpoint, or the last; any other folder, such as a snapshot
    of the hub, for its model.safetensors or pytorch_model.bin, or else for its only file of weights. If there
    is none, or several: a UserError.
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
    for pattern in (*HUB_FILES, "*", "snapshots/*/*"):  # the last is how the hub's cache looks inside
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
    """Return a file's tensors by name and, for a checkpoint of ours, what its network was trained on.

    Nothing that the file may contain is run. Missing, broken, or without weights: a UserError.
    """
    verify(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            # A Namespace, which only holds values, is how many repositories keep their settings in it.
            found = read_plain(path, [argparse.Namespace])
    except Exception as error:
        # A broken file raises nearly anything, an empty one an EOFError without a word; and the unpickler
        # advises to run what is in the file.
        bare = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = type(error).__name__ if bare else str(error).splitlines()[0]
        raise UserError(
            f"model.checkpoint_path: {path} cannot be read as a file of weights ({reason}); it "
            "must be .safetensors, or a plain dictionary of tensors saved by torch.save."
        ) from error
    content = found if isinstance(found, Mapping) else {}
    named = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    tensors = {name: v for name, v in named.items() if isinstance(name, str) and isinstance(v, Tensor)}
    images = None
    if isinstance(meta := content.get("vitlab"), Mapping):  # ours: the metrics' counts lie beside the network
        tensors = {name: value for name, value in tensors.items() if name.startswith("net.")}
        check_meta(meta, path, ImageMeta)
        images = Images(tuple(meta["mean"]), tuple(meta["std"]), tuple(meta["input_size"]))
    if not tensors:
        raise UserError(f"model.checkpoint_path: {path} holds no weights.")
    while wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in tensors)), None):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors, images


def fit_channels(kernel: Tensor, channels: int) -> Tensor:
    """Fit a kernel for three channels ``(out, 3, height, width)`` to another number; any other kernel stays.

    As timm does it: one channel gets their sum, since grey is the same value three times.
    """
    return adapt_input_conv(channels, kernel) if kernel.ndim == 4 and kernel.shape[1] == 3 else kernel


def load_pretrained(
    net: nn.Module,
    path: Path,
    *,
    convert: Callable[[Weights, tuple[int, int] | None], Weights],
    heads: Sequence[str],
    stems: Sequence[str],
    images: Images | None = None,
    fetched: str | None = None,
) -> Loaded:
    """Fill ``net`` from a file; a head for other classes stays new, anything else must fit: a UserError.

    Args:
        path: what `find_weights` takes.
        convert: translates the file for ``net``: old names, positions for another size of image. It is also
            given the (height, width) of the images before, None where the file does not say so.
        heads: names of the modules that depend on the number of classes.
        stems: names of the convolutions that see the image, whose kernels `fit_channels` fits.
        images: what these weights were trained on, unless the file itself says so.
        fetched: what the file is called where it came from, if it was fetched for exactly this network:
            what is left over then is the library's affair. None: the user's own file, which must fit.
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

    new = {name for name in own if name.startswith(tuple(f"{head}." for head in heads))}
    if all(name in weights and weights[name].shape == own[name] for name in new):
        new = set()
    fitted = {name: tuple(value.shape) for name, value in weights.items()}
    reshaped = {name for name, shape in fitted.items() if name not in new and shape != own.get(name, shape)}
    left = new | reshaped
    # Modules translate names of their own older versions while they load, so torch compares the names.
    result = net.load_state_dict({k: v for k, v in weights.items() if k not in left}, strict=False)
    unexpected = [] if fetched else result.unexpected_keys
    if names := {*result.missing_keys, *reshaped, *unexpected} - new:
        raise UserError(
            f"model.checkpoint_path: the weights in {path} do not fit the model. Check that it is the one "
            f"they were trained in: its name, sizes, channels and parts.{differences(names, own, fitted)}"
        )
    return Loaded(
        source=fetched or str(path),
        tensors=len(own) - len(new),
        numbers=sum(math.prod(shape) for name, shape in own.items() if name not in new),
        resized=[
            f"{name} {shapes[name]} → {shape}"
            for name, shape in own.items()
            if name not in new and shapes.get(name, shape) != shape
        ],
        new=[f"{name} {shape}" for name, shape in own.items() if name in new],
        left_out=list(result.unexpected_keys),
        images=own_images or images,
        certain=bool(own_images or fetched),
    )
