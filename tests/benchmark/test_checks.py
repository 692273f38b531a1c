"""What cannot be compared is refused at once, in one sentence, before torch is imported."""

import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT
from vitlab.benchmark import checks
from vitlab.benchmark.checks import check_benchmark, counterpart_nodes, idle
from vitlab.config import CONF, preflight, to_plain
from vitlab.core.errors import UserError


def config(*overrides: str) -> dict[str, Any]:
    (cfg,) = preflight(overrides, root="benchmark")
    return to_plain(cfg) | {"overrides": list(overrides)}


def test_the_default_is_the_setting_of_the_references() -> None:
    plain = config()
    check_benchmark(plain)
    model = plain["model"]
    assert (model["patch_size"], model["dim"], model["depth"], plain["data"]["batch_size"]) == (
        4,
        192,
        6,
        128,
    )
    assert [kind for kind, _ in counterpart_nodes(plain)] == ["RandomCrop", "RandomFlip", "AutoAugment"]


def test_the_groups_and_keys_are_those_of_train() -> None:
    train, benchmark = (OmegaConf.load(CONF / f"{name}.yaml") for name in ("train", "benchmark"))
    groups = [
        [key for entry in root.defaults if entry != "_self_" for key in entry if key != "sweep"]
        for root in (train, benchmark)
    ]
    assert groups[0] == groups[1]
    assert {*train} - {"resume"} == {*benchmark} - {"benchmark"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("trainer.accumulate_grad_batches=2", "accumulate_grad_batches=2: .* Leave it at 1"),
        ("trainer.max_time=00:00:10:00", "Leave it at null"),
        ("trainer=ddp", "strategy=ddp"),
        ("task=distill task.teacher=x", "ask no teacher"),
        ("trainer.precision=64-true", "precision=64-true"),
        ("augment=three_augment", r"augment.three \(ThreeAugment\) has no counterpart"),
        ("augment=randaugment augment.randaugment.space=timm", "RandAugment with space=timm"),
        ("augment=randaugment augment.randaugment.magnitude=9.5", "RandAugment with magnitude=9.5"),
        ("model=resnet18", "ResNet as configured"),
        ("model=vit_convstem_tiny", "no such counterpart"),
        ("model/tokenizer=spt", "no such counterpart"),
        ("model.pool=sequence", "with pool=sequence has no such counterpart"),
        ("model.position=rotary", "with position=rotary has no such counterpart"),
        ("model.position=none", "with position=none has no such counterpart"),
        ("model.drop_key=0.1", "with drop_key=0.1 has no such counterpart"),
        ("model.init=mimetic", "with init=mimetic has no such counterpart"),
        ("model.attention.qk_norm=true", "with attention.qk_norm=true has no such counterpart"),
        ("benchmark.pool=64", "pool=64 is less than a batch"),
        ("benchmark.layers=[stp]", "each step or input or both"),
        ("benchmark.against=[plan]", "plain"),
        ("benchmark.layer=[step]", "did you mean benchmark.layers"),
        ("benchmark.seconds=0", "above 0"),
    ],
)
def test_refused(overrides: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_benchmark(config(*overrides.split()))


@pytest.mark.parametrize(
    "overrides",
    [
        "model=resnet18 benchmark.against=[plain]",
        "model=resnet18 benchmark.layers=[input]",
        "augment=three_augment benchmark.against=[plain] benchmark.pool=1",
        "augment.ops=[crop,flip]",
        "augment=none",
        "augment=basic",
        "augment=randaugment",
        "augment=trivialaugment",
        "model.position=sincos model.pool=cls",
        "model.drop_key=0.1 benchmark.against=[plain]",
    ],
)
def test_not_refused_where_nothing_stands_in_the_way(overrides: str) -> None:
    check_benchmark(config(*overrides.split()))


def test_without_vit_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install vitlab\[bench\]`, or benchmark.against=\[plain\]"):
        check_benchmark(config())
    check_benchmark(config("benchmark.against=[plain]"))
    check_benchmark(config("benchmark.layers=[input]"))


def test_what_was_asked_for_and_is_not_measured() -> None:
    asked = "benchmark.against=[plain,pil]"
    assert idle(config("benchmark.layers=[step]", asked)) == ["pil"]
    assert idle(config(asked)) == []
    assert idle(config("benchmark.layers=[step]")) == []


def test_mistakes_and_help_answer_without_torch() -> None:
    code = (
        "import sys, runpy\n"
        "try: runpy.run_path('benchmark.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    for arguments, said in (
        (["--help"], "Parts"),
        (["model=resnet18"], "no such counterpart"),
        (["-m", "seed=0,1"], "leave out -m"),
        (["resume=outputs/runs/x"], "leave out -m and resume="),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert said in ended.stdout + ended.stderr
        assert ended.stderr.strip().endswith("False"), "torch was imported"
        assert ended.stderr.count("error: ") <= 1
        assert "Traceback" not in ended.stderr
