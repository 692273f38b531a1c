"""Random command lines: what may be typed, and what is broken.

What is drawn follows from conf/ and the schema: the options are the files, the values what the sentence of a
rule names, and what else it accepts. Keys are listed here only to keep networks small and processes few.
"""
# ruff: noqa: SIM905

import contextlib
import functools
import importlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import timm
import torchvision
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import TINY, train_in
from vitlab.config import compose, keys, to_plain
from vitlab.config.arguments import FLAGS
from vitlab.config.checks import unresolved
from vitlab.config.composer import Composer
from vitlab.config.schema import rule
from vitlab.config.types import like, show
from vitlab.models.torchvision_model import LEFT_OUT

# Of everything that is drawn, what keeps it small: two steps of a network of two blocks.
SMALL = dict(
    line.split("=", 1)
    for line in (
        *TINY,
        *"model.width=4 model.blocks=[1,1] model.mlp_ratio=2 model.attention.projection_length=4".split(),
        *"trainer.max_steps=2 data.num_train=40 data.num_test=20 data.val_size=10 data.num_workers=0".split(),
    )
)
LARGEST = {"data.num_workers": 1, "model": 32, "data": 32, "augment": 64}
# More processes, other hardware, minutes of compilation, another run.
HELD = (
    "data.kind",
    "resume",
    "sweep",
    "compile",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
)
FREE_TEXT = ["mine", "gruñido", "no/where", "0"]
NUMBERS = [0, 1, 2, 3, 4, 8, 16, 0.0, 0.1, 0.5, 0.9, 1.0, 2.0, 1e-3]


class Material(NamedTuple):
    """What some options need: class folders of images, a list of them, and a trained teacher."""

    images: Path
    teacher: Path

    @classmethod
    def make(cls, folder: Path) -> "Material":
        rng = np.random.default_rng(0)
        rows = ["path,label"]
        for number in range(60):
            file = folder / "images" / f"class {number % 3}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(file)
            rows.append(f"{file.relative_to(folder)},{file.parent.name}")
        (folder / "images.csv").write_text("\n".join(rows))
        return cls(folder / "images", train_in(folder / "teacher", "trainer.max_epochs=1"))

    def needed(self, option: str) -> dict[str, str]:
        """Return what goes with an option, such as ``data=image_folder``."""
        return {
            "data=image_folder": {"data.root": str(self.images)},
            "data=image_list": {"data.root": str(self.images.with_suffix(".csv"))},
            "task=distill": {"task.teacher": str(self.teacher)},
        }.get(option, {})


@functools.cache
def options() -> dict[str, list[str]]:
    """Return the options of each group, without those that are recipes, sweeps or downloads."""
    with Composer("train") as composer:
        groups = {k: v for k, v in composer.options.items() if v and k not in ("experiment", "sweep")}
    return groups | {"data": [name for name in groups["data"] if not name.startswith(("cifar", "fashion"))]}


@functools.cache
def composed(*choices: str) -> dict[str, Any]:
    return to_plain(compose(choices))


@functools.cache
def every_key() -> list[str]:
    """Return the keys of conf/train.yaml, Hydra's own too."""
    config = OmegaConf.to_container(compose(with_hydra=True), resolve=False)
    return [key for key, _ in walk_values(config)]


@functools.cache
def operations() -> dict[str, Any]:
    """Return the settings of every augmentation there is."""
    return {k: v for k, v in unresolved(compose())["augment"].items() if isinstance(v, dict)}


@functools.cache
def library_names(option: str) -> list[str]:
    """Return small networks of another library."""
    if option.startswith("timm"):
        return timm.list_models("test_*")
    every = torchvision.models.list_models(module=torchvision.models, exclude=LEFT_OUT)
    weights = {name: torchvision.models.get_model_weights(name) for name in every}
    known = {name: next(iter(kind)).meta for name, kind in weights.items() if len(kind)}
    classify = [name for name, meta in known.items() if len(meta.get("categories", ())) == 1000]
    return [name for name in classify if known[name]["num_params"] < 6e6]


