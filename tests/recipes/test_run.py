"""Recipes end to end, tiny: images, autoencoder, latents, training, samples."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = "--model.depth 1 --model.width 16 --model.heads 2 --sample.steps 2 --sample-images 4 --train.precision fp32"
BRIEF = "--train.images 64 --train.batch 16 --train.log 32 --train.checkpoint 32 --train.samples 64"


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE like Stable Diffusion's, factor 8, 4 channels, saved by diffusers."""
    from typing import Any

    import diffusers
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    blocks: dict[str, Any] = {  # whose type hints in diffusers are of one level only
        "block_out_channels": [8] * 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    diffusers.AutoencoderKL(
        latent_channels=4, norm_num_groups=4, layers_per_block=1, scaling_factor=0.5, **blocks
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "size"), [("imagenet256", 32), ("imagenet512", 48)])
def test_the_papers_recipes_encode_train_and_sample(
    name: str, size: int, tmp_path: Path, pictures, vae: Path, ditlab, tree
):
    photos = pictures(tmp_path / "photos", ("train/cat", "train/dog", "train/emu"), 6, 56, 60)
    flags = [*f"{SMALL} {BRIEF} --data.size {size}".split(), "--data.path", photos, "--autoencoder.path", vae]
    run = tmp_path / "run"
    encoded = ditlab("encode", name, *flags, "--out", run)
    assert encoded.code == 0, encoded
    assert f"18 images of 3x{size}x{size}, 3 classes" in encoded.out
    assert "8x" in encoded.out  # moments of four channels
    latents = tree(tmp_path / "run-latents")
    assert any(file.endswith("flipped.npy") for file in latents)
    trained = ditlab("train", name, *flags, "--out", run)
    assert (trained.code, trained.err) == (0, ""), trained
    assert f"{(size // 16) ** 2} tokens" in trained.out
    assert tree(tmp_path / "run-latents") == latents
    picture = tmp_path / "grid.png"
    sampled = ditlab(
        "sample", run, "--labels", "dog,CAT", "--guidance", "1.5", "--guidance-channels", "3", "--steps", "3",
        "--sampler", "ddim", "--count", "2", "--out", picture,
    )  # fmt: skip
    assert sampled.code == 0, sampled
    with Image.open(picture) as image:
        assert image.mode == "RGB"
        assert json.loads(image.text["ditlab"])["sampler"] == "ddim"  # type: ignore[attr-defined]
    scaling = json.loads((vae / "config.json").read_text())["scaling_factor"]
    import safetensors.torch

    saved = safetensors.torch.load_file(run / "model.safetensors")
    assert saved["autoencoder.std"].flatten().tolist() == [1 / scaling] * 4
    assert not any("vae" in tensor for tensor in saved)  # a pretrained VAE is referred to, not copied


def test_what_cannot_work_is_found_before_anything_is_encoded(tmp_path: Path, pictures, vae: Path, refused):
    photos = pictures(tmp_path / "photos", ("a", "b"), 2)
    base = [*f"{SMALL} {BRIEF}".split(), "--data.path", photos, "--autoencoder.path", vae, "--out", tmp_path / "run"]
    for command in ("train", "encode"):
        refused([command, "imagenet256", *base, "--data.size", "40"], "40x40", "nearest sizes for 40: 32 or 48")
        refused(
            [command, "imagenet256", *base, "--data.size", "32", "--data.channels", "1"],
            "the autoencoder takes 3 channels, the images have 1", "--data.channels 3",
        )  # fmt: skip
    refused(["train", "imagenet256", *base, "--data.size", "32", "--sample.sampler", "ddmi"], "ddmi", "ddpm")
    missing = tmp_path / "no-vae"
    line = refused(["train", "imagenet256", *base, "--data.size", "32", "--autoencoder.path", missing], str(missing))
    assert "config.json" in line
    assert not (tmp_path / "run-latents").exists()
    assert not (tmp_path / "run").exists()


