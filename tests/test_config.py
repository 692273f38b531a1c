"""What a person types is answered: composed, or refused with a sentence that says the way on."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from vitlab import config
from vitlab.config import (
    check,
    check_targets,
    combinations,
    compose,
    composition,
    preflight,
    report,
    targets,
    to_plain,
)
from vitlab.errors import UserError


def refused(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        preflight(overrides, multirun)
    return str(caught.value)


def partly(*overrides: str) -> str:
    """Return what is said of the combinations that cannot run in a sweep of which others can."""
    return report(combinations(overrides, True), "are skipped")


@pytest.fixture(autouse=True)
def _compose_each_once(monkeypatch: pytest.MonkeyPatch, _known: dict[tuple[str, ...], DictConfig]) -> None:
    """Share compositions of conf/ between the tests of this file: each takes 0.1 s."""
    conf, compose_by_hydra = composition.CONF, hydra.compose

    def remembered(root: str, overrides: list[str], **options: Any) -> DictConfig:
        if conf != composition.CONF:
            return compose_by_hydra(root, overrides, **options)
        if (key := (root, *overrides)) not in _known:
            _known[key] = compose_by_hydra(root, overrides, **options)
        return _known[key]

    monkeypatch.setattr(hydra, "compose", remembered)


@pytest.fixture(scope="module")
def _known() -> dict[tuple[str, ...], DictConfig]:
    return {}


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return to_plain(compose())


Refuse = Callable[..., str]


@pytest.fixture
def refused_values(default: dict[str, Any]) -> Refuse:
    """Put values into the default config without the cost of a composition, and check it."""

    def refuse(values: dict[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            check(changed(default, values))
        return str(caught.value)

    return refuse


def changed(plain: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    plain = copy.deepcopy(plain)
    for key, value in values.items():
        *nodes, last = key.split(".")
        node = plain
        for part in nodes:
            node = node[part]
        node[last] = value
    return plain


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to put files of one's own into."""
    folder = tmp_path / "conf"
    shutil.copytree(composition.CONF, folder)
    monkeypatch.setattr(composition, "CONF", folder)
    return folder


# What passes


def test_the_plain_command_line_is_one_checked_config() -> None:
    (cfg,) = preflight([])
    assert cfg.model.patch_size == 4
    assert "hydra" not in cfg


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("optimizer.weight_decay=0", "optimizer.weight_decay", 0),
        ("model.patch_size=[4,8]", "model.patch_size", [4, 8]),
        ("model.mlp_ratio=2", "model.mlp_ratio", 2),
        ("trainer.max_time=00:12:00:00", "trainer.max_time", "00:12:00:00"),
        ("trainer.devices=[0,1]", "trainer.devices", [0, 1]),
        ("trainer.limit_train_batches=0.5", "trainer.limit_train_batches", 0.5),
        ("trainer.precision=32", "trainer.precision", 32),
        ("trainer.gradient_clip_val=null", "trainer.gradient_clip_val", None),
        ("data.val_size=0", "data.val_size", 0),
        ("study=ablations/patch", "study", "ablations/patch"),
        ("study=2026", "study", "2026"),
        ("compile=false", "compile", False),
    ],
)
def test_values_of_every_kind_arrive(override: str, key: str, value: Any) -> None:
    (cfg,) = preflight([override])
    node = to_plain(cfg)
    for part in key.split("."):
        node = node[part]
    assert node == value
    assert type(node) is type(value)


def test_hydra_keys_are_left_to_hydra() -> None:
    overrides = ["hydra.run.dir=/somewhere", "hydra.sweep.dir=/elsewhere", "hydra/launcher=basic"]
    preflight(overrides)
    assert compose(overrides, with_hydra=True).hydra.run.dir == "/somewhere"


def test_augmentations_are_listed_and_only_those_are_kept() -> None:
    (cfg,) = preflight(["augment.ops=[flip,cutout,crop]", "augment.cutout.size=8", "augment.crop.padding=2"])
    augment = to_plain(cfg)["augment"]
    assert augment["ops"] == ["flip", "cutout", "crop"]
    assert {*augment} == {"_target_", "ops", "flip", "cutout", "crop"}
    assert (augment["cutout"]["size"], augment["crop"]["padding"]) == (8, 2)
    assert "augment.flip.p=1.5: expected a number" in refused("augment.flip.p=1.5")
    assert "did you mean flip?" in refused("augment.ops=[crop,fli]")
    assert "crop stands there twice" in refused("augment.ops=[crop,crop]")
    assert "augment.ops=null" in refused("augment.ops=null")


