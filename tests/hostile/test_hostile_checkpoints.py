"""Checkpoints and other weights that a person is handed."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, checkpoint
from tests.hostile.helpers import Answers, Damage, Payload, edit, put
from vitlab.core.errors import UserError
from vitlab.models.pretrained import read_weights


def compress(path: Path) -> None:
    """Write the same archive compressed, with 64 MB in place of some weights."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    first = next(name for name in parts if "/data/" in name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            with new.open(name, "w") as file:
                file.write(content)
                for _ in range(4 if name == first else 0):
                    file.write(bytes(2**24))


def circle(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["vitlab"]["config"]["self"] = content["vitlab"]["config"]
    torch.save(content, path)


FIRST = "net.tokenizer.projection.linear.weight"
CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "a payload": (
        lambda path: torch.save({"state_dict": Payload(path.parents[2])}, path),
        "names code to run",
    ),
    "a payload as an old pickle": (
        lambda path: path.write_bytes(pickle.dumps({"state_dict": Payload(path.parents[2])})),
        "names code to run",
    ),
    "64 MB in a few kB": (compress, "cannot be read"),
    "a config within itself": (circle, "refers to itself"),
    "no description": (edit(vitlab=KeyError), "not written by vitlab"),
    "a description that is a word": (edit(vitlab="x"), "what it says of itself"),
    "no classes": (edit(vitlab__classes=KeyError), "(classes)"),
    "classes that are numbers": (edit(vitlab__classes=[1] * 10), "(classes.0, "),
    "fewer classes than logits": (edit(vitlab__classes=["a"]), "10 classes, and it has 1"),
    "images of a terabyte": (edit(vitlab__input_size=[2**20, 2**20]), "(input_size)"),
    "a config without a model": (edit(vitlab__config__model=KeyError), "has no model"),
    "a network for no machine": (edit(vitlab__config__model__depth=10**9), "model.depth="),
    "code that is not ours": (edit(vitlab__config__model___target_="os.system"), "os.system"),
    "weights that are a list": (edit(state_dict=[1]), "not tensors by name"),
    "a weight that is a word": (edit(**{f"state_dict__{FIRST}": "x"}), "not tensors by name"),
    "a weight of 16 GiB with one number": (
        edit(**{f"state_dict__{FIRST}": torch.zeros(1).expand(2**32)}),
        "(4294967296,)",
    ),
}


@pytest.mark.parametrize(("damage", "said"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused_wherever_it_is_given(
    answer: Answers, unfinished: Path, image: Path, damage: Damage, said: str
) -> None:
    put(unfinished, damage)
    for verb, *words in (("predict", unfinished, image), ("train", f"resume={unfinished}")):
        code, text = answer(verb, *words)
        assert code == 1
        assert said in text
        assert "Traceback" not in text


@pytest.mark.parametrize("name", ["a payload", "64 MB in a few kB", "weights that are a list"])
@pytest.mark.parametrize("key", ["model.checkpoint_path", "task=distill task.teacher"])
def test_a_hostile_checkpoint_starts_and_teaches_nothing(
    answer: Answers, copied: Path, tmp_path: Path, name: str, key: str
) -> None:
    put(copied, CHECKPOINTS[name][0])
    new = tmp_path / "new"
    code, text = answer("train", *TINY, *f"{key}={copied}".split(), f"hydra.run.dir={new}")
    assert code == 1
    assert str(copied) in text
    assert not new.exists()


RESUMES: dict[str, Damage] = {
    "no step": edit(global_step=KeyError),
    "a step that is a word": edit(global_step="x"),
    "no optimizer": edit(optimizer_states=KeyError),
    "no state of an optimizer": edit(optimizer_states=[]),
    "callbacks that are a list": edit(callbacks=[1]),
    "no version of Lightning's": edit(lightning=KeyError),
    "a version that is none": edit(lightning="next"),
}


@pytest.mark.parametrize("damage", RESUMES.values(), ids=RESUMES)
def test_a_checkpoint_of_another_format_is_no_place_to_resume_from(
    answer: Answers, unfinished: Path, damage: Damage
) -> None:
    put(unfinished, damage)
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert "resume" in text.partition("error: ")[2]


@pytest.mark.parametrize("verb", ["predict", "resume", "start", "teach"])
def test_weights_of_another_network_are_shown_beside_those_expected(
    answer: Answers, unfinished: Path, image: Path, tmp_path: Path, verb: str
) -> None:
    weights = checkpoint(unfinished)["state_dict"]
    put(unfinished, edit(state_dict={k: torch.zeros([3] * v.ndim) for k, v in weights.items()}))
    new = f"hydra.run.dir={tmp_path / 'new'}"
    code, text = {
        "predict": lambda: answer("predict", unfinished, image),
        "resume": lambda: answer("train", f"resume={unfinished}"),
        "start": lambda: answer("train", *TINY, new, f"model.checkpoint_path={unfinished}"),
        "teach": lambda: answer("train", *TINY, new, "task=distill", f"task.teacher={unfinished}"),
    }[verb]()
    assert code == 1
    error = " ".join(text.partition("error: ")[2].split())
    assert "the network the file" in error
    assert "blocks.0.attention.out.bias (16,) (3,)" in error
    assert " more" in error
    assert text.partition("error: ")[2].count("\n") < 16


def test_resuming_under_other_versions_is_noted(answer: Answers, unfinished: Path) -> None:
    put(unfinished, edit(vitlab__versions={"torch": "1.0", "vitlab": "0.0.1"}))
    code, text = answer("train", f"resume={unfinished}")
    assert code == 0
    assert "torch: 1.0 → " in text
    assert "will not end bit for bit" in " ".join(text.split())


def tensors(header: Any, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(64)


def entry(shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "a header of 2**60 bytes": tensors({}, 2**60),
    "a header that is deep": tensors(b"[" * 100_000),
    "tensors over each other": tensors({"a": entry([8], 0, 32), "b": entry([8], 16, 48)}),
    "tensors beyond the file": tensors({"a": entry([2**38], 0, 2**40)}),
    "a shape that its bytes do not fill": tensors({"a": entry([2**30], 0, 64)}),
    "a shape that overflows": tensors({"a": entry([2**62, 4], 0, 64)}),
    "nothing": b"",
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a file of weights"):
        read_weights(tmp_path / "model.safetensors")