def pool(says: str, own: Any) -> Iterator[Any]:
    """Yield what may be a value, from the words and numbers of the sentence that says what it has to be."""
    numbers = [yaml.safe_load(text) for text in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", says)]
    numbers = [float(n) if isinstance(n, str) else n for n in numbers] + NUMBERS
    scalars = [own, None, True, False, *re.findall(r"[A-Za-z][\w./-]*", says), *FREE_TEXT, *numbers]
    numbers += [int(n) for n in numbers if isinstance(n, float) and n.is_integer()]
    yield from scalars
    yield from ([one] * count for one in numbers for count in (1, 2, 3))
    yield from ([one, other] for one, other in itertools.pairwise(numbers))
    yield from (yaml.safe_load(text) for text in re.findall(r"\{[\w:, ]+\}", says))
    names = re.findall(r"(\w+): ", says)
    yield from ({name: [0.5] * count for name in names} for count in (1, 3))


def values(key: str, own: Any) -> SearchStrategy[Any]:
    """Return what the rule of a key accepts, or what is like the YAML's own value."""
    allowed = rule(key) or like(own)
    if allowed is None:
        return st.just(own)
    most = next((LARGEST[name] for name in (key, key.partition(".")[0]) if name in LARGEST), None)

    def fits(value: Any) -> bool:
        large = most is not None and any(
            type(item) in (int, float) and abs(item) > most for _, item in keys.leaves(value)
        )
        return allowed.accepts(value) and not large

    known = list(pool(allowed.says, own))
    found = [st.sampled_from([value for value in known if fits(value)] or [own])]
    numbers = sorted(float(n) for n in known if type(n) in (int, float))
    if fits(0.0123) or fits(0.789):
        found.append(st.floats(numbers[0], numbers[-1]).filter(fits))
    return st.one_of(found)


@st.composite
def lines(draw: DrawFn, material: Material, changes: int = 4) -> list[str]:
    """Draw a command line of allowed values; whether they go together is for the config to say."""
    chosen = {"data": draw(st.sampled_from(options()["data"]))}
    for group, names in options().items():
        if chosen["data"] != "shapes":  # for whose classes the teacher is
            names = [name for name in names if name != "distill"]
        if group == "model" or ("/" not in group and group not in chosen and draw(st.booleans())):
            chosen[group] = draw(st.sampled_from(names))
    model = composed(f"model={chosen['model']}")["model"]
    for group in (name for name in options() if name.startswith("model/")):
        if group.partition("/")[2] in model and draw(st.booleans()):
            chosen[group] = draw(st.sampled_from(options()[group]))
    typed = {**chosen, "trainer": "cpu"}
    config = {**composed()}
    for group, option in typed.items():  # one by one, and so each of them once
        if "/" not in group:
            parts = [f"{name}={chosen[name]}" for name in chosen if name.startswith(f"{group}/")]
            config[group] = composed(f"{group}={option}", *parts)[group]
    given = {key: value for key, value in SMALL.items() if keys.has(config, key) and key not in options()}
    if "pretrained" in model:
        name = draw(st.sampled_from(library_names(chosen["model"])))
        given |= {"model.image_size": "32", "model.name": name}
    for group, option in chosen.items():
        given |= material.needed(f"{group}={option}")
    if draw(st.booleans()):
        ops = draw(st.lists(st.sampled_from(sorted(operations())), unique=True, max_size=4))
        config = config | {"augment": {name: operations()[name] for name in ops}}
        given["augment.ops"] = show(ops)
    there = [k for k, v in walk_values(config) if not keys.under(k, HELD)]
    for key in draw(st.lists(st.sampled_from(there), unique=True, max_size=changes)):
        if key != "augment.ops" and key not in ("model.name", "trainer.max_steps"):
            given[key] = show(draw(values(key, keys.get(config, key))))
    return [f"{key}={value}" for key, value in (typed | given).items()]


def walk_values(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys that hold a value; a list is one."""
    for key in keys.walk(config):
        value = keys.get(config, key)
        if not isinstance(value, dict) and not key.endswith("_"):
            yield key, value


JUNK = [
    *("", " ", "\n", "\t", "a b", "9" * 30, "9" * 5000, "a" * 300, "\u202e", "\x1b[31m", "\udcff", "名前"),
    *"null true -1 0 -0 -0.0 0.5 1.5 1e400 1e-400 nan inf -inf 1_000 0x10 1:30 2026-01-01 abc é".split(),
    *"[] {} [ } ' \" 'a [[[[[[[[ (1,2) [1,[2]] [null] [true] [0] [-1] {a:1} {1:2} {a:{b:[c]}} &a[*a]".split(),
    *"1,2 a,b , $ ${ ${seed} ${nowhere} ${model} ${oc.env:HOME} ${oc.env:NOWHERE}".split(),
    *"~ @ = == 1=2 \\ * ??? : # .. /nowhere/at/all /dev/null/x train.py choice() choice(1,2) glob(*)".split(),
    *"interval(0,1) interval(1,0) range(1,3) range(3,1) range(0,1,0) range(nan,inf) tag(a,1)".split(),
    *"!!python/object:os.x sort(1,a) shuffle(1) int(abc) str(1) float(x) json_str(1)".split(),
]
WORDS = st.text(st.characters(exclude_characters="\0/~", exclude_categories=()), max_size=8).map(
    # A command line has no characters but those of bytes; what is no UTF-8 arrives as U+DC80 to U+DCFF.
    lambda text: os.fsdecode(text.encode("utf-8", "surrogatepass"))
)
JUNKS = st.one_of(st.sampled_from(JUNK), WORDS, st.integers().map(str), st.floats().map(str))


@st.composite
def broken_lines(draw: DrawFn, material: Material) -> list[str]:
    """Draw a command line and break it in one or two ways, so that it may still be right by chance."""
    given = draw(lines(material, changes=1))
    flags = [word for names in FLAGS for flag in names for word in (flag, flag[:-1], f"{flag}x")]
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(given) - 1))
        line = given[place]
        key, _, value = line.partition("=")
        where = draw(st.integers(0, len(key) - 1))
        junk = draw(JUNKS)
        given[place : place + 1] = draw(
            st.sampled_from(
                [
                    *[[f"{key}={junk}"]] * 4,
                    *[[line, f"{draw(st.sampled_from(every_key()))}={junk}"]] * 4,
                    [f"{draw(st.sampled_from(sorted(options())))}={junk}"],
                    [key[:where] + key[where + 1 :] + f"={value}"],
                    [key[:where] + key[where] * 2 + key[where + 1 :] + f"={value}"],
                    [key[:where] + junk + key[where:] + f"={value}"],
                    [draw(st.sampled_from(["~", "+", "++", "-", "--", "@", "/", "."])) + line],
                    [f"{key}@{junk}={value}"],
                    [f"~{key}"],
                    [f"{key}.{junk}={value}"],
                    [key],
                    [key, value],
                    [line, line],
                    [f"{key}={value},{junk}"],
                    [line, junk],
                    [line, draw(st.sampled_from(flags))],
                    [f"+model.kwargs.{junk}={junk}"],
                ]
            )
        )
    return [*given, *draw(st.sampled_from([[]] * 4 + [["-m"], ["-m", "sweep=optuna"]]))]


VERBS = ("predict", "evaluate", "explain", "export", "compare", "demo")
PLACES = ("empty", "file.txt", "torn.ckpt", "run", "run/config.yaml", "emptied.ckpt", "empty/*.png", "-")


@st.composite
def words_of_verbs(draw: DrawFn) -> list[str]:
    """Draw a verb, and words of which none is a trained network: its flags, places, junk."""
    verb = draw(st.sampled_from(VERBS))
    flags = st.sampled_from(flags_of(verb))
    word = st.one_of(
        st.sampled_from(PLACES),
        flags,
        flags.map(lambda flag: flag[:-1]),
        st.tuples(flags, JUNKS).map("=".join),
        JUNKS,
        JUNKS.map("data.root={}".format),
        st.sampled_from([f"data={name}" for name in options()["data"]]),
    )
    return [verb, *draw(st.lists(word, max_size=6))]


@functools.cache
def flags_of(verb: str) -> list[str]:
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        mock.patch("sys.argv", [verb, "--help"]),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(verb).main()
    return sorted({*re.findall(r"--[a-z][\w-]*", said.getvalue())})