def test_a_setting_of_an_augmentation_that_is_not_listed_is_refused() -> None:
    assert refused("augment.cutout.size=8") == (
        "augment.cutout.size=8 has no effect: cutout is not in augment.ops; add "
        "'augment.ops=[crop,flip,cutout]'"
    )
    assert "did you mean augment.cutout.size?" in refused("augment.cutout.sise=8")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "augment=strong augment.randaugment.magnitude=11",
            "augment.randaugment.magnitude=11 is more than 10",
        ),
        (
            "data=shapes augment.crop.padding_mode=reflect augment.crop.padding=32",
            "less than the image's side of 32",
        ),
        (
            "augment=strong augment.erase.min_area=0.5",
            "augment.erase.min_area=0.5 is more than augment.erase.max_area",
        ),
        ("augment=mixup_cutmix augment.mix.mixup_alpha=0 augment.mix.cutmix_alpha=null", "are both off"),
        (
            "augment=randaugment augment.randaugment.fill=[1,2]",
            "has 2 levels, and images have data.channels=3",
        ),
    ],
)
def test_augmentations_that_cannot_be_are_refused_before_any_job(typed: str, said: str) -> None:
    assert said in refused(*typed.split())


def test_keys_are_added_in_an_open_node_alone() -> None:
    (cfg,) = preflight(["model=timm_vit_b16", "+model.kwargs.patch_size=8"])
    assert cfg.model.kwargs.patch_size == 8
    said = refused("model=timm_vit_b16", "model.kwargs.patch_size=8")
    assert "+model.kwargs.patch_size=8" in said
    assert "model=vit_small has no key" in refused("model.kwargs.patch_size=8")


def test_run_folders_are_named_by_study_and_time_once_a_composition() -> None:
    cfg = compose(["study=patch"], with_hydra=True)
    place = cfg.hydra.run.dir
    assert place.startswith("outputs/patch/2")
    assert place == cfg.hydra.run.dir == cfg.hydra.sweep.dir
    assert len(place.rpartition("-")[2]) == 3  # milliseconds


