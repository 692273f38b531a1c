"""What was probably meant: the nearest key or option for one that does not exist."""

from collections.abc import Iterable, Mapping, Sequence

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
    keys = [name for name in keys if not name.endswith(("_target_", "_partial_"))]
    parts = {group.replace("/", "."): group for group in options}  # model.tokenizer is chosen with a slash
    return [parts.get(match, match) for match in _nearest_keys(key.replace("/", "."), keys, options)]


def _nearest_keys(key: str, keys: Sequence[str], options: Mapping[str, Iterable[str]]) -> list[str]:
    known = {*keys, *options}
    if key in known:
        return [key]
    parent, _, last = key.rpartition(".")
    meant = SYNONYMS.get(last, "")
    if meant in known and parent in ("", meant.rpartition(".")[0]):
        return [meant]
    for group, names in options.items():
        if last in names and parent in ("", group, group.rpartition("/")[0]):
            return [f"{group}={last}"]
    endings = {name: name.rpartition(".")[2] for name in keys}
    below = {name: name.removeprefix(f"{parent}.") for name in keys if name.startswith(f"{parent}.")}
    if "." in parent and (matches := _nearest_name(last, below)):  # so deep a place is meant
        return matches
    if same := [name for name, ending in endings.items() if ending == last]:
        return same
    if parent in known:
        return _nearest_name(last, below)
    if matches := nearest(key, known if parent else options, KEY_CUTOFF):
        return matches
    return _nearest_name(last, endings)


def _nearest_name(word: str, shown: dict[str, str]) -> list[str]:
    """Return the key of the nearest form, else the shortest with the word: `patch_norm` for `norm`."""
    forms = {form: key for key, form in reversed(shown.items())}  # the first key of a form
    longer = sorted((form for form in shown.values() if len(word) >= 4 and word in form), key=len)
    return [forms[form] for form in nearest(word, shown.values(), KEY_CUTOFF) or longer[:1]]
