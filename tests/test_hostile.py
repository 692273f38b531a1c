"""Files that a person is handed: nothing in them runs, memory is bounded, nothing outside changes."""

import importlib
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import TINY, checkpoint, summary
from vitlab.compare import compare
from vitlab.core.checkpoint import checksum_file
from vitlab.core.cli import finish
from vitlab.core.console import make_console
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.core.untrusted import LARGEST_YAML, misfits
from vitlab.models.pretrained import read_weights
from vitlab.sweep.record import Sweep

Damage = Callable[[Path], object]
ROOM = 2**30  # bytes of addresses that may be taken beside those that are there; threads and libraries too


@pytest.fixture(autouse=True)
def guarded(tmp_path: Path) -> Iterator[None]:
    """Nothing beside the run folder changes, and memory has an end."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["precious"]
    assert (tmp_path / "outside" / "precious").read_text() == "kept"
    assert not (tmp_path / "owned").exists()


class Payload:
    """What a pickle runs as it is read."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder}/owned"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Answers:
    """Runs verbs as a person does, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, verb: str, *words: object) -> tuple[int, str]:
        """Return exit status and what was printed; an exception that is no plain sentence passes through."""
        self.monkeypatch.setattr(sys, "argv", [f"{verb}.py", *map(str, words)])
        self.capsys.readouterr()
        code = finish(importlib.import_module(verb).main)
        return code, "".join(self.capsys.readouterr())


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answers:
    return Answers(monkeypatch, capsys)


@pytest.fixture
def unfinished(copied: Path) -> Path:
    """A run whose training is done, but for its test."""
    Summary(RunFolder(copied).summary).update(status="interrupted")
    return copied


def append(text: str) -> Damage:
    return lambda path: path.write_text(path.read_text() + text)


def change(key: str, value: Any) -> Damage:
    def edit(path: Path) -> None:
        config = yaml.safe_load(path.read_text())
        *nodes, last = key.split(".")
        node = config
        for part in nodes:
            node = node[part]
        node[last] = value
        path.write_text(yaml.safe_dump(config))

    return edit


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def bomb(line: str) -> str:
    """Return anchors of which each stands for nine of the one before."""
    lines = (f"b{place}: &b{place} {line.format(','.join([f'*b{place - 1}'] * 9))}" for place in range(1, 12))
    return "\n".join(["\nb0: &b0 {x: [y]}", *lines])


CONFIGS: dict[str, tuple[Damage, str]] = {
    "a tag that calls os.system": (
        append("\na: !!python/object/apply:os.system [touch owned]"),
        "constructor",
    ),
    "a billion laughs": (append(bomb("[{}]")), "refers to an anchor"),
    "a billion merged keys": (append(bomb("{{<<: [{}]}}")), "refers to an anchor"),
    "a mapping within itself": (append("\na: &a {b: *a}"), "refers to an anchor"),
    "a hundred thousand brackets": (append("\na: " + "[" * 100_000), "nested too deeply"),
    "dashes that overflow libyaml's stack": (lambda p: p.write_text("- " * 50_000), "nested too deeply"),
    "more than any config": (append("\na: " + "x" * LARGEST_YAML), "larger than"),
    "cut in half": (cut, "config.yaml "),
    "emptied": (lambda path: path.write_text(""), "empty"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\x00"), "config.yaml"),
    "an end in the middle of a list": (append("\na: [1,"), "line "),
}


@pytest.mark.parametrize(("damage", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_config_is_one_sentence_to_resume_and_a_note_to_compare(
    answer: Answers, unfinished: Path, tmp_path: Path, damage: Damage, said: str
) -> None:
    sound = shutil.copytree(unfinished, tmp_path / "study" / "sound")
    damage(unfinished / "config.yaml")
    for verb in ("train", "evaluate"):
        code, text = answer(verb, f"resume={unfinished}" if verb == "train" else unfinished)
        assert (code, text.count("\n")) == (1, 1)
        assert said in text
        assert not (unfinished / "evaluation").exists()
    shutil.move(unfinished, tmp_path / "study")
    code, text = answer("compare", tmp_path / "study")
    assert code == 0
    assert "broken: 1 of 2 runs" in text
    assert sound.name in text


REFUSED: dict[str, tuple[Damage, str]] = {
    "code that is not ours": (change("model._target_", "os.system"), "model._target_=os.system"),
    "a part of code that is not ours": (
        change("model.tokenizer._target_", "torch.hub.load"),
        "torch.hub.load",
    ),
    "a section that is a list": (change("trainer", [1]), "trainer: expected keys below it"),
    "a number that is a word": (change("trainer.devices", {"a": 1}), "trainer.devices="),
    "what was typed as a number": (change("overrides", 7), "overrides: expected a list of texts"),
    "a network for no machine": (change("model.depth", 10**9), "model.depth=1000000000"),
    "infinity": (change("data.normalization", {"mean": [float("inf")], "std": [1.0]}), "data.normalization="),
    "a folder": (to_folder, "config.yaml"),
    "a pipe, which has no end": (to_pipe, "config.yaml"),
    "a device, which has no end": (to_zeros, "config.yaml"),
}


@pytest.mark.parametrize(("damage", "said"), REFUSED.values(), ids=REFUSED)
def test_a_config_of_another_form_is_one_sentence(
    answer: Answers, unfinished: Path, damage: Damage, said: str
) -> None:
    damage(unfinished / "config.yaml")
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert said in text
    assert "Traceback" not in text
    assert answer("compare", unfinished)[0] in (0, 1)  # and it comes to an end


def test_a_value_of_the_config_looks_nothing_up(answer: Answers, unfinished: Path) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    (unfinished / "metrics.csv").unlink()
    change("model.init", "${oc.env:HOME}")(unfinished / "config.yaml")
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert os.environ["HOME"] not in text.replace(str(unfinished), "")


# checkpoints


def edit(**values: Any) -> Damage:
    """Replace what stands at dotted keys, written with __ for a point; an exception's class deletes it."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        for key, value in values.items():
            *nodes, last = key.split("__")
            node = content
            for part in nodes:
                node = node[part]
            if value is KeyError:
                del node[last.replace("lightning", "pytorch-lightning_version")]
            else:
                node[last.replace("lightning", "pytorch-lightning_version")] = value
        torch.save(content, path)

    return damage


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