def test_a_recipe_is_checked_before_its_autoencoder_is_trained(tmp_path: Path, kl_recipe: Path, refused):
    base = ["train", kl_recipe, "--out", tmp_path / "run"]
    refused([*base, "--diffusion.condition-dropout", "0", "--sample.guidance.scale", "2"], "null class")
    refused([*base, "--sample.sampler", "ddmi"], "'ddmi'", "ddpm")
    refused([*base, "--model.patch", "3"], "8x8", "factor 2 x patch 3", "6 or 12")
    refused([*base, "--autoencoder.widths", "0"], "widths (0,)")
    assert list(tmp_path.iterdir()) == []


def write_idx(folder: Path, count: int, tests: int) -> Path:
    """Fashion-MNIST's four files; the class decides where a blob is."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for stem, number in (("train", count), ("t10k", tests)):
        labels = (np.arange(number) % 10).astype(np.uint8)
        images = random.integers(0, 30, (number, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 8:20] += 200
        header = struct.pack(">4B3I", 0, 0, 8, 3, number, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, number)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


AUTOENCODER = (
    "--autoencoder-train.images 128 --autoencoder-train.batch 16 --autoencoder-train.log 64 "
    "--autoencoder-train.checkpoint 64 --autoencoder-train.samples 128 --autoencoder-train.precision fp32"
)


def test_fashion_trains_its_autoencoder_encodes_and_trains_by_one_command(
    tmp_path: Path, ditlab, refused, tree, metrics
):
    data = write_idx(tmp_path / "idx", 80, 20)
    widths = ["--autoencoder.widths", "8", "8", "16", "--data.path", data]
    command = ["fashion", *f"{SMALL} {BRIEF} {AUTOENCODER}".split(), *widths, "--out", tmp_path / "run"]
    ended = ditlab("train", *command)
    assert (ended.code, ended.err) == (0, ""), ended
    assert "28x28 to 4x7x7" in ended.out
    assert "latents: 80 of 8x7x7" in ended.out
    assert "49 tokens" in ended.out
    assert "psnr" in metrics(tmp_path / "run-autoencoder")[-1]
    assert "20 images of the test split" in (tmp_path / "run-autoencoder" / "report.md").read_text()
    before = tree(tmp_path)
    line = refused(["train", *command, "--autoencoder.latent-channels", "2"], "other settings")
    assert "autoencoder.latent_channels 4 there, 2 here" in line
    assert tree(tmp_path) == before
    # The autoencoder's folder is a recipe of its own: finished, it stays as it is.
    folder = tmp_path / "run-autoencoder"
    stored = json.loads((folder / "recipe.json").read_text())
    assert list(stored) == ["kind", "name", "seed", "data", "autoencoder", "train"]
    assert (stored["kind"], stored["train"]["images"], stored["autoencoder"]["path"]) == ("autoencoder", 128, "")
    assert f"ditlab autoencoder {folder}" in (folder / "report.md").read_text()
    weights = (folder / "autoencoder.safetensors").read_bytes()
    assert ditlab("autoencoder", folder).code == 0
    assert ditlab("autoencoder", *command).code == 0
    assert (folder / "autoencoder.safetensors").read_bytes() == weights
    refused(
        ["autoencoder", folder, "--autoencoder.latent-channels", "2"], "autoencoder.latent_channels 4 there, 2 here"
    )
    refused(["autoencoder", folder, "--model.depth", "2"], "unknown flag --model.depth")
    refused(["train", folder], "only `ditlab autoencoder` accepts it")
    # Without the run its finished autoencoder is kept, and not used for other settings.
    shutil.rmtree(tmp_path / "run")
    before = tree(tmp_path)
    refused(["train", *command, "--autoencoder.latent-channels", "2"], "run-autoencoder holds a run of other settings")
    assert tree(tmp_path) == before
    deeper = ditlab("train", *command, "--model.depth", "2")  # which does not concern the autoencoder
    assert deeper.code == 0, deeper
    # Another run can use it too.
    other = tmp_path / "other"
    shared = ["--autoencoder.path", tmp_path / "run-autoencoder", "--latents", tmp_path / "run-latents"]
    sharing = ditlab("train", *command[:-1], other, *shared)
    assert sharing.code == 0, sharing
    assert not (tmp_path / "other-autoencoder").exists()


def test_wrong_settings_of_an_autoencoder_write_nothing(tmp_path: Path, refused):
    data = write_idx(tmp_path / "idx", 20, 10)
    run = ["autoencoder", "fashion", "--data.path", data, "--out", tmp_path / "run"]
    refused([*run, "--autoencoder-train.batch", "-1"], "--autoencoder-train.batch -1 must be 1 or more")
    for flag in (["--autoencoder-train.activation-checkpointing"], ["--autoencoder-train.parallel", "fsdp"]):
        refused([*run, *flag], flag[0], "diffusion networks only")
    refused([*run, "--autoencoder.widths", "0"], "widths (0,)")
    refused([*run, "--data.size", "30"], "30x30", "factor 4", "28 or 32")
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]
    refused(["autoencoder", "digits", "--out", tmp_path / "run"], "'digits' has no autoencoder to train")
    refused(["encode", "digits", "--out", tmp_path / "run"], "'digits' works on pixels")


def test_fashion_plane_draws_the_plane_of_its_two_latent_numbers(tmp_path: Path, ditlab):
    data = write_idx(tmp_path / "idx", 40, 20)
    widths = ["--autoencoder.widths", *["4"] * 6, "--data.path", data]
    ended = ditlab("autoencoder", "fashion-plane", *AUTOENCODER.split(), *widths, "--out", tmp_path / "run")
    assert ended.code == 0, ended
    assert "1x32x32 to 2x1x1" in ended.out
    with Image.open(tmp_path / "run-autoencoder" / "samples" / "plane.png") as plane:
        colours = plane.convert("RGB").getcolors(2**20)
    assert colours is not None
    assert len(colours) > 100
    assert "(samples/plane.png)" in (tmp_path / "run-autoencoder" / "report.md").read_text()


def test_a_folder_trains_without_a_truncated_image_and_logs_it(tmp_path: Path, pictures, ditlab):
    photos = pictures(tmp_path / "photos", ("ant", "bee"), 5)
    whole = (photos / "bee" / "3.png").read_bytes()
    (photos / "bee" / "3.png").write_bytes(whole[: len(whole) // 2])
    flags = [*f"{SMALL} {BRIEF}".split(), "--data.path", photos, "--out", tmp_path / "run"]
    ended = ditlab("train", "folder", *flags)
    assert (ended.code, ended.err) == (0, ""), ended
    assert "size 32 (--data.size)" in ended.out
    assert "10 images of 3x32x32, 2 classes" in ended.out
    assert "1 unreadable image skipped: bee/3.png" in ended.out
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (stored["data"]["size"], stored["train"]["batch"]) == ([32], 16)
    again = ditlab("train", tmp_path / "run")  # the run folder stores the choices
    assert again.code == 0, again
    assert "chosen" not in again.out


def test_a_folder_recipe_with_a_name_gets_a_size_and_a_run_folder_of_that_name(elsewhere: Path, pictures, ditlab):
    photos = pictures(elsewhere / "photos", ("",), 4)
    flags = f"{SMALL} {BRIEF} --name pets --data.path".split()
    ended = ditlab("train", "folder", *flags, photos)
    assert ended.code == 0, ended
    assert "4 images of 3x32x32, no classes" in ended.out
    assert (elsewhere / "runs" / "pets" / "model.safetensors").is_file()
    assert [path.name for path in (elsewhere / "runs").iterdir()] == ["pets"]


def test_a_latent_cache_of_other_data_is_refused(tmp_path: Path, kl_run: Path, kl_recipe: Path, refused, tree):
    shutil.copytree(kl_run.parent, tmp_path / "runs")
    before = tree(tmp_path)
    cache = tmp_path / "runs" / "small-latents"
    base = ["train", kl_recipe, "--autoencoder.path", tmp_path / "runs" / "small-autoencoder", "--latents", cache]
    line = refused([*base, "--out", tmp_path / "new", "--data.limit", "500"], str(cache), "other images")
    assert "500" in line
    assert tree(tmp_path) == before


def test_diffusers_prints_no_warning(tmp_path: Path, vae: Path, pictures, ditlab):
    photos = pictures(tmp_path / "photos", ("a",), 3)
    flags = [*f"{SMALL} {BRIEF} --data.size 32".split(), "--data.path", photos, "--autoencoder.path", vae]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ended = ditlab("encode", "imagenet256", *flags, "--out", tmp_path / "run")
    assert (ended.code, ended.err, [str(warning.message) for warning in seen]) == (0, "", [])
