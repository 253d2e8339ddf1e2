"""Models of prompts through frozen text encoders: training from the caption cache, model file, samples."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import COLOURS, captioned
from forked import Forked
from safetensors.torch import load_file, save_file
from text_models import KINDS, save_text_model

import ditlab as api
from ditlab.data.arrays import ArraySource
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import (
    AutoencoderConfig,
    EncodedCaptions,
    TextEncoderConfig,
    build_text_encoder,
    encode_texts,
    text_cache,
)
from ditlab.errors import UserError
from ditlab.models import DiTConfig
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.recipes import Recipe, encode_latents, train_recipe
from ditlab.recipes.prepare import RunContext
from ditlab.train import TrainConfig

RECIPE = Recipe(
    name="colours",
    model=DiTConfig(depth=1, width=32, heads=2, patch=4),
    diffusion=DiffusionConfig("rectified-flow", "velocity", learned_variance=False),
    train=TrainConfig(images=64, batch=32, lr=4e-3, log=64, checkpoint=64, samples=64, threads=1),
    sample=SampleConfig("euler", 2),
    sample_images=4,
)
TEXTS = [f"a {colour} {shape}" for colour in COLOURS for shape in ("circle", "square", "image")] + [""]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_text_model(folder / kind, kind)
    return folder


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "SHARD", 4)
    monkeypatch.setattr(text_cache, "ENCODED", 2)


def frozen(path: Path, **fields) -> Recipe:
    return replace(RECIPE, text=TextEncoderConfig("transformers", path=str(path), **fields))


def run(folder: Path, recipe: Recipe, source: ArraySource | None = None) -> tuple[Pipeline, list[str]]:
    lines: list[str] = []
    return train_recipe(
        recipe, RunContext(folder, torch.device("cpu"), lines.append, images=source or captioned())
    ), lines


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_trains_samples_and_reloads(models: Path, tmp_path: Path, kind: str) -> None:
    recipe = frozen(models / kind, layers=(1, 3) if kind == "qwen3" else ())
    model, lines = run(tmp_path / "run", recipe)
    longest = {"t5": 4, "qwen3": 3}.get(kind, 5)  # three words and special tokens
    assert f"captions: 9, the longest of {longest} tokens (at most 64), in {tmp_path / 'run-captions'}" in lines
    first = model.sample(prompts=["a red image", ""], guidance=2, count=4)
    assert first.shape == (4, 4, 4, 3)
    again = api.load(tmp_path / "run")
    assert np.array_equal(again.sample(prompts=["a red image", ""], guidance=2, count=4), first)
    record = json.loads((tmp_path / "run" / "model.json").read_text())
    assert record["text_encoder"]["path"] == str(models / kind)
    assert record["conditions"][0]["features"] == 16
    assert (tmp_path / "run" / "model.safetensors").stat().st_size < 200_000  # without the encoder
    if kind == "t5":
        _, lines = run(tmp_path / "run", replace(recipe, train=replace(recipe.train, images=128)))
        assert any("resumed" in line for line in lines)


def test_an_image_does_not_depend_on_the_maximum_of_tokens(models: Path, tmp_path: Path) -> None:
    recipe = frozen(models / "t5", max_tokens=64)
    recipe = replace(
        recipe, model=replace(recipe.model, block="in-context"), train=replace(recipe.train, images=960, log=960)
    )
    run(tmp_path / "run", recipe)
    record = tmp_path / "run" / "model.json"
    images = []
    for tokens in (64, 16):
        record.write_text(record.read_text().replace('"max_tokens": 64', f'"max_tokens": {tokens}'))
        model = api.load(tmp_path / "run")
        assert model.text is not None
        assert model.text.max_tokens == tokens
        long = "red " * 15 + "blue " * 40  # in the same batch, so that the other is padded to the maximum
        images.append(model.sample(prompts=["a red image", long], negative="blue", guidance=3, count=4))
    assert np.abs(images[0][::2].astype(int) - images[1][::2]).max() <= 1
    assert np.abs(images[0][1::2].astype(int) - images[1][1::2]).max() > 1  # the other is truncated


def test_cached_features_are_those_of_the_encoder(models: Path, tmp_path: Path) -> None:
    encoder = build_text_encoder(frozen(models / "bert").text, TEXTS)
    assert encoder is not None
    images = [(text,) for text in TEXTS] + [(), (TEXTS[3], TEXTS[5])]
    cached = EncodedCaptions(images, encoder, cache=encode_texts(TEXTS, encoder, tmp_path / "cache"))
    memory = EncodedCaptions(images, encoder)
    indices, draws = np.arange(len(images))[::-1].copy(), torch.linspace(0, 0.9, len(images))
    value, mask = cached.read(indices, draws)
    expected = memory.read(indices, draws)
    assert value.dtype == torch.float16
    assert torch.equal(mask, expected.mask)
    torch.testing.assert_close(value.float()[mask], expected.value[mask], atol=1e-3, rtol=1e-3)
    assert not mask[indices == TEXTS.index("")].any()
    tokens = [np.load(path).shape for path in sorted((tmp_path / "cache").glob("*.features.npy"))]
    assert tokens == [(20, 16), (20, 16), (5, 16)]  # five tokens a text, none of the empty one


def test_reading_a_batch_touches_only_its_rows(models: Path, tmp_path: Path) -> None:
    encoder = build_text_encoder(frozen(models / "bert").text, TEXTS)
    assert encoder is not None
    encode_texts(TEXTS, encoder, tmp_path / "cache")
    path = tmp_path / "cache" / "00001.features.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the last row of the second shard
    path.write_bytes(content)
    cache = encode_texts(TEXTS, encoder, tmp_path / "cache")
    cache.read(np.array([0, 6, 8]))
    with pytest.raises(UserError, match=r"00001.features.npy are damaged \(row 3 has changed\); delete 00001.rows.npy"):
        cache.read(np.array([0, 7]))
    (tmp_path / "cache" / "00001.rows.npy").unlink()
    encode_texts(TEXTS, encoder, tmp_path / "cache").read(np.array([7]))
    path.write_bytes(content[:-32])
    encode_texts(TEXTS, encoder, tmp_path / "cache").read(np.array([7]))  # found when it is opened, and made again


def test_a_cache_refuses_other_captions_and_encoders(models: Path, tmp_path: Path) -> None:
    cache = tmp_path / "shared"
    run(tmp_path / "first", frozen(models / "bert", cache=str(cache)))
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    run(tmp_path / "second", replace(frozen(models / "bert", cache=str(cache)), seed=1))  # shares it
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")} == before
    other = captioned()
    other.captions = [(f"{each[0]} circle",) if each else () for each in other.captions or ()]
    cases = [
        (frozen(models / "bert", cache=str(cache)), other, r"other captions \(9 texts there, 6 here\)"),
        (frozen(models / "t5", cache=str(cache)), None, r"path .*bert, not .*t5"),
        (frozen(models / "bert", cache=str(cache), layers=(2,)), None, r"layers \[\], not \[2\]"),
        (frozen(models / "bert", cache=str(cache), max_tokens=16), None, "max_tokens 64, not 16"),
    ]
    for recipe, source, message in cases:
        with pytest.raises(UserError, match=rf"^the caption cache .*shared was made with {message}; delete it[^\n]*$"):
            run(tmp_path / "third", recipe, source)
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from ditlab.encoders import TextEncoderConfig, build_text_encoder, encode_texts, text_cache
from ditlab.runtime import files

text_cache.SHARD, text_cache.ENCODED = 4, 2
write = files.write_file

def write_or_die(path, content):
    if path.name == "00002.rows.npy":  # the features of the shard are written
        (path.parent / ".00002.rows.npy.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

files.write_file = write_or_die
model, folder, *texts = sys.argv[1:]
encode_texts(texts, build_text_encoder(TextEncoderConfig("transformers", path=model), texts), Path(folder))
"""


