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
from ditlab.data import DataConfig, Dataset
from ditlab.encoders import AutoencoderConfig
from ditlab.errors import UserError
from ditlab.evaluate.scenes import tasks
from ditlab.models import build
from ditlab.pipelines import Pipeline
from ditlab.recipes import Recipe, train_recipe
from ditlab.recipes.fine_tune import WORDS, fine_tuning
from ditlab.recipes.language import caption_loss
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


def test_a_fine_tuned_model_keeps_the_rows_of_the_same_words(trained: Path, tmp_path: Path) -> None:
    recipe = fine_tuning(Recipe(train=replace(RECIPE.train, images=32, lr=1e-9), sample_images=2), str(trained))
    model = Pipeline.load(trained)
    assert model.text is not None
    assert recipe.text == replace(RECIPE.text, max_tokens=model.text.max_tokens)
    table, before = model.network.state_dict()[WORDS], model.text.record()["words"]
    for word, kept in (("red", True), ("zebra", False)):
        lines, source = list[str](), captioned()
        assert source.captions is not None
        source.captions = [tuple(text.replace("red", word) for text in each) for each in source.captions]
        context = RunContext(tmp_path / word, torch.device("cpu"), lines.append, images=source)
        found = train_recipe(recipe, context)
        assert found.text is not None
        for row, each in enumerate(found.text.record()["words"], 1):
            now = found.network.state_dict()[WORDS][row]
            if each in before:
                torch.testing.assert_close(now, table[1 + before.index(each)], atol=1e-5, rtol=0)
            else:
                assert each == "zebra"
        (line,) = [line for line in lines if "kept" in line]
        assert ("; new: table of words (1 of 7 words: zebra)" in line) != kept
        assert ("new" in line) != kept


def test_frozen_embeddings_keep_their_random_values(tmp_path: Path) -> None:
    short = replace(RECIPE.train, checkpoint=64, log=64, samples=64, max_grad_norm=1.0)
    tables = []
    for frozen, images in ((True, 64), (True, 128), (False, 128)):
        recipe = replace(RECIPE, text=replace(RECIPE.text, frozen=frozen), train=replace(short, images=images))
        model = run(tmp_path / f"{frozen}", recipe)  # the second resumes the first
        tables.append(model.network.get_parameter("condition_embedding.text.table.weight"))
    first = build(recipe.model, model.network.spec).initialise(torch.Generator().manual_seed(recipe.seed))
    expected = first.get_parameter("condition_embedding.text.table.weight")
    assert torch.equal(tables[0], expected)
    assert torch.equal(tables[1], expected)
    assert not torch.equal(tables[2], expected)
    trained = api.load(tmp_path / "True")
    assert trained.facts["images"] == 128
    assert trained.network.spec.conditions[0].frozen  # type: ignore[attr-defined]


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


def test_the_loss_is_lower_under_an_images_own_caption(trained: Path) -> None:
    model, source = api.load(trained), captioned()
    dataset = Dataset(source, DataConfig(source="given"))
    loss = caption_loss(model, dataset)
    assert loss.images == 18  # of 24, the others have no captions
    assert loss.own < loss.none < loss.other
    assert loss.preferred > 0.9
    assert loss == caption_loss(model, dataset)
    source.captions = [("red",)] * 24
    with pytest.raises(UserError, match="all captions are the same"):
        caption_loss(model, Dataset(source, DataConfig(source="given")))


def test_a_model_of_scenes_is_measured_on_its_tasks(tmp_path: Path, ditlab) -> None:
    flags = "--autoencoder.kind pixels --data.size 16 --data.limit 64 --model.depth 1 --model.width 16 --model.heads 2"
    flags += (
        " --model.patch 4 --train.images 64 --train.batch 32 --train.log 64 --train.checkpoint 64 --train.samples 64"
    )
    flags += " --sample.steps 2 --sample-images 4 --train.precision fp32"
    trained = ditlab("train", "scenes", *flags.split(), "--out", tmp_path / "run")
    assert trained.code == 0, trained
    assert "64 images of 3x16x16, no classes, captions" in trained.out
    assert "--text.kind tokens trains on them" not in trained.out  # it does already
    measured = ditlab("evaluate", tmp_path / "run", "--network", "none", "--task-prompts", "2", "--guidance", "1")
    assert measured.code == 0, measured
    assert "Samples that show what the prompt says" in measured.out
    found = json.loads((tmp_path / "run" / "evaluation" / "language.json").read_text())
    assert {(each["task"], each["held_out"]) for each in found["tasks"]["scores"]} == {
        (task, held_out) for task in tasks() for held_out in (False, True)
    }
    assert all(each["count"] == 2 for each in found["tasks"]["scores"])
    assert found["loss"]["of"] == "images of the test split"
    assert "captions of 64 images of the test split" in found["settings"]["labels"]
    nothing = ditlab("evaluate", "fashion", "--network", "none", "--count", "64")
    assert nothing.code == 2
    assert "fashion is no model of prompts" in nothing.err


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
