"""The stacks to compare with: torchvision's transforms in a DataLoader, and vit-pytorch's ViT."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from vitlab.config.keys import get
from vitlab.config.types import show
from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError

Size = tuple[int, int]
Pair = tuple[Tensor, Tensor]  # images float (B, C, H, W) normalised, labels int64 (B,)
ENDLESS = 1 << 40  # images: no measurement meets the end of an epoch
PREFETCH = 2  # batches that a worker has ready, PyTorch's default
# What vit-pytorch's ViT is made of, in our words.
PLAIN_VIT = (
    "vitlab.models.vit.ViT",
    "vitlab.models.tokenizers.PatchEmbedding",
    "vitlab.models.attention.Attention",
)
# What it can say: the values of options that leave nothing out.
PLAIN_OPTIONS: dict[str, tuple[Any, ...]] = {
    "pool": ("cls", "mean"),
    "position": ("learnable", "sincos"),
    "drop_key": (0,),
    "init": ("xavier",),
    "attention.qk_norm": (False,),
}
# Augmentations that torchvision has too, and the values with which the two do the same.
SAME: dict[str, dict[str, Any]] = {
    "RandomCrop": {},
    "RandomFlip": {},
    "RandAugment": {"magnitude_std": 0, "p": 1, "space": "paper"},
    "AutoAugment": {},
    "TrivialAugment": {},
}


def check_tutorial(model: Mapping[str, Any]) -> None:
    """Refuse a model that vit-pytorch's ViT is no counterpart of.

    Raises:
        UserError: it is made of other parts, or set to what vit-pytorch's ViT lacks.
    """
    parts = [model, model.get("tokenizer", {}), model.get("attention", {})]
    differs = None if tuple(part.get("_target_") for part in parts) == PLAIN_VIT else "as configured"
    for key, plain in PLAIN_OPTIONS.items() if not differs else ():
        if (value := get(model, key)) not in plain:
            differs = f"with {key}={show(value)}"
    if differs:
        raise UserError(
            f"{model['_target_']} {differs} has no counterpart in vit-pytorch. Use model=vit_tiny, vit_small "
            "or vit_base as they are, or leave the tutorial out (--against)."
        )


def counterpart_nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (class name, node) of each configured augmentation, in order.

    Raises:
        UserError: torchvision has no counterpart of it as configured.
    """
    for name in config["augment"]["ops"]:
        node = config["augment"][name]
        kind = node["_target_"].rpartition(".")[2]
        differs = next((f"{k}={node[k]}" for k, v in SAME.get(kind, {}).items() if node[k] != v), None)
        if kind == "RandAugment" and node["magnitude"] % 1:
            differs = f"magnitude={node['magnitude']}"  # torchvision's are whole numbers
        if kind not in SAME or differs:
            raise UserError(
                f"augment.{name} ({kind}{f' with {differs}' if differs else ''}) has no counterpart "
                "among torchvision's transforms, so there is nothing fair to compare with. Use augment=none, "
                "basic, randaugment, autoaugment or trivialaugment."
            )
        yield kind, node


def worker_counts(asked: Sequence[int] | None) -> list[int]:
    """Return the numbers of workers to try: those asked for, or 0 to 4, doublings, and one a core."""
    if asked is not None:
        return list(dict.fromkeys(asked))
    most = count_cores()
    return sorted({n for n in (0, 1, 2, 3, *(2**k for k in range(2, 11)), most) if n <= most})


def transform(
    library: Any,
    config: Mapping[str, Any],
    image_size: Size,
    input_size: Size,
    mean: Sequence[float],
    std: Sequence[float],
) -> Any:
    """Return the counterpart of ``config["augment"]``, down to the model's normalised input.

    Args:
        library: `torchvision.transforms`, for PIL images, or its ``v2``, for uint8 tensors.
        image_size: of the images, in pixels.
        input_size: of what the model takes.

    Raises:
        UserError: the augmentation has no counterpart.
    """
    steps = [
        _counterpart(library, kind, node, image_size, len(mean)) for kind, node in counterpart_nodes(config)
    ]
    if image_size != input_size:
        steps.append(library.Resize(input_size, antialias=True))
    # ToTensor is what makes a tensor of a PIL image, and v2 calls it deprecated.
    tensors = library is v2
    steps.append(library.ToDtype(torch.float32, scale=True) if tensors else library.ToTensor())
    return library.Compose([*steps, library.Normalize(list(mean), list(std))])


