"""Training from a model's weights (``--init``): what is kept, what is new, and that resuming needs the model no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from specs import image_spec
from torch import nn

import ditlab as package
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.models import DiTConfig, NetworkConfig, UNetConfig, build
from ditlab.models.layout import rotary_positions, sincos_positions
from ditlab.pipelines import Pipeline
from ditlab.recipes.fine_tune import TABLE, copy_autoencoder, fine_tuning, load_weights
from ditlab.recipes.recipe import Recipe

DIT = DiTConfig(depth=2, width=32, heads=2, patch=2)
UNET = UNetConfig(width=16, multipliers=(1.0, 1.0), blocks=1, attention=(2,))
NAMES = ("tench, Tinca tinca", "Goldfish", "wren", "crane", "crane")
Call = Callable[..., Any]


def pipeline(config: NetworkConfig = DIT, channels: int = 3, side: int = 8, names: tuple[str, ...] = NAMES,
             null: bool = True, seed: int = 0) -> Pipeline:  # fmt: skip
    """A model of pixels no weight of which is zero."""
    network = build(config, image_spec(channels, side, side, len(names), null=null))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    diffusion = DiffusionConfig("rectified-flow", "velocity", learned_variance=False, condition_dropout=0.1 * null)
    return Pipeline(network.eval(), diffusion, Autoencoder(channels, channels, 1), names)


def start(tmp_path: Path, source: Pipeline, model: Pipeline) -> str:
    """Load a saved model's weights into another; returns what is logged."""
    source.save(tmp_path / "source")
    lines: list[str] = []
    load_weights(Recipe(init=str(tmp_path / "source"), model=model.network.config), model, lines.append)
    return "\n".join(lines)


def same(source: Pipeline, model: Pipeline) -> set[str]:
    """Names of the tensors that are equal."""
    theirs = source.network.state_dict()
    found = model.network.state_dict().items()
    return {name for name, ours in found if name in theirs and torch.equal(ours, theirs[name])}


@pytest.mark.parametrize(
    "config", [DIT, UNetConfig(width=16, multipliers=(1.0, 1.0), blocks=1, attention=(2,))], ids=["DiT", "U-Net"]
)
def test_the_same_classes_and_size_keep_every_weight(config: NetworkConfig, tmp_path: Path):
    source, model = pipeline(config), pipeline(config, seed=1)
    line = start(tmp_path, source, model)
    total = len(source.network.state_dict())
    assert len(same(source, model)) == total
    assert line.endswith(f"kept {total} of {total} tensors")


def test_classes_keep_their_rows_by_name_and_others_start_as_the_null_class(tmp_path: Path):
    source, model = pipeline(), pipeline(names=("heron", "goldfish", "Tinca tinca", "crane"), seed=1)
    line = start(tmp_path, source, model)
    theirs, ours = source.network.state_dict()[TABLE], model.network.state_dict()[TABLE]
    assert torch.equal(ours, theirs[[5, 1, 0, 5, 5]])
    total = len(source.network.state_dict())
    assert f"kept {total - 1} of {total} tensors; new: label table (2 of 4 classes: heron, crane)" in line
    assert "not used" not in line


def test_a_null_class_and_classes_come_from_the_mean_of_a_table_without_one(tmp_path: Path):
    source, model = pipeline(null=False), pipeline(names=("a", "wren"), seed=1)
    start(tmp_path, source, model)
    theirs, ours = source.network.state_dict()[TABLE], model.network.state_dict()[TABLE]
    assert torch.equal(ours[1], theirs[2])
    torch.testing.assert_close(ours[[0, 2]], theirs.mean(dim=0).expand(2, -1))


@pytest.mark.parametrize("names", [(), ("a",)])
def test_an_unconditional_model_and_a_conditional_one_start_from_each_other(names: tuple[str, ...], tmp_path: Path):
    source, model = pipeline(names=() if names else NAMES), pipeline(names=names, seed=1)
    start(tmp_path, source, model)
    null = source.network.state_dict()[TABLE][-1]
    assert torch.equal(model.network.state_dict()[TABLE], null.expand(len(names) + 1, -1))


