"""The allowed kinds and ranges of the keys in conf/, one line a key.

A key without a rule takes the kind of the YAML file's own value. A rule is needed where that says
too little: a range, a union (`auto` or a number), a null. The upper bounds are generous: they catch
a slip of the keyboard (depth 10**6), not an ambition.
"""

from fnmatch import fnmatchcase

from vitlab.config import keys
from vitlab.config.types import (
    FLAG,
    INTEGER,
    NULL,
    TEXT,
    Constraint,
    either,
    listing,
    mapping,
    one_of,
    pair,
    real,
    spelled,
    whole,
)
from vitlab.core.data_protocol import KINDS, NUM_CLASSES

# Below these keys an experimenter may add keys of their own with `+`: they go to another library.
OPEN_NODES = ("model.kwargs",)

MANY = 1_000_000_000
_side = whole(1, 8192)
_sides = either(_side, pair(_side))
_probability = real(0, 1)
_drop = real(0, 1, below=True)
_auto_flag = either(FLAG, one_of("auto"))
_batches = either(whole(0, MANY), real(0, 1))
_statistics = listing(real(0, 1))


_PART = r"(?![.\-])[\w.+\-]+"  # of a folder's name that cannot lead out of outputs/

_duration = either(
    NULL,
    spelled(r"\d+:\d+:\d+:\d+", "a time as DD:HH:MM:SS"),
    Constraint(
        "a mapping such as {hours: 2, minutes: 30}",
        lambda value: (
            isinstance(value, dict)
            and bool(value)
            and set(value) <= {"weeks", "days", "hours", "minutes", "seconds"}
            and all(whole(0, MANY).accepts(item) for item in value.values())
        ),
    ),
)
_names = Constraint(
    "a mapping from old names to new such as {cat: pet}",
    lambda value: (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str | int) for item in value.items() for name in item)
    ),
)

# Names of files and folders, and addresses, all of which may be left out.
_PATHS = (
    *(
        "resume",
        "sweep.resume",
        "sweep.storage",
        "model.checkpoint_path",
        "task.teacher",
        "task.teacher_checkpoint",
    ),
    *("data.root", "data.url", "data.cache", "trainer.default_root_dir"),
)