# Names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model=vit_smal", "model=vit_smal: did you mean vit_small?"),
        ("scheduler=warmup_cosin", "did you mean warmup_cosine?"),
        ("experiment=typo", "the options of experiment are"),
        ("modle=vit_small", "did you mean model?"),
        ("vit_small", "did you mean model=vit_small?"),
        ("model", "expected model=option; the options of model are"),
        ("model.vit_small=1", "did you mean model=vit_small?"),
        ("patch=8", "did you mean model.patch_size?"),
        ("patch_size=8", "did you mean model.patch_size?"),
        ("model.patchsize=8", "did you mean model.patch_size?"),
        ("lr=1e-3", "did you mean optimizer.lr?"),
        ("optimizer.learning_rate=1e-3", "did you mean optimizer.lr?"),
        ("epochs=3", "did you mean trainer.max_epochs?"),
        ("max_epochs=3", "did you mean trainer.max_epochs?"),
        ("trainer/max_epochs=3", "did you mean trainer.max_epochs?"),
        ("model.batch_size=3", "did you mean data.batch_size?"),
        (
            "optimizer.zzz=3",
            "optimizer=adamw has no key 'zzz'; the keys there are lr, weight_decay",
        ),
        ("optimizer.betas.0=0.5", "optimizer=adamw has no key 'betas.0'"),
        ("zzz=3", "no such key; the keys there are seed, study"),
        ("model/tokenizer=conv_stm", "did you mean conv_stem? The options of model/tokenizer are cct,"),
        ("model/tokenizr=cct", "did you mean model/tokenizer?"),
        ("tokenizer=cct", "did you mean model/tokenizer?"),
        ("model.cct=1", "did you mean model/tokenizer=cct?"),
        ("cct", "did you mean model/tokenizer=cct?"),
        ("model/tokenizer", "expected model/tokenizer=option; the options of model/tokenizer are cct"),
        (
            "model.tokenizer.num_convs=4",
            "model/tokenizer=patch has no key 'num_convs'; did you mean model/tokenizer=conv_stem?",
        ),
        (
            "model.checkpoint_path=x",
            "no key 'checkpoint_path'; did you mean model=timm_vit_b16 or model=torchvision_vit_b16?",
        ),
        ("task.kind=soft", "task=classify has no key 'kind'; did you mean task=distill?"),
        ("scheduler.milestone_epochs=[9]", "did you mean scheduler=step?"),
        ("hydra.rundir=x", "'rundir'"),
        ("hydra/launcher=nothing", "the options are basic"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    assert meant in refused(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("+typo=1", "+typo=1: keys can be added under model.kwargs alone"),
        ("++typo=1", "keys can be added under model.kwargs alone"),
        ("+optimiser.lr=1", "did you mean optimizer.lr?"),
        ("+model.depth=3", "write model.depth=3 without the plus"),
        ("+experiment=quickstart", "write experiment=quickstart without the plus"),
        ("~optimizer.lr", "nothing can be removed"),
        ("~augment", "give augment the option none"),
        ("experiment=null", "leave experiment out"),
        ("model=null", "model is needed; the options of model are"),
        ("model={dim: 3}", "expected one option"),
        ("model.tokenizer=cct", "a part is chosen with a slash: model/tokenizer=cct; the options"),
        ("model.tokenizer=null", "a part is chosen with a slash"),
        ("model/tokenizer=null", "model/tokenizer is needed"),
        ("model/tokenizer.num_layers=1", "a key has points where a group has slashes: model.tokenizer.num"),
        ("model=[vit_small]", "expected one option"),
        ("trainer@other=cpu", "packages (@) are not used"),
        ("model.depth=[1,2", "the value cannot be read"),
        ("model.depth", "expected key=value, found no '='"),
        ("model.image_size=${nowhere}", "Interpolation key 'nowhere' not found"),
    ],
)
def test_syntax_that_has_no_place_here_is_refused(typed: str, said: str) -> None:
    assert said in refused(typed)


def test_one_option_of_a_group_at_a_time() -> None:
    assert "model=vit_tiny was given before" in refused("model=vit_tiny", "model=vit_small")


def test_a_later_value_replaces_an_earlier_as_in_hydra() -> None:
    (cfg,) = preflight(["model.depth=4", "model.depth=6"])
    assert cfg.model.depth == 6


def test_every_mistake_is_told_at_once() -> None:
    said = refused("lr=1e-3", "model.patch_size=5", "seed=-1").splitlines()
    assert len(said) == 3
    for word in ("optimizer.lr", "model.patch_size=5", "seed=-1"):
        assert any(word in line for line in said)


