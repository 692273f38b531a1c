"""What a person types is answered: composed, or refused with a sentence that says what to write."""

from pathlib import Path
from typing import Any

import pytest

from tests.config.helpers import partly, recipe, refused
from vitlab.config import combinations, compose, keys, preflight, to_plain


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
    arrived = keys.get(to_plain(cfg), key)
    assert arrived == value
    assert type(arrived) is type(value)


def test_a_setting_of_an_augmentation_that_is_not_listed_is_refused() -> None:
    assert refused("augment.cutout.size=8") == (
        "augment.cutout.size=8 has no effect: cutout is not in augment.ops; add "
        "'augment.ops=[crop,flip,cutout]'"
    )
    assert "did you mean augment.cutout.size?" in refused("augment.cutout.sise=8")


def test_keys_are_added_in_an_open_node_alone() -> None:
    (cfg,) = preflight(["model=timm_vit_b16", "+model.kwargs.patch_size=8"])
    assert cfg.model.kwargs.patch_size == 8
    said = refused("model=timm_vit_b16", "model.kwargs.patch_size=8")
    assert "+model.kwargs.patch_size=8" in said
    assert "model=vit_small has no key" in refused("model.kwargs.patch_size=8")


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
        ("optimizer.zzz=3", "optimizer=adamw has no key 'zzz'; the keys there are lr, weight_decay"),
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
            "model.pretrained=true",
            "no key 'pretrained'; did you mean model=timm_vit_b16 or model=torchvision_vit_b16?",
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
        ("model={dim:3}", "expected one option"),
        ("model=vit_tiny model=vit_small", "model=vit_small: model=vit_tiny was given before"),
        ("model.tokenizer=cct", "a part is chosen with a slash: model/tokenizer=cct; the options"),
        ("model.tokenizer=null", "a part is chosen with a slash"),
        ("model/tokenizer=null", "model/tokenizer is needed"),
        ("model/tokenizer.num_layers=1", "a key has points where a group has slashes: model.tokenizer.num"),
        ("model=[vit_small]", "expected one option"),
        ("trainer@other=cpu", "packages (@) are not used"),
        ("model.depth=[1,2", "the value cannot be read"),
        ("optimizer.lr=interval(1e-4)", "write it as interval(1e-4,1e-2)"),
        (
            "optimizer.lr=interval(1,",
            "interval() cannot be read, close its bracket; write it as interval(1e-4",
        ),
        ("optimizer.lr=interva(1e-4,1e-2)", "there is no function interva(); did you mean interval?"),
        ("data.image_size=(32,64)", "a list is written in square brackets: data.image_size=[32,64]"),
        ("model.depth=3;", "the value ends in ';'; write model.depth=3"),
        ("optimizer.lr=0,001", "or write optimizer.lr=0.001 if one number is meant"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true has no effect"),
        ("hydra/job_logging=default", "has no effect"),
        ("hydra.run.dir=${nowhere}", "hydra.run.dir cannot be resolved"),
        ("model.depth", "expected key=value, found no '='"),
        ("model.image_size=${nowhere}", "Interpolation key 'nowhere' not found"),
    ],
)
def test_syntax_that_has_no_place_here_is_refused(typed: str, said: str) -> None:
    assert said in refused(*typed.split(" "))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("lr 1e-3", "optimizer.lr=1e-3"), ("optimizer.lr = 1e-3", "optimizer.lr=1e-3")),
        *(("seed= 1", "seed=1"), ("model vit_small", "model=vit_small")),
    ],
)
def test_a_key_and_a_value_in_two_words_are_answered_with_the_one(typed: str, meant: str) -> None:
    words = typed.replace(" = ", " ")
    said = f"{words}: a key and its value are written as one word; did you mean {meant}?"
    assert refused(*typed.split()) == said


def test_a_later_value_replaces_an_earlier_as_in_hydra() -> None:
    (cfg,) = preflight(["model.depth=4", "model.depth=6"])
    assert cfg.model.depth == 6


def test_every_mistake_is_told_at_once() -> None:
    said = sorted(refused("lr=1e-3", "model.patch_size=5", "seed=-1").splitlines())
    assert [line.partition(" ")[0] for line in said] == ["lr:", "model.patch_size=5", "seed=-1:"]


def test_what_only_follows_a_wrong_value_is_not_an_error_of_its_own() -> None:
    said = refused("data.image_size=32x64")
    assert said.count("32x64") == 2  # the value, and as what it was found
    assert said.endswith("a height and a width are a list: data.image_size=[32,64]")


@pytest.mark.parametrize(
    "folder", ["outputs/${study}/run", "${study}-${model.depth}", "${hydra.job.override_dirname}"]
)
def test_the_folder_of_a_run_is_the_one_that_hydra_would_make(folder: str) -> None:
    typed = ["study=mine", "model.depth=3", f"hydra.run.dir={folder}"]
    (run,) = combinations([*typed, "+hydra.job.env_set.OMP_NUM_THREADS=1"])
    assert str(run.folder) == compose(typed, with_hydra=True).hydra.run.dir
    assert run.environment == {"OMP_NUM_THREADS": "1"}
    assert run.record["overrides"] == typed[:2]
    assert run.record["choices"]["model"] == "vit_small"
    assert "resume" not in run.record


