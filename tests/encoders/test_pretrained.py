import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel

from ditlab.encoders import DiffusersAutoencoder, load_pretrained

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny_kl(**changes: object) -> AutoencoderKL:
    settings: dict = {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 16], "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, **changes,
    }  # fmt: skip
    return AutoencoderKL(**settings).eval()


def saved(vae: AutoencoderKL | AutoencoderTiny, folder: Path) -> Path:
    vae.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return saved(tiny_kl(), tmp_path / "vae")


def test_a_kl_vae_by_path_gives_diffusers_own_moments_and_pixels(tmp_path: Path):
    torch.manual_seed(0)
    vae = tiny_kl()
    autoencoder = load_pretrained(str(saved(vae, tmp_path / "vae")))
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    moments = autoencoder.encode(pixels)
    posterior = vae.encode(pixels).latent_dist  # type: ignore[union-attr]
    torch.testing.assert_close(moments[:, :4], posterior.mean)
    torch.testing.assert_close(moments[:, 4:].clamp(-30, 20), posterior.logvar)
    noise = torch.randn(2, 4, 4, 6)
    latent = autoencoder.latent(moments, noise)  # as the paper: sampled from the posterior, times 0.18215
    direct = (posterior.mean + posterior.std * noise).double().numpy() * 0.18215
    np.testing.assert_allclose(latent, direct, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(autoencoder.decode(latent), vae.decode(latent / 0.18215).sample, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert autoencoder.latent_shape((8, 12)) == (4, 4, 6)
    assert not autoencoder.training


def test_a_subfolder_of_a_pipeline_is_found(folder: Path):
    inside = load_pretrained(str(folder.parent), "vae")
    assert inside.fingerprint() == load_pretrained(str(folder)).fingerprint()
    assert inside.record() == {"kind": "pretrained", "path": str(folder.parent), "subfolder": "vae"}
    assert not inside.shipped


def test_scale_and_shift_are_the_vaes_own(tmp_path: Path):
    folder = saved(tiny_kl(scaling_factor=0.5, shift_factor=0.25), tmp_path / "vae")
    autoencoder = load_pretrained(str(folder))
    raw = torch.randn(2, 4, 3, 3)
    moments = torch.cat([raw, torch.full_like(raw, -30)], dim=1)
    np.testing.assert_allclose(
        autoencoder.latent(moments, torch.zeros_like(raw)), (raw.double() - 0.25) * 0.5, rtol=1e-5, atol=1e-6
    )


def test_the_tiny_autoencoder_has_no_noise_and_its_own_scale(tmp_path: Path, capfd: pytest.CaptureFixture):
    torch.manual_seed(0)
    widths = (8, 8, 8)
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    ).eval()  # fmt: skip
    folder = saved(vae, tmp_path / "tiny")
    capfd.readouterr()
    autoencoder = load_pretrained(str(folder))
    assert capfd.readouterr().err == ""  # diffusers has remarks about its own config here
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    moments = autoencoder.encode(pixels)
    torch.testing.assert_close(moments, vae.encode(pixels).latents)  # type: ignore[union-attr]
    latent = autoencoder.latent(moments, torch.full((2, 4, 2, 3), 7.0))
    torch.testing.assert_close(latent, moments)
    torch.testing.assert_close(autoencoder.decode(latent), vae.decode(moments).sample)  # type: ignore[union-attr]
    assert autoencoder.latent_shape((8, 12)) == (4, 2, 3)


def test_the_attention_names_of_older_files_are_read(folder: Path):
    """Stable Diffusion's VAEs were saved when diffusers called the projections query, key, value and proj_attn."""
    weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    expected = load_pretrained(str(folder)).fingerprint()
    renamed = weights
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        renamed = {name.replace(new, old): tensor for name, tensor in renamed.items()}
    assert renamed.keys() != weights.keys()
    other = folder.parent / "older"
    other.mkdir()
    (other / "config.json").write_text((folder / "config.json").read_text())
    (other / WEIGHTS).write_bytes(safetensors.torch.save(renamed, {"format": "pt"}))
    assert load_pretrained(str(other)).fingerprint() == expected


def test_the_fingerprint_is_of_weights_and_architecture_not_of_place_or_scale(tmp_path: Path):
    torch.manual_seed(0)
    vae = tiny_kl()
    here, there = (load_pretrained(str(saved(vae, tmp_path / name))) for name in ("here", "there"))
    here.set_statistics(torch.ones(4), torch.ones(4))
    assert here.fingerprint() == there.fingerprint()
    grouped = tiny_kl(norm_num_groups=2)  # the same tensors, used otherwise
    grouped.load_state_dict(vae.state_dict())
    scaled = tiny_kl(scaling_factor=0.5)
    scaled.load_state_dict(vae.state_dict())
    assert load_pretrained(str(saved(grouped, tmp_path / "grouped"))).fingerprint() != here.fingerprint()
    assert load_pretrained(str(saved(scaled, tmp_path / "scaled"))).fingerprint() == here.fingerprint()


def test_another_class_is_named(tmp_path: Path, refuses: Callable):
    UNet2DModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4, layers_per_block=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    refuses(lambda: load_pretrained(str(tmp_path)), str(tmp_path), "UNet2DModel", "AutoencoderKL", "AutoencoderTiny")


def test_no_path_names_what_to_give(refuses: Callable):
    refuses(lambda: load_pretrained(""), "--autoencoder.path", "stabilityai/sd-vae-ft-ema")


def test_a_missing_folder_and_a_hub_out_of_reach_are_one_line(tmp_path: Path, offline: None, refuses: Callable):
    for path in (str(tmp_path / "nothing"), "stabilityai/sd-vae-ft-ema", "no such/thing at/all"):
        refuses(lambda path=path: load_pretrained(path), path, "folder with config.json", "network")
    (tmp_path / "empty").mkdir()
    refuses(lambda: load_pretrained(str(tmp_path / "empty")), "empty", "config.json")
    refuses(lambda: load_pretrained(str(tmp_path), "empty"), str(tmp_path), "config.json")


@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_weights_are_one_line(folder: Path, refuses: Callable, keep: float):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * keep)])
    refuses(lambda: load_pretrained(str(folder)), str(folder), WEIGHTS)