# Kinds and ranges


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model.patch_size=abc", "expected a whole number from 1"),
        ("model.heads=3.0", "write it as a whole number: model.heads=3"),
        ("model.heads=true", "expected a whole number from 1 to 1024, found true"),
        ("model.depth='6'", "write it as a number, without quotes: model.depth=6"),
        ("optimizer.lr='1e-3'", "write it as a number, without quotes: optimizer.lr=0.001"),
        ("model.qkv_bias=1", "expected true or false, found 1"),
        ("model.qkv_bias='true'", "without quotes: model.qkv_bias=true"),
        ("model.pool=map", "expected cls or mean or sequence, found the text 'map'"),
        ("optimizer.betas=[0.9]", "expected a list of two"),
        ("optimizer.betas=0.9", "expected a list of two"),
        ("data.url=3", "in quotes it is text: 'data.url=\"3\"'"),
        ("augment.ops=3", "augment.ops=3: expected a list"),
        ("model.kwargs=3", "model=vit_small has no key 'kwargs'"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused(typed: str, said: str) -> None:
    assert said in refused(typed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("study", "../elsewhere"),
        ("study", "/elsewhere"),
        ("study", "a//b"),
        ("study", ""),
        ("study", ".hidden"),
        ("compile", "yes"),
        ("resume", 3),
        ("optimizer.lr", 0),
        ("optimizer.lr", -1e-3),
        ("optimizer.lr", 1000),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")),
        ("optimizer.lr", None),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.eps", 0),
        ("optimizer.fused", 1),
        ("scheduler.final_ratio", 1.5),
        ("scheduler.warmup_epochs", -1),
        ("scheduler.warmup_fraction", 1.0),
        ("task.label_smoothing", 1.0),
        ("task.label_smoothing", -0.1),
        ("model.dropout", 1.0),
        ("model.attn_dropout", -0.1),
        ("model.drop_path", 1),
        ("model.drop_path", None),
        ("model.depth", 0),
        ("model.depth", 10**6),
        ("model.dim", 10**7),
        ("model.patch_size", [4, 4, 4]),
        ("model.mlp_ratio", 0),
        ("model.position", "above"),
        ("data.batch_size", 0),
        ("data.batch_size", 10**9),
        ("data.val_size", -5),
        ("data.val_size", 1.5),
        ("data.normalization", "imagenet"),
        ("data.normalization", {"mean": [0.5, 0.5, 0.5]}),
        ("data.normalization", {"mean": [0.5] * 3, "std": [0.0] * 3}),
        ("data.num_workers", -1),
        ("trainer.accelerator", "npu"),
        ("trainer.devices", 0),
        ("trainer.devices", []),
        ("trainer.precision", "half"),
        ("trainer.precision", None),
        ("trainer.max_epochs", 0),
        ("trainer.max_epochs", None),
        ("trainer.max_steps", 0),
        ("trainer.max_time", "12:00"),
        ("trainer.max_time", {"fortnights": 1}),
        ("trainer.limit_val_batches", 1.5),
        ("trainer.accumulate_grad_batches", 0),
        ("trainer.gradient_clip_val", -1),
        ("trainer.gradient_clip_algorithm", "max"),
        ("trainer.log_every_n_steps", 0),
        ("trainer.profiler", "fast"),
        ("callbacks.checkpoint.every_minutes", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(refused_values: Refuse, key: str, value: Any) -> None:
    said = refused_values({key: value})
    assert said.startswith(f"{key}=")
    assert "expected" in said
    assert "found" in said


def test_nan_is_refused_where_no_rule_looks(refused_values: Refuse) -> None:
    said = refused_values({"model.kwargs": {"deep": [{"value": float("nan")}]}})
    assert "model.kwargs.deep.0.value=nan: expected a finite number" in said


# What does not fit together


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.patch_size": 5}, "model.patch_size=5 32 x 32 choose 1, 2, 4, 8, 16 or 32"),
        ({"model.image_size": [32, 48], "model.patch_size": [8, 9]}, "32 x 48 1, 2, 4, 8 or 16"),
        ({"model.heads": 7}, "model.heads=7 model.dim=384 1, 2, 3, 4, 6, 8 model.dim_head"),
        ({"model.dim": 6, "model.heads": 3, "model.position": "sincos"}, "sincos model.dim=8"),
        ({"model.mlp_ratio": 0.001}, "model.mlp_ratio=0.001"),
        ({"data.val_size": 50_000}, "data.val_size=50000 50,000 training images fraction"),
        ({"data.batch_size": 45_001}, "data.batch_size=45001 45,000 training images"),
        (
            {"data.num_classes": 12, "model.num_classes": 12},
            "data.num_classes=12 cifar10 data.num_classes=10",
        ),
        ({"model.num_classes": 12}, "model.num_classes=12 data.num_classes=10 labels"),
        ({"model.channels": 1}, "model.channels=1 data.channels=3 images"),
        (
            {"data.normalization": {"mean": [0.5], "std": [0.5, 0.5, 0.5]}},
            "data.normalization.mean 1 data.channels=3",
        ),
        ({"data.kind": "image_folder", "data.root": None}, "data=image_folder data.root=FOLDER"),
        ({"trainer.max_epochs": -1}, "never end trainer.max_steps trainer.max_time"),
        (
            {"trainer.max_epochs": -1, "trainer.max_time": "00:01:00:00"},
            "scheduler=warmup_cosine trainer.max_time scheduler=constant",
        ),
        ({"trainer.min_epochs": 99}, "trainer.min_epochs=99 trainer.max_epochs=20"),
        (
            {"trainer.max_steps": 5, "trainer.min_steps": 9},
            "trainer.min_steps=9 trainer.max_steps=5",
        ),
        (
            {"scheduler.warmup_epochs": 5, "scheduler.warmup_steps": 5},
            "scheduler.warmup_epochs=5 scheduler.warmup_steps=5 both",
        ),
        ({"scheduler.warmup_epochs": 21}, "scheduler.warmup_epochs=21 scheduler.warmup_fraction"),
        ({"scheduler.warmup_steps": 99_999}, "scheduler.warmup_steps=99999 trainer.max_epochs"),
        (
            {"data.kind": "image_folder", "data.root": "x", "scheduler.warmup_epochs": 20.5},
            "scheduler.warmup_epochs=20.5 20 epochs",
        ),
        ({"trainer.limit_train_batches": 0}, "no training batch"),
        ({"trainer.devices": 3}, "data.batch_size=128 3 devices 126 or 129"),
        ({"trainer.devices": [0, 1, 2]}, "data.batch_size=128 3 devices"),
        ({"trainer.devices": 2, "trainer.num_nodes": 3}, "6 devices"),
        (
            {"trainer.accelerator": "cpu", "trainer.precision": "16-mixed"},
            "trainer.precision=16-mixed CPU bf16-mixed",
        ),
        ({"trainer.accelerator": "cpu", "trainer.precision": 16}, "trainer.precision=16 CPU"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_way_on(
    refused_values: Refuse, values: dict[str, Any], words: str
) -> None:
    said = refused_values(values)
    assert len(said.splitlines()) == 1
    for word in (words,) if words in said else words.split(" "):
        assert word in said


@pytest.mark.parametrize(
    "values",
    [
        {"scheduler.warmup_epochs": 20},
        {"scheduler.warmup_fraction": 0.5},
        {"trainer.max_epochs": -1, "trainer.max_steps": 100},
        {"trainer.devices": "auto", "data.batch_size": 129},
        {"trainer.accelerator": "auto", "trainer.precision": "16-mixed"},
        {"model.heads": 7, "model.dim_head": 16},
        {"data.val_size": 0, "data.batch_size": 50_000},
        {"data.num_classes": None},
    ],
)
def test_values_that_fit_pass(default: dict[str, Any], values: dict[str, Any]) -> None:
    check(changed(default, values))


def test_weights_come_from_one_place() -> None:
    said = refused("model=timm_vit_b16", "model.pretrained=true", "model.checkpoint_path=a.pth")
    assert "model.pretrained=true and model.checkpoint_path both give the weights" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.patch_size=6", "data.image_size=36"], "power of two"),
        (["model.patch_size=16"], "set model.tokenizer.num_convs=4"),
        (["model.dim=198", "model.heads=3", "model.tokenizer.num_convs=4"], "a multiple of 8"),
    ],
)
def test_a_convolutional_stem_halves(overrides: list[str], words: str) -> None:
    assert words in refused("model=vit_convstem_tiny", *overrides)


# Sweeps


def test_a_sweep_is_expanded_in_hydras_order() -> None:
    configs = preflight(["model.depth=range(4,6)", "model.patch_size=2,4,8"], multirun=True)
    found = [(cfg.model.depth, cfg.model.patch_size) for cfg in configs]
    assert found == [(4, 2), (4, 4), (4, 8), (5, 2), (5, 4), (5, 8)]


def test_groups_are_swept_by_name_and_by_pattern() -> None:
    configs = preflight(["scheduler=constant,cosine"], multirun=True)
    assert [cfg.scheduler._target_.rpartition(".")[2] for cfg in configs] == ["constant", "cosine"]
    assert len(preflight(["scheduler=glob(*cosine)"], multirun=True)) == 2
    assert "no option matches" in refused("scheduler=glob(x*)", multirun=True)


def test_a_sweep_tells_which_combinations_are_wrong_and_why() -> None:
    said = partly("model.depth=4,6", "model.patch_size=4,5", "optimizer.lr=1e-3")
    assert "2 of 4 combinations are skipped" in said
    assert "model.patch_size=5 does not divide" in said
    assert "#1: model.depth=4 model.patch_size=5" in said
    assert "#3: model.depth=6 model.patch_size=5" in said
    assert "#0" not in said


def test_a_sweep_of_which_nothing_can_run_is_refused() -> None:
    said = refused("model.depth=4,6", "model.patch_size=5,7", multirun=True)
    assert "4 of 4 combinations are refused, none was started" in said
    assert "model.patch_size=5 does not divide" in said
    assert "#3: model.depth=6 model.patch_size=7" in said
    # What is wrong whatever the combination is a mistake, though each combination has others beside it.
    said = refused("model.patch_size=4,5", "optimizer.lrr=1", multirun=True)
    assert "did you mean optimizer.lr?" in said
    assert "2 of 2 combinations are refused" in said


def test_a_mistyped_launcher_or_key_of_it_is_refused() -> None:
    assert "did you mean joblib?" in refused("hydra/launcher=jobli", "seed=1,2", multirun=True)
    said = refused("hydra/launcher=joblib", "hydra.launcher.n_job=2", "seed=1,2", multirun=True)
    assert said == "hydra.launcher.n_job: hydra/launcher=joblib has no such key; did you mean n_jobs?"


def test_a_sweep_over_models_finds_the_one_that_lacks_a_key() -> None:
    said = partly("model=vit_tiny,resnet18", "model.depth=4")
    assert "1 of 2 combinations" in said
    assert "model=resnet18 has no key 'depth'" in said
    assert "#1: model=resnet18" in said


def test_parts_are_chosen_and_swept_as_options_of_their_group() -> None:
    (cfg,) = preflight(["model=vit_tiny", "model/tokenizer=cct", "model.tokenizer.num_layers=2"])
    assert cfg.model.tokenizer._target_.endswith(".ConvPool")
    targets = [cfg.model.tokenizer._target_ for cfg in preflight(["model/tokenizer=patch,spt"], True)]
    assert [target.rpartition(".")[2] for target in targets] == ["PatchEmbedding", "ShiftedPatches"]
    assert "model/tokenizer=ct: did you mean cct?" in refused("model/tokenizer=patch,ct", multirun=True)
    said = refused("model.tokenizer=patch,cct", multirun=True)
    assert said.startswith("model.tokenizer=patch,cct: a part is chosen with a slash: model/tokenizer=patch")


@pytest.mark.parametrize("model", ["resnet18", "timm_vit_b16"])
def test_a_part_of_a_model_that_has_no_such_part_is_refused(model: str) -> None:
    said = refused(f"model={model}", "model/tokenizer=cct")
    assert said == (
        f"model/tokenizer=cct: model={model} has no tokenizer to choose; leave it out, or take another model"
    )
    said = partly(f"model=vit_tiny,{model}", "model/tokenizer=patch,cct")
    assert said.startswith("2 of 4 combinations are skipped")
    assert f"#3: model={model} model/tokenizer=cct" in said


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("cct model.patch_size=8", "set model.patch_size=4, or model.tokenizer.num_layers=3"),
        ("cct model.patch_size=[4,2]", "set model.patch_size=4"),
        ("cct model.tokenizer.num_layers=1", "set model.patch_size=2, or model.tokenizer.num_layers=2"),
        ("cct model.patch_norm=true", "model/tokenizer=cct has none: set model.patch_norm=false"),
        ("spt model.patch_size=1", "no half to shift by"),
    ],
)
def test_what_a_tokenizer_cannot_do_is_refused_before_any_job(typed: str, words: str) -> None:
    assert words in refused(*f"model/tokenizer={typed}".split())


