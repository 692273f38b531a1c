"""What was probably meant: the nearest key or option for one that does not exist."""

from collections.abc import Iterable, Mapping

from vitlab.core.suggest import nearest

# Keys are short words in one vocabulary: at 0.6, `depth` would be taken for `width`.
KEY_CUTOFF = 0.7

# Other programs' words for our keys, too far from them for a nearest match.
SYNONYMS = {
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "dataset": "data",
    "embed_dim": "model.dim",
    "emb_dim": "model.dim",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "layers": "model.depth",
    "num_layers": "model.depth",
    "num_heads": "model.heads",
    "opt": "optimizer",
    "patch": "model.patch_size",
    "sched": "scheduler",
    "steps": "trainer.max_steps",
    "warmup": "scheduler.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}


def suggest_key(key: str, keys: Iterable[str], options: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the keys (or `group=option`) that were probably meant by `key`, best first.

    Args:
        key: as typed.
        keys: all dotted keys of the config.
        options: the config groups and their options.
    """
    parts = {group.replace("/", "."): group for group in options}  # model.tokenizer is chosen with a slash
    return [parts.get(match, match) for match in _nearest_keys(key, keys, options)]


def _nearest_keys(key: str, keys: Iterable[str], options: Mapping[str, Iterable[str]]) -> list[str]:
    keys = [known for known in keys if not known.endswith(("_target_", "_partial_"))]
    known = {*keys, *options}
    key = key.replace("/", ".")
    if key in known:
        return [key]
    parent, _, last = key.rpartition(".")
    meant = SYNONYMS.get(last, "")
    if meant in known and parent in ("", meant.rpartition(".")[0]):
        return [meant]
    for group, names in options.items():
        if last in names and parent in ("", group, group.rpartition("/")[0]):
            return [f"{group}={last}"]
    same = [name for name in keys if name.rpartition(".")[2] == last]
    if same:
        return same
    if parent in known:
        below = {name.removeprefix(f"{parent}."): name for name in keys if name.startswith(f"{parent}.")}
        return [below[match] for match in nearest(last, below, KEY_CUTOFF) or _longer(last, below)]
    if not parent and (matches := nearest(last, options, KEY_CUTOFF)):
        return matches
    endings: dict[str, str] = {}
    for name in keys:
        endings.setdefault(name.rpartition(".")[2], name)
    if parent and (matches := nearest(key, known, KEY_CUTOFF)):
        return matches
    return [endings[ending] for ending in nearest(last, endings, KEY_CUTOFF) or _longer(last, endings)]


def _longer(word: str, choices: Iterable[str]) -> list[str]:
    """Return the shortest choice that contains the word, in a list: `norm` for `patch_norm`."""
    longer = [choice for choice in choices if len(word) >= 4 and word in choice]
    return sorted(longer, key=len)[:1]