@pytest.mark.parametrize(("channels", "patch"), [(1, 2), (4, 2), (3, 4)])
def test_other_channels_or_patches_have_a_new_patch_embedding_and_last_layer(channels: int, patch: int, tmp_path: Path):
    source = pipeline()
    model = pipeline(replace(DIT, patch=patch), channels=channels, seed=1)
    line = start(tmp_path, source, model)
    new = model.network.state_dict().keys() - same(source, model)
    assert new == {
        f"{part}.{kind}" for part in ("patch_embedding", "final_layer.linear") for kind in ("weight", "bias")
    }
    assert "new: patch embedding, final layer; 4 tensors of it are not used" in line


def test_other_depths_keep_the_blocks_that_both_have_and_other_widths_are_refused(tmp_path: Path, refuses: Call):
    deeper = pipeline(replace(DIT, depth=3), seed=1)
    line = start(tmp_path, pipeline(), deeper)
    assert "new: blocks: attention, blocks: mlp, blocks: modulation" in line
    shallow = pipeline(replace(DIT, depth=1), seed=1)
    line = start(tmp_path, pipeline(), shallow)
    assert "; new" not in line
    assert "10 tensors of it are not used" in line
    refuses(lambda: start(tmp_path, pipeline(), pipeline(replace(DIT, width=48))), "--init", "width 32", "width 48")
    refuses(lambda: start(tmp_path, pipeline(), pipeline(UNetConfig(width=16))), "--init", "U-Net")


def test_positions_of_another_size_are_interpolated(tmp_path: Path):
    source = pipeline()
    recipe = fine_tuning(Recipe(), _saved(source, tmp_path))
    assert isinstance(recipe.model, DiTConfig)
    assert recipe.model.position_grid == (4, 4)
    model = pipeline(recipe.model, side=16, seed=1)
    line = start(tmp_path, source, model)
    assert "positions: interpolated from 4x4 to 8x8 patches" in line
    small, large = source.network, model.network
    tokens = [network.patching.to_tokens(torch.zeros(1, 3, side, side)) for network, side in ((small, 8), (large, 16))]  # type: ignore[operator, union-attr]
    before, after = (network.layouts(each, 0).positions for network, each in zip((small, large), tokens, strict=True))  # type: ignore[operator]
    torch.testing.assert_close(after.view(8, 8, -1)[::2, ::2], before.view(4, 4, -1))
    assert not torch.equal(after.view(8, 8, -1)[1, 1], before.view(4, 4, -1)[1, 1])


def test_interpolated_positions_are_those_of_a_finer_grid():
    for positions, axis in ((sincos_positions, 0), (rotary_positions, 1)):
        coarse, fine = positions(16, (3, 4)), positions(16, (6, 12), (1 / 2, 1 / 3))
        found = fine.unflatten(axis, (6, 12)).movedim(axis, 0).movedim(axis + 1, 1)[::2, ::3]
        torch.testing.assert_close(found, coarse.unflatten(axis, (3, 4)).movedim(axis, 0).movedim(axis + 1, 1))


def _saved(model: Pipeline, tmp_path: Path) -> str:
    model.save(tmp_path / "source")
    return str(tmp_path / "source")


def test_a_recipe_gets_everything_that_its_weights_were_trained_with(tmp_path: Path):
    source = pipeline()
    before = Recipe(name="mine", seed=3)
    recipe = fine_tuning(before, _saved(source, tmp_path), open_size=True)
    assert replace(recipe.model, position_grid=()) == DIT  # type: ignore[call-arg]
    assert (recipe.diffusion, recipe.sample, recipe.data.size) == (source.diffusion, source.defaults, (8, 8))
    assert (recipe.name, recipe.seed, recipe.train) == (before.name, before.seed, before.train)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert fine_tuning(before, _saved(source, tmp_path)).data.size == ()