def test_a_mistake_in_every_combination_is_told_once() -> None:
    said = refused("model.depth=4,6,8", "optimizer.lrr=1", multirun=True)
    assert said.count("did you mean optimizer.lr?") == 1
    assert "in each of the 3 combinations" in said


def test_a_mistyped_option_among_several_is_found_before_composing() -> None:
    said = refused("model=vit_tiny,vit_smal", "model.depth=4,6", multirun=True)
    assert said.startswith("model=vit_smal: did you mean vit_small?")
    assert "model=vit_tiny:" not in said


def test_several_values_need_the_sweep_flag() -> None:
    said = refused("model.depth=4,6")
    assert "add -m" in said
    assert "model.depth=[4,6]" in said
    assert "[" not in refused("model=vit_tiny,vit_small")
    assert len(preflight(["model.depth=4,6", "hydra.mode=MULTIRUN"])) == 2


def test_a_sweep_without_values_or_without_end_is_refused() -> None:
    assert "no value at all" in refused("model.depth=range(4,4)", multirun=True)
    assert "interval()" in refused("optimizer.lr=interval(0.1,0.2)", multirun=True)
    said = refused("seed=range(1000)", "model.depth=range(1,100)", multirun=True)
    assert "99,000 combinations" in said
    assert "10,000 is the most" in refused("seed=range(1000000000)", multirun=True)


