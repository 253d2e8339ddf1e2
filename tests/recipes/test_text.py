"""A model of prompts, from captioned images to samples: training, model file, Python and command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import RECIPE, captioned, colour_of, run

import ditlab as api
from ditlab.encoders import AutoencoderConfig
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.recipes import train_recipe
from ditlab.recipes.fine_tune import WORDS, fine_tuning
from ditlab.recipes.prepare import RunContext


@pytest.fixture(scope="module")
def trained(colours_run: Path) -> Path:
    return colours_run


def test_images_follow_prompts(trained: Path) -> None:
    model = api.load(trained)
    assert model.prompts == ("a red image", "red", "a green image", "green", "a blue image", "blue")
    assert repr(model).count("prompts") == 1
    images = model.sample(prompts=["all is blue", "red", "a green image"], guidance=2, count=6)
    assert colour_of(images) == ["blue", "red", "green"] * 2
    words = model.network.get_parameter("condition_embedding.text.table.weight")
    assert len(words) == 1 + len({"a", "red", "image", "all", "is", "green", "blue"})


def test_a_negative_prompt_is_guided_away_from(trained: Path) -> None:
    model = api.load(trained)
    plain = model.sample(prompts="image", seed=3, count=16, guidance=3)
    away = model.sample(prompts="image", negative="a red image", seed=3, count=16, guidance=3)
    assert away[..., 0].mean() < plain[..., 0].mean() - 10
    assert colour_of(away).count("red") < colour_of(plain).count("red") / 2


def test_an_image_depends_on_its_prompt_alone(trained: Path) -> None:
    model, long = api.load(trained), "a " * 6 + "red image"
    one = model.sample(prompts=["red"], count=1)
    batch = model.sample(prompts=["red", long], count=2)
    assert np.abs(one[0].astype(int) - batch[0]).max() <= 1


def test_hostile_prompts_are_images_like_others(trained: Path) -> None:
    model = api.load(trained)
    prompts = [
        "",
        " ",
        "x" * 10_000,
        "красный 赤 🟥",
        "<script>alert(1)</script>",
        "red\x00\x1b[0m\n",
        "\ud800",
        "red " * 10_000,
    ]
    images = model.sample(prompts=prompts, guidance=2, batch=3)
    assert len(images) == len(prompts)
    assert np.array_equal(images[5], model.sample(prompts=["RED"], guidance=2, seed=0, count=6)[5])


def test_a_run_resumes_and_refuses_other_captions(trained: Path, tmp_path: Path) -> None:
    short = replace(RECIPE, train=replace(RECIPE.train, images=64, checkpoint=64, log=64, samples=64))
    run(tmp_path / "colours", short)
    longer = replace(short, train=replace(short.train, images=128))
    assert run(tmp_path / "colours", longer).facts["images"] == 128
    other = captioned()
    other.captions = [(f"{each[0]}!",) if each else () for each in other.captions or ()]
    with pytest.raises(UserError, match="their captions differ"):
        train_recipe(
            replace(longer, train=replace(longer.train, images=192)),
            RunContext(tmp_path / "colours", torch.device("cpu"), lambda line: None, images=other),
        )


def test_a_fine_tuned_model_keeps_the_words_of_the_same_captions_only(trained: Path, tmp_path: Path) -> None:
    recipe = fine_tuning(replace(RECIPE, train=replace(RECIPE.train, images=32, lr=1e-9)), str(trained))
    table = Pipeline.load(trained).network.state_dict()[WORDS]
    for word, kept in (("red", True), ("zebra", False)):
        lines, source = list[str](), captioned()
        assert source.captions is not None
        source.captions = [tuple(text.replace("red", word) for text in each) for each in source.captions]
        context = RunContext(tmp_path / word, torch.device("cpu"), lines.append, images=source)
        found = train_recipe(recipe, context).network.state_dict()[WORDS]
        assert found.shape == table.shape
        assert torch.allclose(found, table, atol=1e-5) == kept
        (line,) = [line for line in lines if "kept" in line]
        assert ("new: text embedding" in line) != kept


def test_captions_go_with_latents(tmp_path: Path) -> None:
    recipe = replace(
        RECIPE,
        autoencoder=AutoencoderConfig("kl", latent_channels=2, widths=(8, 8), layers=1),
        autoencoder_train=replace(RECIPE.train, images=64, checkpoint=64, log=64, samples=64),
        model=replace(RECIPE.model, patch=1),
        train=replace(RECIPE.train, images=64, checkpoint=64, log=64, samples=64),
    )
    model = run(tmp_path / "latent", recipe)
    assert model.text is not None
    assert model.sample(prompts="red", count=1).shape == (1, 4, 4, 3)
    assert run(tmp_path / "latent", replace(recipe, train=replace(recipe.train, images=128))).facts["images"] == 128


def test_images_without_captions_are_refused(tmp_path: Path) -> None:
    source = captioned()
    source.captions = None
    with pytest.raises(UserError, match=r"colours has no captions.*--text.kind none"):
        train_recipe(RECIPE, RunContext(tmp_path / "x", torch.device("cpu"), lambda line: None, images=source))


def test_prompts_on_the_command_line(trained: Path, tmp_path: Path, ditlab) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("a blue image\n\nred\n")
    made = ditlab("sample", trained, "--prompts", lines, "--count", "4", "--out", tmp_path / "folder", "--no-filmstrip")
    assert made.code == 0, made
    assert [path.name for path in sorted((tmp_path / "folder").glob("*.png"))] == [
        "000000-a blue image.png", "000001-red.png", "000002-a blue image.png", "000003-red.png",
    ]  # fmt: skip
    made = ditlab("sample", trained, "--prompt", "red mauve", "green", "--out", tmp_path / "grid.png")
    assert made.code == 0, made
    assert "'red mauve': words that no training caption has are skipped: 'mauve'" in made.out
    from PIL import Image

    with Image.open(tmp_path / "grid.png") as picture:
        settings = json.loads(picture.info["ditlab"])
    assert settings["prompts"] == ["red mauve", "green"]
    assert settings["negative"] == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "red"], "this model takes prompts, not labels"),
        (["--prompt", "red", "--prompts", "x.txt"], "--prompt and --prompts exclude each other"),
        (["--prompts", "missing.txt"], "missing.txt cannot be read"),
    ],
)
def test_wrong_flags_of_prompts(trained: Path, flags: list[str], message: str, ditlab) -> None:
    made = ditlab("sample", trained, *flags)
    assert made.code == 2
    assert message in made.err


def test_hostile_prompts_on_the_command_line(trained: Path, tmp_path: Path, ditlab) -> None:
    prompts = ["", "x" * 10_000, "красный 赤 🟥", "<b>red</b>", "red\x1b[0m\n/../x", "\udcff"]  # the last: no UTF-8
    made = ditlab("sample", trained, "--prompt", *prompts, "--count", "6", "--out", tmp_path / "x", "--no-filmstrip")
    assert made.code == 0, made
    assert len(list((tmp_path / "x").glob("*.png"))) == 6
    assert "prompt '': no known word is left: the image is made without a prompt" in made.out
    assert "prompt '<b>red</b>': words that no training caption has are skipped: '<', 'b', '>', '/'" in made.out
    made = ditlab("sample", trained, "--prompt", "red", "green", "--count", "1", "--out", tmp_path / "one.png")
    assert "the first 1 of 2 prompts are used" in made.out


def test_tokens_are_those_that_are_encoded(trained: Path) -> None:
    text = api.load(trained).text
    assert text is not None
    for prompt in ("A red, mauve image", "", "red " * 99):
        found = text.tokens(prompt)
        assert len(found) == int(text.encode([prompt]).mask.sum())
        assert text.encode([" ".join(found)]).value.equal(text.encode([prompt]).value)
    assert text.tokens("A red, mauve image") == ["a", "red", "image"]


def test_an_interpolation_between_prompts(trained: Path) -> None:
    model = api.load(trained)
    *_, last = model.run(model.interpolation((0, "red"), (0, "blue"), 5, model.defaults), model.defaults)
    found = model.decode(last.x_s)
    for image, prompt in ((found[0], "red"), (found[-1], "blue")):
        assert np.abs(image.astype(int) - model.sample(prompts=prompt, count=1)[0]).max() <= 1
    assert colour_of(found)[0] == "red"
    assert colour_of(found)[-1] == "blue"


def test_prompts_name_classes_of_a_model_of_labels(digits_run: Path, tmp_path: Path, ditlab) -> None:
    model = api.load(digits_run)
    expected = model.sample(["7", "3"], count=4)
    assert np.array_equal(model.sample(prompts=["a nice 7", "3"], count=4), expected)
    made = ditlab("sample", digits_run, "--prompt", "a nice 7", "3", "--count", "4", "--out", tmp_path / "folder")
    assert made.code == 0, made
    assert "prompt 'a nice 7': class '7'; this model is conditioned on classes, other words have no effect" in made.out
    assert "prompt '3'" not in made.out
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [file.name for file in files] == ["000000-7.png", "000001-3.png", "000002-7.png", "000003-3.png"]
    away = model.sample([3], negative="the digit 7", guidance=2)
    assert np.array_equal(away, model.sample([3], negative="7", guidance=2))
    assert not np.array_equal(away, model.sample([3], guidance=2))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "a red cat"], "prompt 'a red cat' names no class of this model; known: 0, 1, 2"),
        (["--prompt", "3 or 4"], "names 2 classes (3, 4)"),
        (["--prompt", "3", "--labels", "4"], "labels and prompts exclude each other"),
        (["--negative", "3,4", "--guidance", "2"], "negative '3,4' must name one class"),
    ],
)
def test_prompts_that_name_no_class_are_refused(digits_run: Path, flags: list[str], words: str, ditlab) -> None:
    made = ditlab("sample", digits_run, *flags)
    assert made.code == 2
    assert words in made.err
