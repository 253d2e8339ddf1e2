"""Other diffusion transformers with ditlab's interface: network(x, t, condition) returns (N, 2 C, H, W)."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.models import Condition, DiTConfig


class Diffusers(nn.Module):
    """diffusers' DiTTransformer2DModel."""

    name = "diffusers"

    def __init__(self, config: DiTConfig, side: int):
        super().__init__()
        from diffusers.models import DiTTransformer2DModel

        self.network = DiTTransformer2DModel(
            num_attention_heads=config.heads, attention_head_dim=config.width // config.heads, in_channels=4,
            out_channels=8, num_layers=config.depth, sample_size=side, patch_size=config.patch, num_embeds_ada_norm=1000,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Timesteps are integers here."""
        return self.network(x, timestep=t.long(), class_labels=condition.entries["labels"].value).sample


class Official(nn.Module):
    """The DiT of the paper's code, from a checkout in ``folder``."""

    name = "official"

    def __init__(self, config: DiTConfig, side: int, folder: Path):
        super().__init__()
        module = _official(folder)
        self.network = module.DiT(
            input_size=side, patch_size=config.patch, in_channels=4, hidden_size=config.width, depth=config.depth,
            num_heads=config.heads, class_dropout_prob=0.0, num_classes=1000, learn_sigma=True,
        )  # fmt: skip
        table = self.network.y_embedder.embedding_table
        if table.num_embeddings == 1000:  # without dropout it has no null row, which guidance needs
            self.network.y_embedder.embedding_table = nn.Embedding(1001, table.embedding_dim)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The call of its own training script."""
        return self.network(x, t, condition.entries["labels"].value)


def _official(folder: Path) -> types.ModuleType:
    if "timm" not in sys.modules and importlib.util.find_spec("timm") is None:
        sys.modules.update(_timm())
    spec = importlib.util.spec_from_file_location("official_dit", folder / "models.py")
    if spec is None or spec.loader is None or not (folder / "models.py").exists():
        raise SystemExit(f"no models.py in {folder}: give the folder of a checkout of the paper's code")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks there for a function's globals
    spec.loader.exec_module(module)
    return module


def _timm() -> dict[str, types.ModuleType]:
    """The three timm layers that the code imports, for machines without timm; with SDPA, as in timm."""

    class PatchEmbed(nn.Module):
        def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool = True):
            super().__init__()
            self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)
            self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x).flatten(2).transpose(1, 2)

    class Attention(nn.Module):
        def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, **_: object):
            super().__init__()
            self.heads = num_heads
            self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

        def forward(self, x: Tensor) -> Tensor:
            count, tokens, width = x.shape
            q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, tokens, width))

    class Mlp(nn.Module):
        def __init__(self, in_features: int, hidden_features: int, act_layer: type, drop: float = 0.0):
            super().__init__()
            del drop
            self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
            self.fc2 = nn.Linear(hidden_features, in_features)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.fc1(x)))

    layers = types.ModuleType("timm.models.vision_transformer")
    for layer in (PatchEmbed, Attention, Mlp):
        setattr(layers, layer.__name__, layer)
    return {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models"), layers.__name__: layers}


def available(official: Path | None) -> list[str]:
    """The peers that are installed or given."""
    found = ["diffusers"] if importlib.util.find_spec("diffusers") else []
    return [*found, "official"] if official else found


def build(name: str, config: DiTConfig, side: int, official: Path | None, device: torch.device) -> nn.Module:
    """A peer with random weights."""
    if name == "official":
        assert official is not None
        return Official(config, side, official).to(device)
    return Diffusers(config, side).to(device)