def test_values_swept_by_a_recipe_are_checked_too(own_conf: Path) -> None:
    sweep = "{model.depth: '4,6', model.patch_size: '4,5'}"
    recipe(own_conf, "sweep", f"hydra: {{sweeper: {{params: {sweep}}}}}")
    said = partly("experiment=sweep", "model.depth=4,8")
    assert "2 of 4 combinations" in said
    assert "model.depth=8 model.patch_size=5" in said
    assert "model.depth=6" not in said
    assert len(preflight(["experiment=sweep"])) == 1


# Recipes


def recipe(conf: Path, name: str, text: str) -> None:
    (conf / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")


def test_a_recipe_wins_over_the_groups_and_the_command_line_over_the_recipe(own_conf: Path) -> None:
    recipe(
        own_conf,
        "mine",
        "defaults:\n  - override /model: vit_tiny\nmodel: {patch_size: 8, depth: 3}\nseed: 5",
    )
    (cfg,) = preflight(["experiment=mine", "model.depth=2"])
    assert (cfg.model.dim, cfg.model.patch_size, cfg.model.depth, cfg.seed) == (192, 8, 2, 5)


def test_a_recipe_is_held_against_the_files_that_it_changes(own_conf: Path) -> None:
    recipe(own_conf, "bad", "model: {patchsize: 8, qkv_bias: 3}\ntrainer: {max_epochs: abc}")
    said = refused("experiment=bad")
    assert "model.patchsize: no such key; did you mean model.patch_size?" in said
    assert "model.qkv_bias=3: expected true or false" in said
    assert said.count("(set by experiment=bad)") == 3
    typed = refused("experiment=bad", "trainer.max_epochs=xyz")
    assert "trainer.max_epochs=xyz: expected" in typed
    assert typed.count("(set by experiment=bad)") == 2


def test_a_recipe_for_one_model_does_not_go_with_another(own_conf: Path) -> None:
    recipe(own_conf, "mine", "model: {patch_size: 8}")
    said = refused("experiment=mine", "model=resnet18")
    assert "model.patch_size: no such key" in said
    assert "experiment=mine" in said


def test_a_recipe_that_names_nothing_is_refused(own_conf: Path) -> None:
    recipe(own_conf, "lost", "defaults:\n  - override /model: vit_smal")
    assert "did you mean vit_small?" in refused("experiment=lost")


def test_a_recipe_that_is_no_yaml_is_named(own_conf: Path) -> None:
    recipe(own_conf, "torn", "model: {depth: [}")
    said = refused("experiment=torn")
    assert "torn.yaml" in said
    assert "line 2" in said


def test_numbers_in_scientific_notation_are_numbers_in_files_too(own_conf: Path) -> None:
    recipe(own_conf, "rate", "optimizer: {lr: 3e-4}")
    (cfg,) = preflight(["experiment=rate"])
    assert cfg.optimizer.lr == 0.0003


def test_a_value_that_must_be_given_is_asked_for(own_conf: Path) -> None:
    text = (own_conf / "optimizer" / "sgd.yaml").read_text()
    (own_conf / "optimizer" / "asks.yaml").write_text(text.replace("lr: 0.1", "lr: ???"))
    assert "optimizer.lr has no value yet: add optimizer.lr=" in refused("optimizer=asks")
    preflight(["optimizer=asks", "optimizer.lr=1e-3"])


# Code that a config may name


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.optim.lr_scheduler.os.system",
        "torch.optim.SGD.zero_grad",
        "vitlab.runs.run",
        "vitlab.models.vit.torch.hub.load",
        "vitlab.models.vit.torch",
        "vitlab.models.vit._secret",
        "vitlab.models.../../x",
        "vitlab.models.",
        "vitlab.data.sources.Path",
        "vitlabx.models.vit.ViT",
        3,
        None,
    ],
)
def test_a_config_names_no_code_but_ours(target: Any) -> None:
    with pytest.raises(UserError, match=r"model\.0\._target_="):
        check_targets({"model": [{"_target_": target}]})


