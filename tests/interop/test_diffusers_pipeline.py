"""Models as diffusers' DiTPipeline keeps them: the pipeline itself is the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from specs import image_spec
from torch import nn

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.errors import UserError
from ditlab.interop import diffusers_pipeline, official
from ditlab.pipelines import Pipeline, SampleConfig, image_generator
from ditlab.recipes.samples import open_samples
from ditlab.runtime.distributed import ALONE

Build = Callable[..., Pipeline]


def of_diffusers(folder: Path, labels: list[int], guidance: float, steps: int, seed: int) -> np.ndarray:
    """Images float (N, H, W, C), 0 to 1, each of the noise that ditlab has for it."""
    made = diffusers.DiTPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    generators = [image_generator(seed, k) for k in range(len(labels))]
    return made(labels, guidance, generators, steps, output_type="np").images  # type: ignore[union-attr]


def of_ditlab(ours: Pipeline, labels: list[int], guidance: float, steps: int, seed: int) -> np.ndarray:
    return ours.sample(labels, sampler="ddim", guidance=guidance, steps=steps, seed=seed) / 255


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 50), (2.5, 10)])
def test_the_pipeline_makes_the_same_images_of_the_same_noise(
    model: Build, learned: bool, guidance: float, steps: int, tmp_path: Path
):
    ours = model(diffusion=DiffusionConfig(learned_variance=learned))
    assert diffusers_pipeline.export(ours, tmp_path / "out") == 50
    found = of_diffusers(tmp_path / "out", [0, 2, 1], guidance, steps, seed=3)
    expected = of_ditlab(ours, [0, 2, 1], guidance, steps, seed=3)
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-3  # ours are whole numbers of 255


@pytest.mark.parametrize("width", [48, 256, 1152])
def test_timesteps_are_carried_over_for_as_many_steps_as_the_width_has_room_for(model: Build, width: int):
    network = model(width).network
    tensors = official.state_dict(network)
    steps = diffusers_pipeline.refit(tensors, ours=False)
    assert steps == {48: 25, 256: 250, 1152: 1000}[width]
    theirs: Any = diffusers.models.embeddings.CombinedTimestepLabelEmbeddings(1, width)
    for part, name in ((theirs.timestep_embedder.linear_1, "0"), (theirs.timestep_embedder.linear_2, "2")):
        part.load_state_dict({kind: tensors[f"t_embedder.mlp.{name}.{kind}"] for kind in ("weight", "bias")})
    nn.init.zeros_(theirs.class_embedder.embedding_table.weight)
    t = torch.arange(0, 1000, 1000 // steps)
    with torch.no_grad():
        found = theirs(t, torch.zeros_like(t), hidden_dtype=torch.float32)
        expected = network.get_submodule("timestep_embedding")(t)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * expected.abs().max().item())
    before = official.state_dict(network)["t_embedder.mlp.2.weight"]
    assert not torch.equal(tensors["t_embedder.mlp.2.weight"], before)


def test_what_is_written_is_read_back(model: Build, tmp_path: Path):
    ours = model()
    diffusers_pipeline.export(ours, tmp_path / "out")
    back = diffusers_pipeline.read(tmp_path / "out")
    assert (back.names, back.pixels, back.diffusion) == (ours.names, ours.pixels, ours.diffusion)
    found, expected = (of_ditlab(each, [2, 0], 1.5, 25, seed=1) for each in (back, ours))
    assert np.abs(found - expected).max() <= 1 / 255  # rounded to whole numbers on either side of a half


def test_a_pipeline_is_measured_as_a_model_not_as_a_folder_of_images(model: Build, tmp_path: Path):
    diffusers_pipeline.export(model(), tmp_path / "out")
    samples = open_samples(str(tmp_path / "out"), 3, 1, "turn", 2, lambda model: SampleConfig("ddim", 4), ALONE)
    generated = np.concatenate(list(samples.batches()))
    back = diffusers_pipeline.read(tmp_path / "out")
    assert np.abs(generated.astype(int) - back.sample(None, sampler="ddim", steps=4, seed=1, count=3)).max() <= 1


def test_a_pipeline_of_diffusers_own_is_read_as_it_runs(tmp_path: Path):
    torch.manual_seed(0)
    theirs: Any = diffusers
    transformer = theirs.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=2, sample_size=4, norm_eps=1e-6
    )  # fmt: skip
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.08)
    first = transformer.transformer_blocks[0].norm1.emb
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())
    vae = theirs.AutoencoderKL(
        block_out_channels=(16, 16), norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    )  # fmt: skip
    scheduler = theirs.DDIMScheduler(beta_end=0.02, beta_start=1e-4, clip_sample=False)
    theirs.DiTPipeline(transformer, vae, scheduler).save_pretrained(tmp_path / "theirs")
    ours = diffusers_pipeline.read(tmp_path / "theirs")
    assert (ours.classes, ours.names[207], ours.pixels) == (1000, "207", (3, 8, 8))
    found = of_ditlab(ours, [207, 3], 4.0, 25, seed=0)
    expected = of_diffusers(tmp_path / "theirs", [207, 3], 4.0, 25, seed=0)
    assert expected.std() > 0.02
    assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-3


def test_latents_are_normalised_inside_the_vae(
    model: Build,
):
    ours = model()
    vae = diffusers_pipeline.scaled(ours.autoencoder)  # type: ignore[arg-type]
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = vae.encode(pixels).latent_dist
        expected = ours.autoencoder.latent(ours.autoencoder.encode(pixels), noise)
        torch.testing.assert_close(theirs.mean + theirs.std * noise, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vae.decode(noise).sample, ours.autoencoder.decode(noise), atol=1e-5, rtol=1e-4)


def pixels_model(model: Build) -> Pipeline:
    ours = model()
    return Pipeline(ours.network, ours.diffusion, Autoencoder(3, 3, 1), ours.names, SampleConfig())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda model: model(block="cross-attention"), ["cross-attention", "adaln-zero"]),
        (lambda model: model(mlp="swiglu"), ["mlp swiglu"]),
        (lambda model: model(mlp_ratio=2.0), ["MLP ratio of 4", "has 2"]),
        (lambda model: model(shape=image_spec(3, 4, 8, 3, True)), ["square", "4x8"]),
        (lambda model: model(shape=image_spec(3, 4, 4, 3, True, null=False)), ["no null class"]),
        (lambda model: model(shape=image_spec(3, 4, 4, 0, True)), ["1 to 1000 classes", "has 0"]),
        (
            lambda model: model(diffusion=DiffusionConfig("rectified-flow", "velocity", False)),
            ["rectified-flow", "velocity"],
        ),
        (pixels_model, ["AutoencoderKL", "pixels"]),
    ],
)
def test_what_has_no_place_in_the_pipeline_is_refused(model: Build, made: Any, words: list[str], tmp_path: Path):
    with pytest.raises(UserError) as caught:
        diffusers_pipeline.export(made(model), tmp_path / "out")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(model: Build, tmp_path: Path, tree: Any):
    out = tmp_path / "out"
    diffusers_pipeline.export(model(), out)
    before = tree(out)
    with pytest.raises(UserError, match="--force"):
        diffusers_pipeline.export(model(), out)
    assert tree(out) == before
    diffusers_pipeline.export(model(width=48), out, force=True)
    assert tree(out) != before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="choose another folder"):
        diffusers_pipeline.export(model(), tmp_path / "other", force=True)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, ["StableDiffusionPipeline", "DiTPipeline"]),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, ["beta_schedule scaled_linear"]),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, ["prediction_type v_prediction"]),
        ("transformer/config.json", {"num_layers": 3}, ["transformer"]),
        ("transformer/config.json", {"num_attention_heads": "many"}, ["transformer"]),
    ],
)
def test_other_pipelines_are_refused_in_one_line(
    model: Build, file: str, change: dict[str, object], words: list[str], tmp_path: Path
):
    diffusers_pipeline.export(model(), tmp_path / "out")
    path = tmp_path / "out" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        diffusers_pipeline.read(tmp_path / "out")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_both_exports_from_the_command_line(ditlab: Callable, model: Build, name: str, tmp_path: Path):
    run = tmp_path / "run"
    model().save(run)
    ended = ditlab("export", run, tmp_path / "out")
    assert ended.code == 0
    assert "with 50 steps" in ended.out
    ended = ditlab("sample", tmp_path / "out", "--count", "2", "--steps", "5", "--out", tmp_path / "grid.png")
    assert ended.code == 0
    assert (tmp_path / "grid.png").exists()
    assert ditlab("export", run, tmp_path / name, "--to", "official").code == 0
    back = official.read(tmp_path / name, heads=4)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model().network.parameters(), strict=True))
    again = ditlab("export", run, tmp_path / name, "--to", "official")
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err


def test_a_process_the_public_code_does_not_know_is_refused(ditlab: Callable, model: Build, tmp_path: Path):
    model(diffusion=DiffusionConfig("rectified-flow", "velocity", False)).save(tmp_path / "run")
    ended = ditlab("export", tmp_path / "run", tmp_path / "out.pt", "--to", "official")
    assert ended.code == 2
    assert "rectified-flow" in ended.err
    assert not (tmp_path / "out.pt").exists()