def put(folder: Path, damage: Damage) -> None:
    """Damage the checkpoints of a run, with no record of what they were."""
    for path in (folder / "checkpoints").glob("*.ckpt"):
        damage(path)
        checksum_file(path).unlink()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


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


# weights


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


# summaries, metrics

SUMMARIES: dict[str, Any] = {
    "a hundred thousand brackets": "[" * 100_000,
    "nested to the edge": '{"alarms": ' + "[" * 900 + "]" * 900 + "}",
    "a list": "[1]",
    "cut": '{"status": "fini',
    "not UTF-8": b"\xff\xfe\x00",
    "a number without end": '{"metrics": {"val/accuracy": ' + "9" * 5000 + "}}",
    "infinite accuracy": '{"metrics": {"val/accuracy": 1e400}, "train": {"epochs": 0.5}}',
    "words for everything": json.dumps(dict.fromkeys(("metrics", "train", "model", "data", "turned"), "x")),
}


@pytest.mark.parametrize("content", SUMMARIES.values(), ids=SUMMARIES)
def test_of_a_hostile_summary_what_is_sound_is_read(answer: Answers, copied: Path, content: Any) -> None:
    path = copied / "summary.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = RunFolder(copied).read_summary()
    assert not {"metrics", "train", "alarms"} & found.keys()
    assert answer("compare", copied)[0] == 0
    assert answer("export", copied, "--format", "safetensors")[0] == 0


@pytest.mark.parametrize(
    "content", [b"epoch,step\n1,\x00\n", b"epoch,step\n1," + b"1" * 200_000, b"epoch\nx"]
)
def test_hostile_metrics_are_one_sentence(answer: Answers, copied: Path, content: bytes) -> None:
    shutil.rmtree(copied / "checkpoints")
    Summary(RunFolder(copied).summary).update(status="interrupted")
    (copied / "metrics.csv").write_bytes(content)
    code, text = answer("train", f"resume={copied}")
    assert code == 1
    assert "metrics.csv cannot be read" in text
    assert answer("compare", copied)[0] == 0


def test_a_run_records_what_the_types_say(finished: Path) -> None:
    from vitlab.core.checkpoint import CheckpointMeta
    from vitlab.core.summary import SummaryData

    assert not [*misfits(summary(finished), SummaryData)]
    assert not [*misfits(checkpoint(finished)["vitlab"], CheckpointMeta)]


# sweeps