def test_an_autoencoder_of_other_image_channels_is_not_used(kl_run: Path, tmp_path: Path):
    recipe = fine_tuning(Recipe(), str(kl_run))
    lines: list[str] = []
    copy_autoencoder(recipe, tmp_path / "ae", tmp_path / "run", 3, lines.append)
    assert not (tmp_path / "ae").exists()
    assert "for 1 image channels, the images have 3" in lines[0]
    copy_autoencoder(recipe, tmp_path / "ae", tmp_path / "run", 1, lines.append)
    assert (tmp_path / "ae" / "autoencoder.json").exists()


# The command

SHORT = (
    "--train.images 64 --train.batch 32 --train.precision fp32 --train.log 32 --train.checkpoint 32 --train.samples 64 "
    "--sample-images 2 --sample.steps 1 --data.limit 100"
)


def test_a_run_starts_from_the_model_and_resumes_without_it(ditlab: Call, digits_run: Path, tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "run"
    shutil.copytree(digits_run, source)
    command = ["train", "digits", "--init", source, "--out", out, *SHORT.split(), "--train.lr", "1e-12"]
    ended = ditlab(*command)
    assert ended.code == 0, ended
    assert "tensors" in ended.out
    assert "; new" not in ended.out
    first, second = package.load(source), package.load(out)
    theirs, ours = first.network.state_dict(), second.network.state_dict()
    for name, tensor in theirs.items():  # the average too starts from them
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert second.network.config.width == 32  # the model's, not the recipe's
    torch.testing.assert_close(second.autoencoder.mean, first.autoencoder.mean)  # of all digits, not of a hundred
    assert second.facts["fine-tuned from"] == "source"
    assert "fine-tuned from" in (out / "report.md").read_text()
    again = ditlab(*command, "--train.images", "96")
    assert again.code == 0, again
    assert "resumed from the checkpoint at 64" in again.out
    assert "kept" not in again.out
    shutil.rmtree(source)
    again = ditlab("train", out, "--train.images", "128")
    assert again.code == 0, again
    assert "resumed from the checkpoint at 96" in again.out


def test_a_folder_of_other_classes_takes_the_models_size(
    ditlab: Call, digits_run: Path, pictures: Call, elsewhere: Path
):
    del elsewhere
    data = pictures(Path("data"), ("3", "wren"), 20)
    ended = ditlab("train", "folder", "--data.path", data, "--data.channels", 1, "--init", digits_run, *SHORT.split())
    assert ended.code == 0, ended
    assert "label table (1 of 2 classes: wren)" in ended.out
    assert package.load("runs/folder").pixels == (1, 8, 8)


def test_a_recipe_in_python_starts_from_a_model(digits_run: Path, tmp_path: Path, refuses: Call):
    recipe = package.recipe("digits", init=digits_run, condition_dropout=0.2, train={"steps": 2, "batch": 32})
    lines: list[str] = []
    model = package.train(recipe, tmp_path / "run", log=lines.append)
    assert any("kept" in line and "new" not in line for line in lines)
    assert (model.diffusion.condition_dropout, model.network.config.width) == (0.2, 32)
    refuses(lambda: package.recipe("digits", init=digits_run, model="DiT-S/2"), "init", "model")


def test_a_latent_model_brings_its_autoencoder(ditlab: Call, kl_run: Path, tmp_path: Path):
    out = tmp_path / "run"
    ended = ditlab("train", "digits", "--init", kl_run, "--out", out, *SHORT.split())
    assert ended.code == 0, ended
    assert "autoencoder: that of" in ended.out
    before, after = package.load(kl_run).autoencoder, package.load(out).autoencoder
    assert before.fingerprint() == after.fingerprint()
    assert torch.equal(before.std, after.std)


def test_what_goes_with_no_init_is_refused(refused: Call, digits_run: Path, tmp_path: Path):
    refused(["train", "digits", "--init", digits_run, "--model", "DiT-S/2"], "--init", "--model")
    refused(["train", "digits", "--init", tmp_path / "none"], "no model in")
    (tmp_path / "dit.pt").write_bytes(b"")
    refused(["train", "digits", "--init", tmp_path / "dit.pt"], "ditlab import")
    refused(["train", "digits", "--pretrained-model", "x"], "use --init")
