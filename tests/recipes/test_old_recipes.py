"""A recipe.json written by version 0.1 is read; version-0.1/ holds files that it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ditlab.errors import UserError
from ditlab.models import DiTConfig, UNetConfig
from ditlab.recipes import AutoencoderRecipe, Recipe, find_any_recipe, find_recipe
from ditlab.recipes.recipe import refuse_other

OLD = Path(__file__).parent / "version-0.1"


@pytest.mark.parametrize(
    ("name", "model"), [("dit", DiTConfig(depth=4, width=64, heads=4, patch=2)), ("unet", UNetConfig(width=32))]
)
def test_the_recipe_of_a_model_is_read_with_its_renamed_fields(name: str, model: object):
    recipe, _ = find_recipe(str(OLD / f"{name}.json"))
    assert recipe.model == model
    assert (recipe.seed, recipe.data.source, recipe.sample.sampler) == (0, "digits", "heun")
    train = recipe.train
    assert (train.images, train.lr, train.max_grad_norm, train.keep_checkpoints) == (600_000, 3e-3, 1.0, 5)
    assert (train.microbatch, train.activation_checkpointing) == (64, True)
    assert recipe.autoencoder_train.lr == 1e-3
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert '"rate"' not in recipe.to_json()


@pytest.fixture
def old_autoencoder(tmp_path: Path) -> Path:
    """The folder of an autoencoder of version 0.1, without its weights."""
    folder = tmp_path / "fashion-autoencoder"
    folder.mkdir()
    shutil.copy(OLD / "kl.json", folder / "recipe.json")
    (folder / "autoencoder.json").write_text("{}")
    return folder


def test_the_folder_of_an_autoencoder_gives_the_recipe_of_its_training(old_autoencoder: Path):
    recipe, folder = find_any_recipe(str(old_autoencoder))
    assert folder == old_autoencoder
    assert isinstance(recipe, AutoencoderRecipe)
    assert (recipe.name, recipe.data.source, recipe.autoencoder.widths) == ("fashion", "fashion", (16, 32, 64))
    assert recipe.autoencoder.path == ""
    assert (recipe.train.images, recipe.train.lr, recipe.train.max_grad_norm) == (240_000, 5e-4, 2.0)


def test_an_old_autoencoder_is_used_by_the_same_recipe_and_refused_to_another(old_autoencoder: Path):
    recipe, _ = find_any_recipe(str(old_autoencoder))
    refuse_other(recipe, old_autoencoder)
    fashion, _ = find_recipe("fashion")
    with pytest.raises(UserError, match=r"train\.lr 0\.0005 there, 0\.002 here; train\.max_grad_norm 2\.0 there, 0\.0"):
        refuse_other(fashion.autoencoder_recipe(), old_autoencoder)


def test_a_recipe_of_an_autoencoder_is_no_recipe_of_a_model(tmp_path: Path, old_autoencoder: Path):
    own = find_recipe("fashion")[0].autoencoder_recipe()
    (tmp_path / "recipe.json").write_text(own.to_json())
    assert find_any_recipe(str(tmp_path)) == (own, tmp_path)
    for folder in (tmp_path, old_autoencoder):
        with pytest.raises(UserError, match=r"the recipe of an autoencoder; only `ditlab autoencoder` accepts it"):
            find_recipe(str(folder))
    with pytest.raises(UserError, match="only `ditlab autoencoder`"):
        Recipe.from_json(own.to_json())
