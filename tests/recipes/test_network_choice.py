"""`--model NAME`: another network in the same recipe, from its flags to its saved model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditlab as package
from ditlab.cli.recipe_options import recipe_options
from ditlab.errors import UserError
from ditlab.models import DiTConfig, UNet, UNetConfig, named
from ditlab.recipes import Recipe, find_recipe

RUN = (
    "--train.batch 32 --train.precision fp32 --sample-images 4 --sample.steps 2 --train.log 160 --train.checkpoint 320"
)
SMALL = ["--model", "unet", "--model.width", "8", *RUN.split(), "--train.images", "640", "--train.samples", "640"]


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory: pytest.TempPathFactory, ditlab) -> Path:
    """A finished tiny run of a U-Net. Tests must not change it: copy it."""
    folder = tmp_path_factory.mktemp("unet") / "digits"
    ended = ditlab("train", "digits", *SMALL, "--out", folder)
    assert (ended.code, ended.err) == (0, ""), ended
    assert "U-Net: 128,657 parameters, 0.001759 GMACs a sample" in ended.out
    return folder


def test_a_unet_learns_with_the_same_recipe(unet_run: Path, metrics):
    losses = [row["loss"] for row in metrics(unet_run) if "loss" in row]
    assert len(losses) == 4
    assert losses[-1] < 0.95 * losses[0]
    assert (
        "| network | U-Net: width 8, multipliers 1 2 2, blocks 2, attention 2 4 |"
        in (unet_run / "report.md").read_text()
    )


def test_a_trained_unet_is_loaded_and_sampled(unet_run: Path, tmp_path: Path, ditlab):
    model = package.load(unet_run)
    assert isinstance(model.network, UNet)
    assert model.network.config == UNetConfig(width=8)
    images = model.sample(labels=["3", "7"], seed=1, steps=3)
    assert images.shape == (2, 8, 8, 1)
    assert images.std() > 1
    model.save(tmp_path)
    again = package.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), again.network.parameters(), strict=True))
    assert np.array_equal(again.sample(labels=["3", "7"], seed=1, steps=3), images)
    ended = ditlab("sample", unet_run, "--count", "4", "--steps", "2", "--out", tmp_path / "grid.png")
    assert ended.code == 0, ended
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] >= 16


def test_a_unets_run_resumes_bit_for_bit_and_refuses_another_network(
    unet_run: Path, tmp_path: Path, ditlab, refused, tree, metrics
):
    run = tmp_path / "digits"
    shutil.copytree(unet_run, run)
    shutil.rmtree(run / "checkpoints" / "000000000640")
    command = ["train", "digits", *SMALL, "--out", run]
    ended = ditlab(*command)
    assert "resumed from the checkpoint at 320 of 640 images" in ended.out, ended
    assert metrics(run) == metrics(unet_run)
    assert (run / "model.safetensors").read_bytes() == (unet_run / "model.safetensors").read_bytes()
    before = tree(run)
    refused(["train", "digits", *SMALL[4:], "--out", run], "model U-Net there, DiT here", "choose another --out")
    refused([*command, "--model.width", "12"], "model.width 8 there, 12 here")
    refused([*command, "--model", "LDM-4"], "model.multipliers (1.0, 2.0, 2.0) there, (1.0, 2.0, 3.0, 5.0) here")
    assert tree(run) == before
    dit = tmp_path / "dit"
    assert ditlab("train", "digits", *SMALL[4:], "--model.depth", "1", "--out", dit).code == 0
    refused(["train", "digits", *SMALL, "--out", dit], "model DiT there, U-Net here")
    ended = ditlab("train", run)  # the run folder stores its recipe, with the U-Net
    assert ended.code == 0, ended
    assert tree(run)["model.safetensors"] == before["model.safetensors"]


def test_ldms_design_trains_with_microbatches_and_activation_checkpointing(tmp_path: Path, ditlab):
    flags = [
        "--model.design",
        "ldm",
        "--train.microbatch",
        "8",
        "--train.activation-checkpointing",
        "--train.images",
        "64",
    ]
    ended = ditlab("train", "digits", *SMALL, *flags, "--out", tmp_path / "run")
    assert (ended.code, ended.err) == (0, ""), ended
    assert package.load(tmp_path / "run").sample(count=2).shape == (2, 8, 8, 1)


def test_a_unet_trains_on_latents(kl_run: Path, kl_recipe: Path, tmp_path: Path, ditlab, refused):
    shared = tmp_path / "latents"
    shutil.copytree(kl_run.parent, shared)
    places = ["--autoencoder.path", shared / "small-autoencoder", "--latents", shared / "small-latents"]
    command = ["train", kl_recipe, *places, "--model", "unet", "--model.width", "8", "--out", tmp_path / "run"]
    ended = ditlab(*command)
    assert (ended.code, ended.err) == (0, ""), ended
    assert package.load(tmp_path / "run").sample(count=2).shape == (2, 8, 8, 1)
    four = ["--model.multipliers", "1", "1", "2", "2", "--out", tmp_path / "other"]
    refused([*command, *four], "8x8", "factor 2 x the 8 of a U-Net of 4 levels", "nearest sizes for 8: 16")


def test_every_named_network_is_a_flag_and_its_fields_are(capsys: pytest.CaptureFixture[str]):
    for name in ("unet", "DiT-B/2", "ADM-128", "LDM-4"):
        for words in (["--model", name], [f"--model={name}"]):
            given, found = recipe_options(["digits", *words], "train")
            assert given.recipe == dataclasses.replace(found, model=named(name))
    given, found = recipe_options(["digits", "--model.width", "64", "--seed", "3", "--model", "ADM-128"], "train")
    assert given.recipe.model == dataclasses.replace(UNetConfig.named("ADM-128"), width=64)
    assert given.recipe.seed == 3
    given, _ = recipe_options(
        ["digits", "--model", "unet", "--model.multipliers", "0.5", "2", "--model.heads", "2"], "train"
    )
    assert given.recipe.model == UNetConfig(multipliers=(0.5, 2.0), heads=2)
    given, _ = recipe_options(["digits", "--model", "unet", "--model", "DiT-S/4", "--model.depth", "3"], "train")
    assert given.recipe.model == DiTConfig(depth=3, patch=4)
    for words, shown, hidden in (
        ([], "--model.depth", "--model.blocks"),
        (["--model", "unet"], "--model.blocks", "--model.depth"),
    ):
        with pytest.raises(SystemExit):
            recipe_options(["digits", *words, "--help"], "train")
        printed = capsys.readouterr().out
        assert "--model NAME" in printed
        assert shown in printed
        assert hidden not in printed


def test_a_mistaken_network_is_one_line(tmp_path: Path, refused):
    base = ["train", "digits", "--out", tmp_path / "run"]
    refused([*base, "--model", "unett"], "'unett'", "did you mean 'unet'?")
    refused([*base, "--model", "DiT-XXL/2"], "'DiT-XXL/2'", "DiT-XL/2")
    refused([*base, "--model"], "--model")
    refused([*base, "--model", "unet", "--model.depth", "3"], "unknown flag --model.depth")
    refused([*base, "--model.blocks", "3"], "unknown flag --model.blocks", "--model.block")
    refused([*base, "--model", "unet", "--model.design", "amd"], "'amd'", "adm")
    refused([*base, "--model", "unet", "--model.width", "10"], "width 10", "8 or 12")
    refused(
        [*base, "--model", "ADM-128"], "8x8", "the 16 of a U-Net of 5 levels", "nearest sizes for 8: 16 (--data.size)"
    )
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_a_unet_survives_json_and_without_kind_it_is_a_dit():
    digits, _ = find_recipe("digits")
    for name in ("unet", "ADM-512", "LDM-4"):
        recipe = dataclasses.replace(digits, model=UNetConfig.named(name))
        again = Recipe.from_json(recipe.to_json())
        assert again == recipe
        assert again.to_json() == recipe.to_json()
        assert json.loads(recipe.to_json())["model"]["kind"] == "U-Net"
    record = json.loads(digits.to_json())
    assert record["model"].pop("kind") == "DiT"  # version 0.1 wrote none
    assert Recipe.from_json(json.dumps(record)) == digits
    assert Recipe.from_json('{"model": {"width": 32}}').model == DiTConfig(width=32)
    assert list(record) == [field.name for field in dataclasses.fields(Recipe)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"kind": "unet"}, ["r.json: model is of an unknown kind, 'unet'", "did you mean 'U-Net'?"]),
        ({"kind": []}, ["is of an unknown kind, []"]),
        ({"kind": "U-Net", "depth": 3}, ["r.json: model has an unknown field 'depth'", "width"]),
        ({"kind": "U-Net", "multipliers": 2}, ["model: multipliers is 2, must be a list of float"]),
        ({"blocks": 2}, ["model has an unknown field 'blocks'", "did you mean 'block'?"]),
        (3, ["model must be an object, not 3"]),
    ],
)
def test_json_that_is_not_a_network_is_refused(model: object, words: list[str]):
    with pytest.raises(UserError) as caught:
        Recipe.from_json(json.dumps({"model": model}), "r.json")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_model_file_of_an_unknown_network_is_refused(unet_run: Path, tmp_path: Path, refused):
    folder = tmp_path / "model"
    shutil.copytree(unet_run, folder)
    record = json.loads((folder / "model.json").read_text())
    assert record["network"]["kind"] == "U-Net"
    for kind, word in (("W-Net", "is of an unknown kind, 'W-Net'"), ("DiT", "is not a model record")):
        record["network"]["kind"] = kind
        (folder / "model.json").write_text(json.dumps(record))
        refused(["sample", folder, "--out", tmp_path / "x.png"], word)


def test_inspect_counts_unets_next_to_the_papers_figures(unet_run: Path, ditlab, refused):
    for name, gmacs, parameters in (("ADM-128", 307, 421_530_630), ("ldm-4", 103.6, 401_433_091)):
        found = json.loads(ditlab("inspect", name, "--batch", "1", "--json").out)
        assert found["gmacs"] == pytest.approx(gmacs, rel=0.01)
        assert found["parameters"] == parameters
        assert found["paper"]["gmacs"] == gmacs
        assert found["tokens"] == 0
        assert sum(part["parameters"] for part in found["parts"].values()) == parameters
        assert sum(part["gmacs"] for part in found["parts"].values()) == pytest.approx(found["gmacs"])
    other = json.loads(ditlab("inspect", "LDM-4", "--image", "128", "--batch", "1", "--json").out)
    assert "paper" not in other
    assert other["gmacs"] < 30
    shown = ditlab("inspect", unet_run)
    assert shown.code == 0
    assert "128,657" in shown.out
    assert "tokens" not in shown.out
    refused(["inspect", "LDM-4", "--image", "254"], "254", "252 or 256")
    refused(["inspect", "ADM-256", "--image", "100"], "100x100", "96 or 128")
    refused(["inspect", "ADM-256", "--block", "adaln"], "U-Net", "--block adaln")
    refused(["inspect", "ADM-265"], "ADM-265")
