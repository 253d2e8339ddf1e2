"""Conditions and times as vectors, tokens and channels of the network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.errors import UserError, nearest
from ditlab.models.condition import Condition, Entry
from ditlab.models.spec import LatentSpec, NetworkSpec


class Conditioning(NamedTuple):
    """An embedded condition.

    Attributes:
        vectors: one (N, D) a name, in the order of the network's spec.
        tokens: (N, S, D), or None.
        mask: bool (N, S), the valid tokens; None where all are.
        channels: (N, C', *size) to concatenate to the sample, or None.
        blocks: of networks with an embedding in each block, those of the second block and on.
    """

    vectors: dict[str, Tensor]
    tokens: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None
    blocks: tuple[Conditioning, ...] = ()

    def add_vectors(self, time: Tensor) -> Tensor:
        """The sum of the time embedding (N, G, D) and every vector, (N, G, D)."""
        for vector in self.vectors.values():
            time = time + vector[:, None]
        return time

    def as_tokens(self, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """Time embedding (N, G, D), vectors and tokens as one sequence (N, S', D), and its mask."""
        parts = [time, *(vector[:, None] for vector in self.vectors.values())]
        if self.tokens is None:
            return torch.cat(parts, dim=1), None
        sequence = torch.cat([*parts, self.tokens], dim=1)
        if self.mask is None:
            return sequence, None
        before = sequence.shape[1] - self.mask.shape[1]
        return sequence, torch.cat([self.mask.new_ones(len(self.mask), before), self.mask], dim=1)


class TimestepEmbedding(nn.Module):
    """Network times (N,) or (N, F) -> (N, G, width), G = 1 or F: 256 sinusoids, Linear, SiLU, Linear (DiT, section 3.2)."""

    frequencies: Tensor

    def __init__(self, width: int, frequency_width: int = 256, max_period: float = 10000.0):
        super().__init__()
        half = frequency_width // 2
        frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(frequency_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed network times: 0 .. 999 for DDPM; fractions are fine."""
        groups = t[:, None] if t.ndim == 1 else t  # (N, G)
        angles = groups[..., None].float() * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


@dataclass(frozen=True, kw_only=True)
class ConditionConfig(ABC):
    """A condition of a network; ``name`` is that of the ``Condition``'s entry and of the embedding module."""

    kind: ClassVar[str]
    sequence: ClassVar[bool] = False  # embedded as tokens
    name: str
    channels: int = 0
    """Channels it adds to the sample."""
    classes: int = 0
    """Number of classes of a label; 0 for an unconditional network, which has only the null row."""
    null: bool = True
    """It has a learned null, which guidance needs."""

    @abstractmethod
    def build(self, width: int, pooled: bool = True) -> nn.Module | None:
        """The embedding, called with an ``Entry``; None for channels, which need none.

        Without ``pooled``, a sequence is embedded as tokens only, not also as a vector.
        """

    @abstractmethod
    def blank(self, count: int, latent: LatentSpec) -> Tensor:
        """A value of ``count`` samples, of the shape and type that the network expects."""


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(ConditionConfig):
    """Class labels, embedded as a vector; the null is one more row of the table."""

    kind: ClassVar[str] = "labels"
    name: str = "labels"

    def build(self, width: int, pooled: bool = True) -> LabelEmbedding:  # noqa: D102
        return LabelEmbedding(self.classes, width, self.null)

    def blank(self, count: int, latent: LatentSpec) -> Tensor:  # noqa: D102
        return torch.zeros(count, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class TextConfig(ConditionConfig):
    """A text, as tokens and their mean as a vector: features of a frozen encoder, or ids whose embedding is trained."""

    kind: ClassVar[str] = "text"
    sequence: ClassVar[bool] = True
    name: str = "text"
    features: int = 0
    """Width of the encoder's features; 0 for ids."""
    vocabulary: int = 0
    """Number of ids; 0 for features."""
    frozen: bool = False
    """The embeddings of ids keep their random values."""
    tokens: int = 16
    """Tokens of a text when cost is counted; the network accepts any number."""
    projection: Literal["linear", "mlp"] = "linear"
    """Features to tokens: a Linear, or PixArt-alpha's Linear, GELU, Linear."""
    null_tokens: int = 1
    """Learned tokens of an absent text."""

    def build(self, width: int, pooled: bool = True) -> TextEmbedding:  # noqa: D102
        return TextEmbedding(self, width, pooled)

    def blank(self, count: int, latent: LatentSpec) -> Tensor:  # noqa: D102
        if self.vocabulary:
            return torch.zeros(count, self.tokens, dtype=torch.int64)
        return torch.zeros(count, self.tokens, self.features)


@dataclass(frozen=True, kw_only=True)
class ChannelsConfig(ConditionConfig):
    """A picture of the sample's size, concatenated to its channels: the low-resolution input of a cascade."""

    kind: ClassVar[str] = "channels"
    name: str = "low"
    channels: int = 3

    def build(self, width: int, pooled: bool = True) -> None:  # noqa: D102 - the patch embedding has columns for these channels
        return

    def blank(self, count: int, latent: LatentSpec) -> Tensor:  # noqa: D102
        return torch.zeros(count, self.channels, *latent.size)


CONDITIONS: dict[str, type[ConditionConfig]] = {each.kind: each for each in (LabelsConfig, TextConfig, ChannelsConfig)}


def labelled(
    latent: LatentSpec, classes: int, *, null: bool = True, learned_variance: bool = False, interval: bool = False
) -> NetworkSpec:
    """The spec of a network conditioned on class labels; unconditional with 0 classes."""
    return NetworkSpec(latent, (LabelsConfig(classes=classes, null=null or not classes),), learned_variance, interval)


def conditions_to_record(conditions: Sequence[ConditionConfig]) -> list[dict[str, Any]]:
    """Conditions of a spec as JSON has them."""
    return [{"kind": condition.kind, **asdict(condition)} for condition in conditions]


def conditions_from_record(record: Sequence[dict[str, Any]]) -> tuple[ConditionConfig, ...]:
    """Back from ``conditions_to_record``.

    Raises:
        UserError: an unknown kind of condition.
        TypeError: fields it does not have.
    """
    found = []
    for each in record:
        values = dict(each)
        kind = str(values.pop("kind", ""))
        if kind not in CONDITIONS:
            raise UserError(f"unknown kind of condition {kind!r}; {nearest(kind, CONDITIONS)}")
        found.append(CONDITIONS[kind](**values))
    return tuple(found)


class LabelEmbedding(nn.Module):
    """Labels (N,) -> (N, width) from a table of ``classes`` rows and, with ``null``, one more for no class."""

    def __init__(self, classes: int, width: int, null: bool = True):
        super().__init__()
        self.classes, self.null = classes, null
        self.table = nn.Embedding(classes + int(null), width)

    def forward(self, entry: Entry) -> Tensor:
        """Look up labels int64 (N,); absent ones are the row ``classes``."""
        return self.table(torch.where(entry.present, entry.value, self.classes))


class TextEmbedding(nn.Module):
    """Ids (N, S) or features (N, S, E) -> tokens (N, S, width) and, with ``pooled``, the mean of the valid ones (N, width).

    Features are projected. Ids are looked up and get sine-cosine positions, since a row of a table knows nothing of its
    place; the mean of these tokens is the same for words in any order. An absent or empty text is the learned null, one
    token unless the config says more, so that no row of the mask is empty.
    """

    def __init__(self, config: TextConfig, width: int, pooled: bool = True):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(config.vocabulary, width) if config.vocabulary else None
        if self.table is not None and config.frozen:
            self.table.requires_grad_(False)
        self.projection: nn.Module | None = None
        if config.features and config.projection == "linear":
            self.projection = nn.Linear(config.features, width)
        elif config.features:
            first, second = nn.Linear(config.features, width), nn.Linear(width, width)
            self.projection = nn.Sequential(first, nn.GELU(approximate="tanh"), second)
        self.pooled = nn.Linear(width, width) if pooled else None
        self.null = nn.Parameter(
            torch.zeros(width) if config.null_tokens == 1 else torch.zeros(config.null_tokens, width)
        )

    def forward(self, entry: Entry) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (N, S, width), padded to those of the null; their mask (N, S); and the pooled vector (N, width) or None."""
        mask = entry.value.new_ones(entry.value.shape[:2], dtype=torch.bool) if entry.mask is None else entry.mask
        present = entry.present & mask.any(dim=1)
        null = self.null.view(-1, self.null.shape[-1])  # (K, width)
        length = max(mask.shape[1], len(null))
        tokens = F.pad(self._tokens(entry.value), (0, 0, 0, length - mask.shape[1]))
        mask = F.pad(mask, (0, length - mask.shape[1]))
        mask = torch.where(present[:, None], mask, torch.arange(length, device=mask.device) < len(null))
        tokens = torch.where(present[:, None, None], tokens, F.pad(null, (0, 0, 0, length - len(null))))
        if self.pooled is None:
            return tokens, mask, None
        weights = mask / mask.sum(dim=1, keepdim=True)
        return tokens, mask, self.pooled((tokens * weights[..., None]).sum(dim=1))

    def _tokens(self, value: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(value.to(self.null.dtype))  # cached features are float16
        assert self.table is not None
        places = torch.arange(value.shape[1], device=value.device)[:, None]
        half = self.width // 2
        angles = places * 10000.0 ** -(torch.arange(half, device=value.device) / half)
        return self.table(value) + torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.ModuleDict):
    """The embeddings of a network's conditions, by name."""

    def __init__(self, conditions: Sequence[ConditionConfig], width: int, pooled: bool = True):
        modules = {condition.name: condition.build(width, pooled) for condition in conditions}
        super().__init__({name: module for name, module in modules.items() if module is not None})
        self.names = tuple(modules)

    def forward(self, condition: Condition) -> Conditioning:
        """Embed every entry.

        Raises:
            ValueError: the condition's entries are not those of the network.
        """
        if set(condition.entries) != set(self.names):
            raise ValueError(f"a network of conditions {list(self.names)} was given {list(condition.entries)}")
        vectors: dict[str, Tensor] = {}
        tokens, mask, channels = None, None, list[Tensor]()
        for name in self.names:
            entry = condition.entries[name]
            if name not in self:
                channels.append(entry.value * entry.present.view(-1, *[1] * (entry.value.ndim - 1)))
                continue
            embedded = self[name](entry)
            if isinstance(embedded, tuple):
                tokens, mask, embedded = embedded
            if embedded is not None:
                vectors[name] = embedded
        return Conditioning(vectors, tokens, mask, torch.cat(channels, dim=1) if channels else None)


class BlockEmbedding(nn.Module):
    """The timestep and condition embeddings of one block, for networks whose blocks do not share them."""

    def __init__(self, conditions: Sequence[ConditionConfig], width: int):
        super().__init__()
        self.timestep_embedding = TimestepEmbedding(width)
        self.condition_embedding = ConditionEmbedding(conditions, width)