def _counterpart(library: Any, kind: str, node: Mapping[str, Any], size: Size, channels: int) -> nn.Module:
    if kind == "RandomCrop":
        mode = {"zero": "constant"}.get(node["padding_mode"], node["padding_mode"])
        return library.RandomCrop(size, padding=node["padding"], padding_mode=mode)
    if kind == "RandomFlip":
        return library.RandomHorizontalFlip(node["p"])
    fill = node["fill"] if isinstance(node["fill"], list) else [node["fill"]] * channels
    options = {
        "interpolation": torchvision.transforms.InterpolationMode(node["interpolation"]),
        "fill": [float(level) for level in fill],
    }
    if kind == "RandAugment":
        return library.RandAugment(node["num_ops"], int(node["magnitude"]), **options)
    if kind == "TrivialAugment":
        return library.TrivialAugmentWide(node["num_levels"], **options)
    return library.AutoAugment(torchvision.transforms.AutoAugmentPolicy(node["policy"]), **options)


class Pool(Dataset[tuple[Tensor, int]]):
    """Decoded images in memory, transformed one by one as they are asked for.

    Args:
        images: uint8 (N, C, H, W). ``labels``: int64 (N,).
        transform: of a PIL image (``pil``), or of a uint8 tensor (C, H, W).
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Any, *, pil: bool) -> None:
        self.images: Any = images
        if pil:  # as torchvision.datasets.CIFAR10 keeps them
            self.images = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())  # (N, H, W, C)
            self.images = self.images.squeeze(3) if self.images.shape[3] == 1 else self.images
        self.labels = labels.tolist()
        self.transform = transform
        self.pil = pil

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return self.transform(Image.fromarray(image) if self.pil else image), self.labels[index]


def load(pool: Pool, batch_size: int, workers: int, seed: int, device: torch.device) -> Iterator[Pair]:
    """Yield shuffled batches on ``device`` for ever, made by ``workers`` processes (0: by this one)."""
    loader = DataLoader(
        pool,
        batch_size=batch_size,
        sampler=RandomSampler(pool, num_samples=ENDLESS, generator=torch.Generator().manual_seed(seed)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator().manual_seed(seed),  # seeds the workers
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _ignore_signals(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and this one's parent decides what it means. SIGTERM is
    # how a DataLoader ends its workers; the handler that they have inherited would wait for a next step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def load_whole_batches(
    images: Tensor, labels: Tensor, transform: Any, batch_size: int, seed: int
) -> Iterator[Pair]:
    """Yield shuffled batches for ever, each transformed by one call, on the device that holds ``images``."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield transform(images.index_select(0, rows)), labels.index_select(0, rows)


def tutorial_net(model: Mapping[str, Any]) -> nn.Module:
    """Return vit-pytorch's ViT with the shape of a config's ``model``.

    It differs from vitlab's: norms around the patch projection, no bias on queries, keys and values, a norm
    before pooling, no position of small scale.
    """
    from vit_pytorch import ViT

    def size(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return ViT(
        image_size=size(model["image_size"]),
        patch_size=size(model["patch_size"]),
        num_classes=model["num_classes"],
        dim=model["dim"],
        depth=model["depth"],
        heads=model["heads"],
        dim_head=model["dim_head"] or model["dim"] // model["heads"],
        mlp_dim=int(model["dim"] * model["mlp_ratio"]),
        pool=model["pool"],
        channels=model["channels"],
        dropout=model["dropout"],
        emb_dropout=model["emb_dropout"],
    )
