"""What a network is conditioned on besides the noised sample and the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

NULL = -1  # "no class" in a tensor of labels


@dataclass(frozen=True)
class Entry:
    """One named part of a condition, for a batch of N.

    Attributes:
        value: first axis N: labels (N,), text features (N, S, E), channels (N, C, *size), a noise level (N,).
        present: bool (N,); where it is false the network uses the learned null of this entry.
        mask: bool (N, S), the valid positions of a sequence; None where all are valid.
        guided: removed by ``drop`` and ``null``. Structural entries (a low-resolution input, its noise level) stay.
    """

    value: Tensor
    present: Tensor
    mask: Tensor | None = None
    guided: bool = True

    def map(self, function: Callable[[Tensor], Tensor]) -> Entry:
        """Apply a function to each of the tensors."""
        mask = None if self.mask is None else function(self.mask)
        return replace(self, value=function(self.value), present=function(self.present), mask=mask)

    def cat(self, other: Entry) -> Entry:
        """This batch followed by another; the shorter of two sequences is padded."""
        if self.mask is None or other.mask is None:
            return replace(
                self, value=torch.cat([self.value, other.value]), present=torch.cat([self.present, other.present])
            )
        length = max(self.mask.shape[1], other.mask.shape[1])
        first, second = self._padded(length), other._padded(length)
        return replace(
            self,
            value=torch.cat([first.value, second.value]),
            present=torch.cat([first.present, second.present]),
            mask=torch.cat([first.mask, second.mask]),  # type: ignore[list-item]
        )

    def _padded(self, length: int) -> Entry:
        assert self.mask is not None
        more = length - self.mask.shape[1]
        value = F.pad(self.value, (0, 0) * (self.value.ndim - 2) + (0, more))
        return replace(self, value=value, mask=F.pad(self.mask, (0, more)))


@dataclass(frozen=True)
class Condition:
    """Named entries with one batch axis; empty for an unconditional network.

    Attributes:
        entries: by the names that the network's spec uses.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def of_labels(cls, labels: Tensor) -> Condition:
        """Class labels int64 (N,): 0 .. classes - 1, or ``NULL``."""
        return cls({"labels": Entry(labels, labels >= 0)})

    @classmethod
    def of_text(cls, value: Tensor, mask: Tensor) -> Condition:
        """Encoded texts: ids (N, S) or features (N, S, E), and their mask (N, S); a text without tokens is absent."""
        return cls({"text": Entry(value, mask.any(dim=1), mask)})

    @property
    def count(self) -> int:
        """Samples of the batch; 0 without entries."""
        return next((len(entry.present) for entry in self.entries.values()), 0)

    def _map(self, function: Callable[[Entry], Entry]) -> Condition:
        return Condition({name: function(entry) for name, entry in self.entries.items()})

    def select(self, index: Tensor | slice) -> Condition:
        """The samples at ``index`` of the batch axis."""
        return self._map(lambda entry: entry.map(lambda tensor: tensor[index]))

    def cat(self, other: Condition) -> Condition:
        """This batch followed by ``other``, whose entries have the same names."""
        if self.entries.keys() != other.entries.keys():
            raise ValueError(f"conditions of {list(self.entries)} and of {list(other.entries)} do not form one batch")
        return Condition({name: entry.cat(other.entries[name]) for name, entry in self.entries.items()})

    def drop(self, mask: Tensor) -> Condition:
        """Remove the guided entries where ``mask`` (N,) is true (Ho and Salimans 2022)."""
        return self._map(lambda entry: replace(entry, present=entry.present & ~mask) if entry.guided else entry)

    def null(self) -> Condition:
        """The same batch without its guided entries: the unconditional side of guidance."""
        return self._map(
            lambda entry: replace(entry, present=torch.zeros_like(entry.present)) if entry.guided else entry
        )

    def replace(self, **entries: Entry) -> Condition:
        """The same condition with some entries added or exchanged."""
        return Condition({**self.entries, **entries})

    def to(self, device: torch.device) -> Condition:
        """Move every tensor to a device."""
        return self._map(lambda entry: entry.map(lambda tensor: tensor.to(device)))