@pytest.mark.parametrize(
    "target",
    [
        "vitlab.models.vit.ViT",
        "vitlab.optim.adamw",
        "vitlab.optim.schedulers.cosine",
        "vitlab.losses.soft_cross_entropy",
        "torch.optim.AdamW",
    ],
)
def test_our_own_code_and_torchs_optimizers_pass(target: str) -> None:
    check_targets({"part": {"_target_": target}})


def test_a_mistyped_target_is_answered_with_the_nearest() -> None:
    assert "did you mean vitlab.models.vit.ViT?" in refused("model._target_=vitlab.models.vit.Vit")


def test_what_a_module_imports_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_PACKAGE", tmp_path)
    (tmp_path / "models").mkdir()
    package = "from os import system\nfrom vitlab.models.mine import Mine as Ours\n"
    (tmp_path / "models" / "__init__.py").write_text(package)
    module = "from vitlab.runs import run\nclass Mine: ...\ndef _secret(): ...\n"
    (tmp_path / "models" / "mine.py").write_text(module)
    for name in ("Ours", "mine.Mine"):
        check_targets({"_target_": f"vitlab.models.{name}"})
    for name in ("system", "mine.run", "mine._secret", "mine"):
        with pytest.raises(UserError, match="does not define"):
            check_targets({"_target_": f"vitlab.models.{name}"})