JOB = {"label": "a", "folder": "a", "reason": None, "overrides": []}
SWEEPS: dict[str, Any] = {
    "a job outside": {"jobs": [JOB | {"folder": "../outside"}]},
    "a job anywhere": {"jobs": [JOB | {"folder": "/etc"}]},
    "the folder above": {"jobs": [JOB | {"folder": ".."}]},
    "jobs that are words": {"jobs": ["a"]},
    "a label that is a list": {"jobs": [JOB | {"label": [1]}]},
    "a command that is a number": {"command": 1},
    "a search that is a word": {"search": "x"},
}


@pytest.mark.parametrize("changed", SWEEPS.values(), ids=SWEEPS)
def test_a_hostile_sweep_is_one_sentence(answer: Answers, tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    record = {"command": [], "swept": [], "launcher": [], "jobs": [JOB]}
    (folder / "sweep.json").write_text(json.dumps(record))
    assert len(Sweep.load(folder).jobs) == 1
    (folder / "sweep.json").write_text(json.dumps(record | changed))
    code, text = answer("train", f"sweep.resume={folder}")
    assert (code, text.count("\n")) == (1, 1)
    assert "sweep.json cannot be read" in text


@pytest.mark.parametrize("content", [b"no database", pickle.dumps(["x"])])
def test_a_study_that_is_no_database_is_one_sentence(answer: Answers, tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    folder.mkdir()
    search = {"fixed": [*TINY, "sweep=optuna"], "space": {"model.depth": "range(1,3)"}}
    record = {"command": [], "swept": [], "launcher": [], "jobs": [], "search": search}
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "study.db").write_bytes(content)
    code, text = answer("train", f"sweep.resume={folder}")
    assert code == 1
    assert "study.db cannot be read" in text


# links


@pytest.mark.parametrize("name", ["train.log", ".lock", "checkpoints", "figures", "evaluation"])
def test_nothing_is_written_through_a_link_that_leads_out(
    answer: Answers, unfinished: Path, tmp_path: Path, name: str
) -> None:
    path, outside = unfinished / name, tmp_path / "outside"
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "precious" if "." in name else outside)
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert f"{name} is a link that leads out" in text


def test_a_report_is_not_written_through_a_link_that_leads_out(copied: Path, tmp_path: Path) -> None:
    (copied / "report").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="report is a link that leads out"):
        compare([copied], [], None, make_console())


# images and names


def test_an_image_that_claims_gigabytes_is_reported_and_the_others_are_predicted(
    answer: Answers, finished: Path, image: Path, tmp_path: Path
) -> None:
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    (tmp_path / "payload.jpg").write_bytes(pickle.dumps(Payload(tmp_path)))
    code, text = answer("predict", finished, image, tmp_path / "bomb.png", tmp_path / "payload.jpg")
    assert code == 1
    assert "image.png" in text
    assert "bomb.png: Image size (3600000000 pixels) exceeds limit" in text, text
    assert "2 of 3 images cannot be read" in text


NAMES = [
    "<script>",
    "\x1b[31mred",
    "two\nlines",
    "[bold]b",
    "$x^2$",
    "a|b`c",
    "100%s",
    "\u202efdp",
    "=cmd()",
    "../x",
]


def test_names_of_classes_and_files_are_text_wherever_they_are_shown(
    answer: Answers, copied: Path, tmp_path: Path
) -> None:
    put(copied, edit(vitlab__classes=NAMES))
    odd = tmp_path / "a\nb\x1b[2J.png"
    Image.new("RGB", (16, 16)).save(odd)
    code, text = answer("predict", copied, odd, "--top", 1)
    assert (code, text.count("\n")) == (0, 2)  # a heading and a line
    _, text = answer("predict", copied, odd, "--top", 10)
    assert text.replace("\n", "").isprintable()
    for name in ("<script>", "[bold]b", "$x^2$", "two lines"):
        assert name in " ".join(text.split())
    _, text = answer("predict", copied, odd, "--format", "csv", "--top", 10)
    assert "'=cmd()" in text
    assert "\x1b" not in text
    _, text = answer("predict", copied, odd, "--format", "jsonl")
    assert json.loads(text)["path"] == str(odd)
    _, text = answer("export", copied, "--format", "safetensors")
    card = (copied / "export" / "safetensors" / "README.md").read_text()
    assert r"\<script\>" in card
    assert r"two lines, \[bold\]b, \$x^2\$, a\|b\`c" in card
    assert card.replace("\n", "").isprintable()
