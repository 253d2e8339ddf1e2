"""Sampling speed: images with guidance from DiT-S/2 by ditlab and by diffusers' DiTPipeline, in turn.

    python benchmarks/sampling.py [--json benchmarks/results/sampling-cpu.json]

Same steps, same DDIM, random weights, and one small VAE of factor 8 for both. On a GPU XL/2, 250 DDPM steps, batches 1, 4, 64.
"""

from __future__ import annotations

import torch
from table import Row, arguments, compare, in_turn, show

from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.latents import AutoencoderConfig, new_kl
from ditlab.models import DiT, DiTConfig, NetworkInput
from ditlab.sample import Model, SampleConfig

GUIDANCE = 4.0
VAE = AutoencoderConfig(kind="kl", latent_channels=4, widths=(16, 16, 16, 16), layers=1)


def our_model(config: DiTConfig, sampler: str, steps: int, precision: str, device: torch.device) -> Model:
    """Ours, compiled, with random weights."""
    shape = NetworkInput(4, 32, 32, classes=1000, learned_variance=True)
    network = DiT(config, shape).initialise(torch.Generator().manual_seed(0))
    defaults = SampleConfig(sampler, steps, GuidanceConfig(GUIDANCE), precision)  # type: ignore[arg-type]
    autoencoder = new_kl(VAE, 3, 0).eval()
    names = [str(label) for label in range(1000)]
    return Model(network.eval(), DiffusionConfig(), autoencoder, (3, 256, 256), names, defaults).to(device).compile()


def their_pipeline(config: DiTConfig, sampler: str, device: torch.device):
    """Diffusers' pipeline as it comes: float32, eager."""
    from diffusers import DDIMScheduler, DDPMScheduler, DiTPipeline, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.width // config.heads, in_channels=4, out_channels=8,
        num_layers=config.depth, sample_size=32, patch_size=config.patch, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    if sampler == "ddim":
        scheduler = DDIMScheduler(clip_sample=False)
    else:
        scheduler = DDPMScheduler(clip_sample=False, variance_type="learned_range")
    pipeline = DiTPipeline(network, new_kl(VAE, 3, 0).vae.eval(), scheduler)  # type: ignore[arg-type]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def row(model: str, sampler: str, steps: int, batch: int, precision: str, device: torch.device, rounds: int) -> Row:
    """One comparison."""
    config = DiTConfig.named(model)
    mine = our_model(config, sampler, steps, precision, device)
    theirs = their_pipeline(config, sampler, device)
    labels = [label * 37 % 1000 for label in range(batch)]
    with torch.inference_mode():
        times = in_turn(
            lambda: mine.sample(labels, seed=0, batch=batch),
            lambda: theirs(labels, guidance_scale=GUIDANCE, num_inference_steps=steps, output_type="np"),
            device, rounds, 1, warm=1,
        )  # fmt: skip
    name = f"{model}, {steps} {sampler} steps, guidance, batch {batch}"
    return compare(name, "diffusers DiTPipeline fp32", device, f"{precision} compiled", "images/s", batch, *times)


def main() -> None:
    """Run what the flags say."""
    given = arguments(__doc__ or "").parse_args()
    device = torch.device(given.device)
    if device.type == "cuda":
        jobs = [("XL/2", "ddpm", 250, batch, "bf16") for batch in (1, 4, 64)]
        rounds = 1 if given.quick else 2
    else:
        steps = 4 if given.quick else 20
        jobs = [("S/2", "ddim", steps, 4, precision) for precision in ("bf16", "fp32")]
        rounds = 3 if given.quick else 5
    show("Sampling with guidance", [row(*job, device, rounds) for job in jobs], given.json)


if __name__ == "__main__":
    main()
