"""What can be compared with what, said before anything heavy is imported. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitlab.config.types import show
from vitlab.core.errors import UserError

# The contenders of a layer, beside vitlab itself.
LAYERS = {
    "step": ("plain", "tutorial"),
    "input": ("pil", "torchvision", "torchvision_batch"),
    "both": ("plain", "tutorial"),
}
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
PRECISIONS = ("auto", "32-true", "32", 32, "bf16-mixed", "16-mixed")
# Augmentations that torchvision has too, and the values with which the two do the same.
SAME: dict[str, dict[str, Any]] = {
    "RandomCrop": {},
    "RandomFlip": {},
    "RandAugment": {"magnitude_std": 0, "p": 1, "space": "paper"},
    "AutoAugment": {},
    "TrivialAugment": {},
}
# A measurement is some steps of one process: what these say about the length of a run has no meaning there.
FIXED: dict[str, Any] = {
    "accumulate_grad_batches": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "fast_dev_run": False,
    "overfit_batches": 0,
    "limit_train_batches": None,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "profiler": None,
    "detect_anomaly": False,
    "barebones": False,
}


def check_benchmark(config: Mapping[str, Any]) -> None:
    """Refuse a resolved config that ``benchmark.py`` cannot measure.

    Raises:
        UserError: a trainer option that a measurement cannot follow, a contender without counterpart,
            or a package that is not installed.
    """
    for key, value in FIXED.items():
        if (found := config["trainer"][key]) != value:
            raise UserError(
                f"trainer.{key}={show(found)}: benchmark.py measures plain steps of one process. Leave it at "
                f"{show(value)}."
            )
    if config["callbacks"]["ema"]["decay"] is not None:
        raise UserError(
            "callbacks.ema.decay: the loops to compare with do not average their weights. Leave it at null."
        )
    if "teacher" in config["task"]:
        raise UserError("task=distill: the loops to compare with ask no teacher. Leave it at task=classify.")
    if (found := config["trainer"]["precision"]) not in PRECISIONS:
        raise UserError(
            f"trainer.precision={found}: the plain loop to compare with knows 32-true, bf16-mixed and "
            "16-mixed. Choose one of them, or auto."
        )
    wanted = {name for layer in config["benchmark"]["layers"] for name in rivals(config, layer)}
    if wanted - {"plain"}:
        list(counterpart_nodes(config))
        pool, batch = config["benchmark"]["pool"], config["data"]["batch_size"]
        if pool < batch:
            raise UserError(
                f"benchmark.pool={pool} is less than a batch: the references draw batches of "
                f"data.batch_size={batch} from it. Give {batch} or more."
            )
    if "tutorial" in wanted:
        model = config["model"]
        parts = [model, model.get("tokenizer", {}), model.get("attention", {})]
        differs = None if tuple(part.get("_target_") for part in parts) == PLAIN_VIT else "as configured"
        for key, plain in PLAIN_OPTIONS.items() if not differs else ():
            node, _, name = key.rpartition(".")
            if (value := (model[node] if node else model)[name]) not in plain:
                differs = f"with {key}={show(value)}"
        if differs:
            raise UserError(
                "benchmark.against has tutorial, vit-pytorch's ViT of the same shape, and "
                f"{model['_target_']} {differs} has no such counterpart. Use model=vit_tiny, vit_small "
                "or vit_base as they are, or benchmark.against=[plain]."
            )
        if find_spec("vit_pytorch") is None:
            raise UserError(
                "the tutorial to compare with is the package vit-pytorch, and it is not installed: "
                "`pip install vitlab[bench]`, or benchmark.against=[plain]."
            )


def check_own_folder(overrides: Sequence[str]) -> None:
    """Refuse a folder asked for (``hydra.run.dir=``) that holds the results of another measurement.

    Raises:
        UserError: it does.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "hydra.run.dir" and (Path(value) / "results.json").exists():
            raise UserError(f"{value} holds results already; choose another folder (hydra.run.dir=…).")


def rivals(config: Mapping[str, Any], layer: str) -> list[str]:
    """Return who is compared with vitlab in ``layer``, in the order asked for."""
    return [name for name in dict.fromkeys(config["benchmark"]["against"]) if name in LAYERS[layer]]


def idle(config: Mapping[str, Any]) -> list[str]:
    """Return the names typed after ``benchmark.against`` that no layer asked for measures."""
    if not any(typed.startswith("benchmark.against") for typed in config["overrides"]):
        return []
    used = {name for layer in config["benchmark"]["layers"] for name in rivals(config, layer)}
    return [name for name in config["benchmark"]["against"] if name not in used]


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
                "basic, randaugment, autoaugment or trivialaugment, or benchmark.against=[plain]."
            )
        yield kind, node
