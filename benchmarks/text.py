"""Text: training speed of the blocks of text against PixArt's, and of encoded captions against captions encoded in the step.

    python benchmarks/text.py [--quick] [--json benchmarks/results/text-cpu.json]

The DiT with its text in one stream is compared with diffusers' PixArtTransformer2DModel of equal depth, width, heads, patches
and text tokens, forward and backward in the same precision. Then the same network is trained with the features of a frozen
encoder, random weights of MiniLM's shape, once read from memory and once encoded in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import Row, arguments, compare, in_turn, show
from torch import Tensor, nn

from ditlab.models import Condition, DiT, DiTConfig, LatentSpec, NetworkSpec
from ditlab.models.condition_embedding import TextConfig
from ditlab.runtime.device import cpu_has_bf16

FEATURES, TOKENS = 384, 32  # of MiniLM; tokens of a caption
LATENT = LatentSpec(4, (32, 32))  # 256 tokens of patch 2
WAYS = ("adaln-zero", "adaln-in-context", "adaln-cross-attention", "joint")


def pixart(config: DiTConfig) -> nn.Module:
    """The transformer of diffusers with the sizes of a DiT's configuration."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.width // config.heads, in_channels=4, out_channels=4,
        num_layers=config.depth, cross_attention_dim=config.width, sample_size=32, patch_size=config.patch,
        caption_channels=FEATURES, use_additional_conditions=False,
    )  # fmt: skip


def text_encoder() -> nn.Module:
    """A BERT of MiniLM-L6's shape with random weights, frozen."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30522, hidden_size=FEATURES, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


class Step:
    """Forward and backward of one batch; with an encoder, the captions' ids are encoded first."""

    def __init__(self, network: nn.Module, batch: int, device: torch.device, precision: str, encoder: Any = None):
        self.network, self.device, self.bf16 = network.train().to(device), device, precision == "bf16"
        self.encoder = None if encoder is None else encoder.to(device)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 4, 32, 32, generator=generator).to(device)
        self.t = torch.randint(1000, (batch,), generator=generator).to(device)
        self.text = torch.randn(batch, TOKENS, FEATURES, generator=generator).to(device)
        self.ids = torch.randint(30522, (batch, TOKENS), generator=generator).to(device)
        self.mask = (torch.arange(TOKENS) < torch.randint(8, TOKENS + 1, (batch, 1), generator=generator)).to(device)

    def output(self, text: Tensor) -> Tensor:
        """The prediction under features (N, S, E)."""
        if isinstance(self.network, DiT):
            return self.network(self.x, self.t, Condition.of_text(text, self.mask))
        return self.network(
            self.x, encoder_hidden_states=text, timestep=self.t, encoder_attention_mask=self.mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample  # fmt: skip

    def __call__(self) -> None:
        """Once."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            text = self.text
            if self.encoder is not None:
                text = self.encoder(input_ids=self.ids, attention_mask=self.mask.long()).last_hidden_state
            output = self.output(text)
        output.float().square().mean().backward()
        self.network.zero_grad(set_to_none=True)


def main() -> None:
    """Run what the flags say."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=0)
    given = parser.parse_args()
    device = torch.device(given.device)
    gpu = device.type == "cuda"
    batch = given.batch or (64 if gpu else 16)
    rounds, repeats = (2, 1) if given.quick else (5, 10 if gpu else 1)
    precisions = ("bf16",) if gpu else ("bf16", "fp32") if cpu_has_bf16() else ("fp32",)
    precisions = precisions[:1] if given.quick else precisions
    size = {"depth": 12, "width": 384, "heads": 6}  # DiT-S
    spec = NetworkSpec(LATENT, (TextConfig(features=FEATURES),))

    def measured() -> Iterator[Row]:
        for block in WAYS[1:2] if given.quick else WAYS:
            config = DiTConfig(block=block, patch=2, **size)  # type: ignore[arg-type]
            for precision in precisions:
                mine, theirs = (Step(each, batch, device, precision) for each in (DiT(config, spec), pixart(config)))
                times = in_turn(mine, theirs, device, rounds, repeats)
                name = f"DiT-S/2 {block}, {TOKENS} text tokens, forward and backward, batch {batch}"
                yield compare(name, f"diffusers PixArt {precision}", device, precision, "images/s", batch, *times)
        config = DiTConfig(block="adaln-in-context", patch=2, **size)  # type: ignore[arg-type]
        cached, encoded = (
            Step(DiT(config, spec), batch, device, precisions[0], each) for each in (None, text_encoder())
        )
        times = in_turn(cached, encoded, device, rounds, repeats)
        name = f"DiT-S/2 adaln-in-context, features cached, batch {batch}"
        yield compare(name, "MiniLM's shape in the step", device, precisions[0], "images/s", batch, *times)

    show("Text: 32x32x4 latents", measured(), given.json)


if __name__ == "__main__":
    main()
