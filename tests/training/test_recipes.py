"""Every recipe trains: found by globbing, a step each of the real thing, on images that are drawn."""

import pytest

from tests.conftest import ROOT, TINY, Train, summary

RECIPES = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
IMAGES = [o for o in TINY if o.startswith("data") and not o.startswith("data.image_size")]
WEIGHTS = {"vit_b16_finetune", "vit_b16_finetune_torchvision"}  # they fetch theirs


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_takes_a_step(recipe: str, train: Train) -> None:
    quiet = ["trainer.accelerator=cpu", "callbacks.figures=false", "compile=false"]
    given = [f"experiment={recipe}", *quiet]
    if recipe in WEIGHTS:
        given.append("model.pretrained=false")
    if recipe == "deit_distilled":
        teacher = ["model=resnet18", "model.width=4", "trainer.max_epochs=1", *quiet]
        given.append(f"task.teacher={train(*teacher, name='teacher', base=IMAGES)}")
    folder = train(*given, "trainer.fast_dev_run=true", name=recipe, base=IMAGES)
    found = summary(folder)
    assert found["status"] == "finished"
    assert found["train"]["optimizer_steps"] == 1