@dataclass
class Code:
    """An object that touches a file when it is unpickled."""

    marker: Path

    def __reduce__(self) -> tuple[Callable, tuple[Path]]:
        return Path.touch, (self.marker,)


def test_of_pickled_weights_only_tensors_are_read(folder: Path, tmp_path: Path, refuses: Callable):
    weights, expected = safetensors.torch.load((folder / WEIGHTS).read_bytes()), load_pretrained(str(folder))
    (folder / WEIGHTS).unlink()
    pickled, marker = folder / "diffusion_pytorch_model.bin", tmp_path / "marker"
    torch.save(weights, pickled)
    for one, other in zip(load_pretrained(str(folder)).parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.save({**weights, "extra": Code(marker)}, pickled)
    refuses(lambda: load_pretrained(str(folder)), str(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("encoder.conv_in.bias"), ("lacks", "'encoder.conv_in.bias'")),
        (lambda weights: weights.update(extra=torch.zeros(2)), ("unknown", "'extra'")),
        (lambda weights: weights.update({"encoder.conv_in.bias": torch.zeros(3)}), ("encoder.conv_in.bias",)),
    ],
)
def test_weights_that_are_not_of_the_config_name_the_tensor(
    folder: Path, refuses: Callable, change: Callable, words: tuple[str, ...]
):
    weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    change(weights)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    refuses(lambda: load_pretrained(str(folder)), str(folder), *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "cut"])
def test_a_damaged_config_is_one_line(folder: Path, refuses: Callable, text: str):
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:40] if text == "cut" else text)
    refuses(lambda: load_pretrained(str(folder)), str(folder))


def test_a_config_of_unknown_blocks_is_one_line(folder: Path, refuses: Callable):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "down_block_types": ["Future", "Future"]}))
    refuses(lambda: load_pretrained(str(folder)), str(folder), "Future")


def test_a_wrapped_vae_without_an_origin_is_one_that_ships():
    assert DiffusersAutoencoder(tiny_kl()).shipped