def test_a_sweep_has_one_folder() -> None:
    (folder,) = {run.folder for run in combinations(["study=mine", "model.depth=2,3"], multirun=True)}
    assert str(folder).startswith("outputs/mine/2")


# Sweeps


def test_a_sweep_is_expanded_in_hydras_order() -> None:
    configs = preflight(["model.depth=range(4,6)", "model.patch_size=2,4,8"], multirun=True)
    found = [(cfg.model.depth, cfg.model.patch_size) for cfg in configs]
    assert found == [(4, 2), (4, 4), (4, 8), (5, 2), (5, 4), (5, 8)]


def test_groups_are_swept_by_name_and_by_pattern() -> None:
    configs = preflight(["scheduler=constant,cosine"], multirun=True)
    assert [cfg.scheduler._target_.rpartition(".")[2] for cfg in configs] == ["constant", "cosine"]
    assert len(preflight(["scheduler=glob(*cosine)"], multirun=True)) == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("scheduler=glob(x*)", "no option matches"),
        ("hydra/launcher=jobli seed=1,2", "did you mean joblib?"),
        (
            "hydra/launcher=joblib hydra.launcher.n_job=2 seed=1,2",
            "hydra.launcher.n_job: hydra/launcher=joblib has no such key; did you mean n_jobs?",
        ),
        ("model/tokenizer=patch,ct", "model/tokenizer=ct: did you mean cct?"),
        (
            "model.tokenizer=patch,cct",
            "model.tokenizer=patch,cct: a part is chosen with a slash: model/tokenizer=patch",
        ),
        ("model=vit_tiny,vit_smal model.depth=4,6", "model=vit_smal: did you mean vit_small?"),
        ("model.depth=range(4,4)", "no value at all"),
        ("optimizer.lr=interval(0.1,0.2)", "interval() has no list of values"),
        ("seed=range(1000) model.depth=range(1,100)", "99,000 combinations"),
        ("seed=range(1000000000)", "10,000 is the most"),
    ],
)
def test_a_sweep_that_cannot_be_expanded_is_refused_in_one_sentence(typed: str, said: str) -> None:
    answer = refused(*typed.split(), multirun=True)
    assert said in answer
    assert len(answer.splitlines()) == 1


def test_a_sweep_tells_which_combinations_are_wrong_and_why() -> None:
    lines = partly("model.depth=4,6", "model.patch_size=4,5", "optimizer.lr=1e-3").splitlines()
    assert lines[0] == "2 of 4 combinations are skipped:"
    assert lines[1].startswith("  model.patch_size=5 does not divide")
    assert lines[2:] == [f"    #{n}: model.depth={d} model.patch_size=5" for n, d in ((1, 4), (3, 6))]


def test_a_sweep_of_which_nothing_can_run_is_refused() -> None:
    said = refused("model.depth=4,6", "model.patch_size=5,7", multirun=True)
    assert "4 of 4 combinations are refused, none was started" in said
    assert "model.patch_size=5 does not divide" in said
    assert "#3: model.depth=6 model.patch_size=7" in said
    # What is wrong whatever the combination is told once, and is a mistake though others can be beside it.
    said = refused("model.depth=4,6,8", "optimizer.lrr=1", multirun=True)
    assert said.count("did you mean optimizer.lr?") == 1
    assert "in each of the 3 combinations" in said
    said = refused("model.patch_size=4,5", "optimizer.lrr=1", multirun=True)
    assert "did you mean optimizer.lr?" in said
    assert "2 of 2 combinations are refused" in said


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


@pytest.mark.parametrize("model", ["resnet18", "timm_vit_b16"])
def test_a_part_of_a_model_that_has_no_such_part_is_refused(model: str) -> None:
    said = refused(f"model={model}", "model/tokenizer=cct")
    assert said == (
        f"model/tokenizer=cct: model={model} has no tokenizer to choose; leave it out, or take another model"
    )
    said = partly(f"model=vit_tiny,{model}", "model/tokenizer=patch,cct")
    assert said.startswith("2 of 4 combinations are skipped")
    assert f"#3: model={model} model/tokenizer=cct" in said


def test_several_values_need_the_sweep_flag() -> None:
    said = refused("model.depth=4,6")
    assert "add -m" in said
    assert "model.depth=[4,6]" in said
    assert "[" not in refused("model=vit_tiny,vit_small")


def test_values_swept_by_a_recipe_are_checked_too(own_conf: Path) -> None:
    sweep = "{model.depth: '4,6', model.patch_size: '4,5'}"
    recipe(own_conf, "sweep", f"hydra: {{sweeper: {{params: {sweep}}}}}")
    said = partly("experiment=sweep", "model.depth=4,8")
    assert "2 of 4 combinations" in said
    assert "model.depth=8 model.patch_size=5" in said
    assert "model.depth=6" not in said
    assert len(preflight(["experiment=sweep"])) == 1