def test_a_source_file_that_python_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_PACKAGE", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.py").write_text("\nclass Mine(:\n")
    with pytest.raises(UserError, match=r"vitlab\.models\.mine is no Python, see its line 2"):
        check_targets({"_target_": "vitlab.models.mine.Mine"})


def test_the_list_can_be_narrowed() -> None:
    with pytest.raises(UserError):
        check_targets({"_target_": "vitlab.optim.adamw"}, allowed=("vitlab.models.",))


# The place in the process


def test_hydra_is_left_as_it_was() -> None:
    preflight([])
    refused("model=vit_smal")
    assert not GlobalHydra.instance().is_initialized()


def test_resolvers_may_be_registered_twice() -> None:
    config.register_resolvers()
    config.register_resolvers()


def test_without_conf_the_way_to_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "CONF", tmp_path)
    assert "pip install -e ." in refused()


def run_script(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, capture_output=True, text=True
    )


TYPO = """
import resource, sys
from vitlab.config import preflight
from vitlab.errors import UserError
try:
    preflight(sys.argv[1:], False)
except UserError as error:
    print(error)
heavy = {"torch", "lightning", "timm", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
usage = resource.getrusage(resource.RUSAGE_SELF)
assert usage.ru_utime + usage.ru_stime < 1.0, usage
"""


@pytest.mark.parametrize("typed", ["model=vit_smal", "patch=8", "model.patch_size=5", "seed=0"])
def test_the_answer_takes_less_than_a_second_and_no_torch(typed: str, tmp_path: Path) -> None:
    done = run_script(TYPO, typed, folder=tmp_path)
    assert done.returncode == 0, done.stderr


MAIN = """
import sys, hydra
from vitlab.config import CONF, preflight, register_resolvers, to_plain
register_resolvers()
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg):
    print("job", cfg.model.depth, to_plain(cfg)["study"])
if "--help" not in sys.argv:
    preflight([word for word in sys.argv[1:] if word != "-m"], "-m" in sys.argv)
main()
"""


def test_hydra_runs_after_the_check_quietly_and_where_it_should(tmp_path: Path) -> None:
    done = run_script(MAIN, "-m", "model.depth=2,3", "study=patch", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["job 2 patch", "job 3 patch"]
    (sweep,) = (tmp_path / "outputs" / "patch").iterdir()
    assert sorted(job.name for job in sweep.iterdir()) == ["0", "1", "multirun.yaml"]


def test_help_fits_a_screen_and_names_every_group(tmp_path: Path) -> None:
    done = run_script(MAIN, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 40
    for group in ("model", "optimizer", "scheduler", "augment", "data", "trainer", "experiment"):
        assert any(line.strip().startswith(f"{group}:") for line in lines)
    assert not list(tmp_path.iterdir())