RULES: dict[str, Constraint] = {
    **dict.fromkeys(_PATHS, either(NULL, TEXT)),
    # the run
    "*seed": whole(0, 2**32 - 1),
    "study": either(
        spelled(
            f"{_PART}(/{_PART})*",
            "a folder name of letters, digits and . _ - + (slashes nest; no part starts with a point)",
        ),
        INTEGER,
    ),
    "sweep.jobs": whole(1, 1024),
    "sweep.jobs_per_allocation": whole(1, 1024),
    "sweep.pruner": one_of("median", "hyperband", "none"),
    "sweep.warmup_trials": whole(0, 1_000_000),
    "sweep.*trials": whole(1, 1_000_000),
    "sweep.warmup_epochs": whole(1, 1_000_000),
    "compile": _auto_flag,
    "matmul_precision": one_of("highest", "high", "medium"),
    # benchmark.py
    "benchmark.layers": listing(one_of("step", "input", "both", "inference")),
    "benchmark.rounds": whole(1, 1000),
    "benchmark.seconds": real(0, 3600, above=True),
    "benchmark.warmup_steps": whole(1, 1_000_000),
    "benchmark.peak_flops": either(NULL, real(0, 1e19, above=True)),
    # model
    "model.image_size": _sides,
    "model.channels": whole(1, 1024),
    "model.num_classes": either(NULL, whole(1, 1_000_000)),  # null: found from the data
    "model.patch_size": _sides,
    "model.dim": whole(1, 16_384),
    "model.depth": whole(1, 512),
    "model.heads": whole(1, 1024),
    "model.dim_head": either(NULL, whole(1, 16_384)),
    "model.mlp_ratio": real(0, 64, above=True),
    "model.pool": one_of("cls", "mean", "sequence"),
    "model.position": one_of("learnable", "sincos", "rotary", "none"),
    "model.*dropout": _drop,
    "model.drop_path": either(NULL, _drop),
    "model.drop_key": _drop,
    "model.init": one_of("xavier", "mimetic"),
    "model.attention.projection_length": whole(1, 1_000_000),
    "model.tokenizer.num_convs": whole(1, 16),
    "model.tokenizer.full_size_convs": whole(0, 8),
    "model.tokenizer.norm": one_of("batch", "layer"),
    "model.tokenizer.num_layers": whole(1, 8),
    "model.tokenizer.width": whole(1, 16_384),
    "model.tokenizer.pool": one_of("avg", "max"),
    "augment.*.padding_mode": one_of("zero", "reflect"),
    "model.blocks": listing(whole(1, 1024)),
    "model.width": whole(1, 16_384),
    "model.name": TEXT,
    # optimizer
    "optimizer.lr": real(0, 1000, above=True, below=True),
    "optimizer.weight_decay": real(0, 100),
    "optimizer.layer_decay": real(0, 1, above=True),
    "optimizer.betas": pair(_drop),
    "optimizer.eps": real(0, 1, above=True),
    "optimizer.momentum": _drop,
    "optimizer.ns_steps": whole(1, 20),
    "optimizer.fused": _auto_flag,
    # scheduler
    "scheduler.*_epochs": either(NULL, real(0, 1_000_000)),
    "scheduler.*_steps": either(NULL, whole(0, MANY)),
    "scheduler.warmup_fraction": _drop,
    "scheduler.decay_fraction": _probability,
    "scheduler.milestone_epochs": either(NULL, listing(real(0, 1_000_000, above=True))),
    "scheduler.milestone_steps": either(NULL, listing(whole(1, MANY))),
    "scheduler.milestone_fraction": listing(real(0, 1, above=True, below=True)),
    "scheduler.every_epochs": either(NULL, real(0, 1_000_000, above=True)),
    "scheduler.gamma": real(0, 1, above=True),
    "scheduler.shape": one_of("sqrt", "linear"),
    "scheduler.*_ratio": _probability,
    # data
    "data.kind": one_of(*KINDS),
    "data.image_size": _sides,
    "data.channels": one_of(3, 1),
    "data.num_classes": either(NULL, whole(1, 1_000_000)),
    "data.batch_size": whole(1, 1_000_000),
    "data.val_size": either(NULL, whole(0, MANY), real(0, 1, above=True, below=True)),
    "data.test_size": either(NULL, whole(0, MANY), real(0, 1, above=True, below=True)),
    "data.num_train": whole(NUM_CLASSES["shapes"], 100_000_000),
    "data.num_test": whole(NUM_CLASSES["shapes"], 100_000_000),
    "data.in_memory": _auto_flag,
    "data.on_error": one_of("stop", "skip"),
    "data.num_workers": either(NULL, whole(0, 1024)),
    "data.normalization": either(
        one_of("dataset", "half"),
        mapping(mean=_statistics, std=listing(real(0, 1, above=True))),
    ),
    "data.labels": either(NULL, _names),
    # augmentation
    "augment.ops": listing(TEXT, least=0),
    **dict.fromkeys(
        (f"augment.*.{name}" for name in ("p", "switch_p", "brightness", "contrast", "color")), _probability
    ),
    "augment.*.size": whole(1, 8192),
    "augment.*.num_ops": whole(1, 100),
    "augment.*.magnitude": real(0, 30),
    "augment.*.magnitude_std": real(0, 100),
    "augment.*.space": one_of("paper", "timm"),
    "augment.*.interpolation": one_of("nearest", "bilinear"),
    "augment.*.fill": either(whole(0, 255), listing(whole(0, 255))),
    "augment.*.policy": one_of("cifar10", "imagenet"),
    "augment.*.num_levels": whole(2, 1000),
    "augment.*.threshold": whole(0, 256),
    "augment.*.m??_sigma": real(0.01, 2),
    "augment.*.padding": whole(0, 1024),
    "augment.resized_crop.m*_area": real(0.0001, 1),
    "augment.*.m??_area": _probability,
    "augment.*.m??_ratio": real(0.001, 1000),
    "augment.*.value": one_of("zero", "mean", "random"),
    "augment.*.*_alpha": either(NULL, real(0, 1000)),
    "augment.*.off_after_epoch": either(NULL, whole(1, MANY)),
    # task
    "task.label_smoothing": _drop,
    "task.kind": one_of("hard", "soft"),
    "task.temperature": real(0, 1000, above=True),
    "task.weight": _probability,
    "task.freeze": spelled(
        r"none|head_only|first_0*[1-9]\d*",
        "none, head_only or first_N, such as first_1 for the stem and first_3 for two blocks as well",
    ),
    # callbacks
    "callbacks.ema.decay": either(NULL, _drop),
    "callbacks.early_stopping.patience": either(NULL, whole(1, 1_000_000)),
    "callbacks.early_stopping.monitor": one_of("val/accuracy", "val/loss"),
    "callbacks.diagnostics.every_epochs": either(NULL, whole(1, 1_000_000)),
    "callbacks.checkpoint.every_minutes": real(0, 100_000, above=True),
    # logger
    "logger.mlflow.tracking_uri": TEXT,
    "logger.wandb.mode": one_of("offline", "online"),
    # trainer
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.devices": either(one_of("auto"), whole(1, 65_536), one_of(-1), listing(whole(0, 1023))),
    "trainer.num_nodes": whole(1, 65_536),
    "trainer.precision": either(
        one_of("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
        one_of("transformer-engine", "transformer-engine-float16", "64", "32", "16", "bf16"),
        one_of(64, 32, 16),
    ),
    "trainer.max_epochs": either(whole(1, 1_000_000), one_of(-1)),
    "trainer.min_epochs": either(NULL, whole(0, 1_000_000)),
    "trainer.max_steps": either(whole(1, MANY), one_of(-1)),
    "trainer.min_steps": either(NULL, whole(0, MANY)),
    "trainer.max_time": _duration,
    "trainer.fast_dev_run": either(FLAG, whole(0, MANY)),
    "trainer.overfit_batches": _batches,
    "trainer.limit_*_batches": either(NULL, _batches),
    "trainer.accumulate_grad_batches": whole(1, 1_000_000),
    "trainer.gradient_clip_val": either(NULL, real(0, MANY)),
    "trainer.gradient_clip_algorithm": either(NULL, one_of("norm", "value")),
    "trainer.deterministic": either(NULL, FLAG, one_of("warn")),
    **dict.fromkeys(("trainer.benchmark", "trainer.enable_checkpointing"), either(NULL, FLAG)),
    **dict.fromkeys(("trainer.enable_progress_bar", "trainer.enable_model_summary"), either(NULL, FLAG)),
    "trainer.check_val_every_n_epoch": either(NULL, whole(1, 1_000_000)),
    "trainer.val_check_interval": either(whole(1, MANY), real(0, 1, above=True), _duration),
    "trainer.num_sanity_val_steps": either(whole(0, MANY), one_of(-1)),
    "trainer.log_every_n_steps": whole(1, MANY),
    "trainer.profiler": either(NULL, one_of("simple", "advanced", "pytorch")),
    "trainer.reload_dataloaders_every_n_epochs": whole(0, 1_000_000),
}

_PATTERNS = {key: kind for key, kind in RULES.items() if "*" in key}


def rule(key: str) -> Constraint | None:
    """Return the rule for a key: its own, else the first pattern that matches; none in an open node."""
    if key in RULES or is_open(key):
        return RULES.get(key)
    return next((kind for pattern, kind in _PATTERNS.items() if fnmatchcase(key, pattern)), None)


def is_open(key: str) -> bool:
    """Whether a dotted key lies in a node that takes keys of the user's own."""
    return keys.under(key, OPEN_NODES)
