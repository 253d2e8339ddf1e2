"""The contract of text encoders: texts to token ids, whose embedding a network trains, or to features of a frozen encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from ditlab.errors import UserError


@dataclass(frozen=True)
class TextEncoderConfig:
    """How captions and prompts become inputs of the network."""

    kind: Literal["none", "tokens", "minilm", "transformers"] = "none"
    """none: the network is conditioned on labels. tokens: on captions, by embeddings of their words that it trains. minilm:
    on features of the frozen all-MiniLM-L6-v2. transformers: on those of any frozen language model at ``path``."""
    max_tokens: int = 64
    """Tokens of a text that are used; the others are dropped."""
    vocabulary: int = 8192
    """Words, at most: the most frequent ones of the captions (tokens)."""
    frozen: bool = False
    """Embeddings of words are random vectors that are not trained (tokens)."""
    path: str = ""
    """Folder or hub id of a language model, such as google/t5-v1_1-base (transformers)."""
    layers: tuple[int, ...] = ()
    """Layers whose outputs are averaged, each normalised; empty: the model's output (minilm, transformers)."""
    lowercase: bool = False
    """Put texts in lower case first, as PixArt does (minilm, transformers)."""
    cache: str = ""
    """Folder of the encoded captions; empty: RUN-captions (minilm, transformers)."""

    def check(self) -> None:
        """Raise UserError for a value that is out of range."""
        for name in ("max_tokens", "vocabulary"):
            if getattr(self, name) < 1:
                raise UserError(f"--text.{name.replace('_', '-')} {getattr(self, name)} must be 1 or more")


class EncodedText(NamedTuple):
    """Texts as tensors.

    Attributes:
        value: ids int64 (N, S), or features (N, S, E).
        mask: bool (N, S), the tokens of each text; a text without tokens has none.
    """

    value: Tensor
    mask: Tensor


class TextEncoder(ABC):
    """Turns texts into ids or features; weights, where it has any, are frozen.

    Attributes:
        kind: its name in configurations and records.
        max_tokens: tokens of a text that are used.
        vocabulary: ids are 0 to vocabulary - 1; 0 for an encoder of features.
        features: width E of the features; 0 for an encoder of ids.
    """

    kind: ClassVar[str]
    max_tokens: int
    vocabulary: int = 0
    features: int = 0

    @classmethod
    @abstractmethod
    def build(cls, config: TextEncoderConfig, captions: Sequence[str]) -> Self:
        """The encoder of a configuration, for these captions; UserError where that is impossible."""

    @classmethod
    @abstractmethod
    def restore(cls, record: Mapping[str, Any]) -> Self:
        """Back from ``record``."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> EncodedText:
        """Encode texts, padded to the longest of them and to one token at least.

        The tokens of a text do not depend on the other texts. A text without tokens is replaced by the network's null.
        """

    def to(self, device: torch.device | str) -> None:  # noqa: B027 - for encoders with weights
        """Encode on this device from now on; what is returned stays on the CPU."""

    def release(self) -> None:  # noqa: B027 - for encoders with weights
        """Free the memory of the weights; they are loaded again when they are needed."""

    def tokens(self, text: str) -> list[str]:
        """The tokens of ``encode`` of a text, each as text."""
        return [f"token {k}" for k in range(1, int(self.encode([text]).mask.sum()) + 1)]

    def notes(self, text: str) -> list[str]:
        """What of a text is not used, as lines for the user; empty where all is."""
        return []

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """As JSON, for the model file."""
