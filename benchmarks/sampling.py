"""Sampling speed: images with guidance from DiT-S/2 by ditlab and by diffusers' DiTPipeline, in turn.

    python benchmarks/sampling.py [--json benchmarks/results/sampling-cpu.json]

Same steps, same DDIM, random weights, and one small VAE of factor 8 for both; where diffusers is not installed ditlab alone,
without a VAE. On a GPU XL/2: 250 DDPM steps at batches 1, 4 and 64, and 25 at 64, which the peer can do in the time there is.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from table import Row, arguments, compare, in_turn, show

from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.encoders import Autoencoder, AutoencoderConfig, new_kl
from ditlab.models import DiT, DiTConfig, LatentSpec, labelled
from ditlab.pipelines import Pipeline, SampleConfig

GUIDANCE = 4.0
PEER = find_spec("diffusers") is not None
ON_GPU = ((250, 1, True), (250, 4, True), (25, 64, True), (250, 64, False))  # steps, batch, beside the peer
VAE = AutoencoderConfig(kind="kl", latent_channels=4, widths=(16, 16, 16, 16), layers=1)


def our_model(config: DiTConfig, sampler: str, steps: int, precision: str, device: torch.device) -> Pipeline:
    """Ours, compiled, with random weights."""
    shape = labelled(LatentSpec(4, (32, 32)), 1000, learned_variance=True)
    network = DiT(config, shape).initialise(torch.Generator().manual_seed(0))
    defaults = SampleConfig(sampler, steps, GuidanceConfig(GUIDANCE), precision)  # type: ignore[arg-type]
    autoencoder = new_kl(VAE, 3, 0).eval() if PEER else Autoencoder(4, 4, 1)
    names = [str(label) for label in range(1000)]
    pipeline = Pipeline(network.eval(), DiffusionConfig(), autoencoder, names, defaults).to(device)
    return pipeline.prepare(defaults, compiled=True)


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


def row(
    model: str, sampler: str, steps: int, batch: int, precision: str, peer: bool, device: torch.device, rounds: int
) -> Row:
    """One comparison, or ditlab alone."""
    config = DiTConfig.named(model)
    mine = our_model(config, sampler, steps, precision, device)
    theirs = their_pipeline(config, sampler, device) if peer and PEER else None
    labels = [label * 37 % 1000 for label in range(batch)]
    with torch.inference_mode():
        times = in_turn(
            lambda: mine.sample(labels, seed=0, batch=batch),
            None if theirs is None
            else lambda: theirs(labels, guidance_scale=GUIDANCE, num_inference_steps=steps, output_type="np"),
            device, rounds, 1, warm=1,
        )  # fmt: skip
    name = f"{model}, {steps} {sampler} steps, guidance, batch {batch}"
    return compare(
        name,
        "" if theirs is None else "diffusers DiTPipeline fp32",
        device,
        f"{precision} compiled",
        "images/s",
        batch,
        *times,
    )


def main() -> None:
    """Run what the flags say."""
    given = arguments(__doc__ or "").parse_args()
    device = torch.device(given.device)
    if device.type == "cuda":
        jobs = [("XL/2", "ddpm", steps, batch, "bf16", peer) for steps, batch, peer in ON_GPU]
        rounds = 1 if given.quick else 2
    else:
        steps = 4 if given.quick else 20
        jobs = [("S/2", "ddim", steps, 4, precision, True) for precision in ("bf16", "fp32")]
        rounds = 3 if given.quick else 5
    show("Sampling with guidance", (row(*job, device, rounds) for job in jobs), given.json)


if __name__ == "__main__":
    main()