def test_a_killed_encoding_resumes(models: Path, tmp_path: Path) -> None:
    encoder = build_text_encoder(frozen(models / "bert").text, TEXTS)
    assert encoder is not None
    folder, seen = tmp_path / "cache", []
    killed = Forked(models / "bert", folder, *TEXTS, script=KILLED).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("0000[01].*.npy")}
    assert len(kept) == 4
    with pytest.raises(UserError, match="other captions"):
        encode_texts(TEXTS[1:], encoder, folder)
    cache = encode_texts(TEXTS, encoder, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10), (10, 10)]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(folder.glob(".*"))
    value, mask = encoder.encode(TEXTS)
    read = torch.from_numpy(cache.read(np.arange(len(TEXTS)))).float()
    torch.testing.assert_close(read[mask], value[mask], atol=1e-3, rtol=1e-3)


def test_encoding_ahead_of_training_includes_the_captions(models: Path, tmp_path: Path) -> None:
    recipe = replace(
        frozen(models / "bert"), model=replace(RECIPE.model, patch=1), autoencoder_train=replace(RECIPE.train, lr=1e-3),
        autoencoder=AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 8), layers=1),
    )  # fmt: skip
    lines: list[str] = []
    encode_latents(recipe, RunContext(tmp_path / "run", torch.device("cpu"), lines.append, images=captioned()))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run-captions").glob("*.npy")}
    assert len(before) == 6
    _, later = run(tmp_path / "run", recipe)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run-captions").glob("*.npy")} == before
    said = [line for line in lines if line.startswith("captions: 9")]
    assert [line for line in later if line.startswith("captions: 9")] == said != []


def test_features_beyond_float16_are_refused(models: Path, tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "bert", "bert")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.2.output.LayerNorm.weight"))
    weights[name] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    output, layers = (build_text_encoder(frozen(folder, layers=layers).text, TEXTS) for layers in ((), (3,)))
    assert output is not None
    assert layers is not None
    with pytest.raises(UserError, match=r"exceed float16; give --text.layers"):
        encode_texts(TEXTS, output, tmp_path / "output")
    assert encode_texts(TEXTS, layers, tmp_path / "layers").lengths.max() == 5


def test_prompts_on_the_command_line(models: Path, tmp_path: Path, ditlab) -> None:
    run(tmp_path / "run", frozen(models / "clip"))
    prompts = ["red " * 100, "", "\x00\x1b[0m", "<b>赤</b>", "x" * 10_000]
    made = ditlab("sample", tmp_path / "run", "--prompt", *prompts, "--out", tmp_path / "x.png")
    assert made.code == 0, made
    assert made.out.count("the first 64 tokens are used, of 102") == 1
    shutil.rmtree(models / "clip")
    ended = ditlab("sample", tmp_path / "run", "--prompt", "red", "--out", tmp_path / "x.png")
    assert ended.code == 2
    assert f"the model's text encoder is not at {models / 'clip'}" in ended.err
