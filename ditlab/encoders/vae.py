"""Convolutional autoencoders of diffusers: trained here, or pretrained such as Stable Diffusion's."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.errors import UserError
from ditlab.runtime.console import quiet_loading

# Stable Diffusion's VAE: with decoders fine-tuned with EMA weights and for the squared error, and the original.
SD_VAES = ("stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse", "CompVis/stable-diffusion-v1-4")

WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?(?:-\d+-of-\d+)?\.\w+")  # the group is the variant


class DiffusersAutoencoder(Autoencoder):
    """A VAE of diffusers: AutoencoderKL, whose moments are means and log variances, or the deterministic AutoencoderTiny."""

    def __init__(self, vae: Any, origin: dict[str, object] | None = None):
        config = vae.config
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        super().__init__(config["in_channels"], config["latent_channels"], 2 ** (len(widths) - 1))
        self.vae, self.origin = vae, origin
        self.stochastic = "Tiny" not in type(vae).__name__
        if origin is not None:  # a pretrained VAE's config has the scale of its latents
            scale = float(config.get("scaling_factor") or 1.0)
            shift = float(config.get("shift_factor") or 0.0)
            channels = torch.ones(config["latent_channels"])
            self.set_statistics(channels * shift, channels / scale)

    def encode(self, pixels: Tensor) -> Tensor:
        """Moments (N, 2 c, h, w): means, then log variances; of a deterministic VAE the latents (N, c, h, w)."""
        encoded = self.vae.encode(pixels)
        return encoded.latent_dist.parameters if self.stochastic else encoded.latents

    def raw_latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Sample the posterior: mean + exp(log variance / 2) noise."""
        if not self.stochastic:
            return moments
        mean, log_variance = moments.chunk(2, dim=1)
        return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Pixels of raw latents."""
        return self.vae.decode(raw).sample

    @property
    def bounds(self) -> None:
        """None: learned latents have no fixed range."""
        return None

    @property
    def shipped(self) -> bool:
        """Whether it was trained here."""
        return self.origin is None

    def trained_parts(self) -> list[nn.Module]:
        """See ``Autoencoder.trained_parts``."""
        return [self.vae.encoder, self.vae.decoder]

    def record(self) -> dict[str, object]:
        """The VAE's configuration, or the path or hub id of a pretrained one."""
        if self.origin is not None:
            return {"kind": "pretrained", **self.origin}
        return {"kind": "kl", "config": self._config()}

    def to_config(self) -> AutoencoderConfig:
        """See ``Autoencoder.to_config``."""
        if self.origin is not None:
            return AutoencoderConfig(
                kind="pretrained", path=str(self.origin["path"]), subfolder=str(self.origin["subfolder"])
            )
        config = self.vae.config
        return AutoencoderConfig(
            kind="kl", latent_channels=config["latent_channels"], widths=tuple(config["block_out_channels"]),
            layers=config["layers_per_block"],
        )  # fmt: skip

    def architecture(self) -> dict[str, object]:
        """The VAE's configuration, without the path and the latent scale of a pretrained one."""
        if self.origin is None:
            return self.record()
        scaling = ("scaling_factor", "shift_factor")
        return {"kind": type(self.vae).__name__, **{k: v for k, v in self._config().items() if k not in scaling}}

    def _config(self) -> dict[str, object]:
        return {key: value for key, value in self.vae.config.items() if not key.startswith("_")}


def new_kl(config: AutoencoderConfig, channels: int, seed: int) -> DiffusersAutoencoder:
    """A new convolutional KL autoencoder (Rombach et al. 2022), with weights drawn from ``seed``."""
    if not config.widths or min(config.widths) < 1 or config.latent_channels < 1 or config.layers < 1:
        raise UserError(f"autoencoder widths {config.widths}, channels and layers must be 1 or more")
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if g == 1 or all(w % g == 0 and w >= 4 * g for w in config.widths))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        vae = _diffusers().AutoencoderKL(
            in_channels=channels, out_channels=channels, latent_channels=config.latent_channels,
            block_out_channels=list(config.widths), layers_per_block=config.layers, norm_num_groups=groups,
            down_block_types=["DownEncoderBlock2D"] * len(config.widths),
            up_block_types=["UpDecoderBlock2D"] * len(config.widths),
        )  # fmt: skip
    # With so few channels a random 1x1 convolution is nearly singular and would lose a direction of the latent.
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return DiffusersAutoencoder(vae)


def build_kl(config: dict[str, object]) -> DiffusersAutoencoder:
    """An AutoencoderKL of a recorded configuration; its weights are still to be loaded."""
    with torch.random.fork_rng(devices=[]):  # the weights drawn are replaced; the global generator is left as it was
        return DiffusersAutoencoder(_diffusers().AutoencoderKL(**config))


def load_pretrained(path: str, subfolder: str = "") -> DiffusersAutoencoder:
    """A pretrained VAE from a folder in diffusers' layout or from the hub, as ``stabilityai/sd-vae-ft-ema``.

    Raises a UserError if nothing at the path can be read, or the hub id cannot be downloaded.
    """
    diffusers = _diffusers()
    if not path:
        known = ", ".join(SD_VAES)
        raise UserError(f"a pretrained autoencoder needs --autoencoder.path: a folder or a hub id, such as {known}")
    kwargs = {"subfolder": subfolder} if subfolder else {}
    try:
        with quiet_loading(diffusers):
            config = diffusers.AutoencoderKL.load_config(path, **kwargs)
            name = config.get("_class_name", "AutoencoderKL")
            if name not in ("AutoencoderKL", "AutoencoderTiny"):
                raise UserError(f"{path} contains a {name}; ditlab reads AutoencoderKL and AutoencoderTiny")
            kwargs |= {"low_cpu_mem_usage": False, "output_loading_info": True, **_stored(Path(path) / subfolder)}
            vae, loading = getattr(diffusers, name).from_pretrained(path, **kwargs)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        shown = 2 if "state_dict" in lines[0] else 1  # the second line names the tensor that does not fit
        reason = " ".join(line.strip() for line in lines[:shown])
        advice = "give a folder with config.json and safetensors weights, or a hub id and a network connection"
        raise UserError(f"cannot load an autoencoder from {path!r} ({reason}); {advice}") from error
    for keys, verb in (("missing_keys", "lacks"), ("unexpected_keys", "has an unknown")):
        if loading[keys]:
            problem = f"the file {verb} tensor {loading[keys][0]!r}"
            raise UserError(f"the weights in {path!r} do not fit its config.json: {problem}")
    path = str(Path(path).resolve()) if Path(path).is_dir() else path  # valid in any working directory
    return DiffusersAutoencoder(vae, {"path": path, "subfolder": subfolder}).eval()


def _stored(folder: Path) -> dict[str, object]:
    """How a folder stores weights: safetensors, or a .bin, of which only tensors are read; and the variant, such as fp16."""
    for kind in ("safetensors", "bin"):
        found = [WEIGHTS.fullmatch(path.name) for path in folder.glob(f"*.{kind}")] if folder.is_dir() else []
        variants = sorted({match[1] or "" for match in found if match})
        if variants:
            return {"use_safetensors": kind == "safetensors", "variant": variants[0] or None}
    return {"use_safetensors": True}


def _diffusers() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
        import diffusers  # takes seconds

    return diffusers
