"""A trained model: network, process, autoencoder, class names and sampling defaults, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import ClampedX0, ClassifierFreeGuidance, Denoiser, DiffusionConfig, Guidance
from ditlab.encoders import Autoencoder
from ditlab.errors import UserError
from ditlab.models import NULL, Network
from ditlab.models.network import describe
from ditlab.pipelines import model_file
from ditlab.pipelines.labels import find_label
from ditlab.pipelines.sampling import SampleConfig

LABEL_STREAM = 2**31  # random stream of labels: noise has those of the images, 0, 1, ...
Labels = Sequence[str | int] | str | int | None
Size = tuple[int, int]


class Model:
    """A trained diffusion network, its process and its autoencoder: what a ``Pipeline`` samples.

    Attributes:
        denoiser: network, schedule and target.
        autoencoder: from latents to pixels.
        names: of the classes, in label order; empty where they have none.
        defaults: how it is sampled by default.
        facts: provenance, as the images it was trained on.
        counts: training images of each class, in label order; empty where they are not known.
        path: where it was loaded from; None for a model that was built in memory.
    """

    path: Path | None = None

    def __init__(
        self, network: Network, diffusion: DiffusionConfig, autoencoder: Autoencoder, names: Sequence[str] = (),
        defaults: SampleConfig | None = None, facts: dict[str, object] | None = None, counts: Sequence[int] = (),
    ):  # fmt: skip
        self.denoiser = Denoiser(network, diffusion.build_schedule(), diffusion.target, diffusion.learned_variance)
        self.network, self.diffusion, self.autoencoder = network, diffusion, autoencoder
        self.names, self.defaults, self.facts = tuple(names), defaults or SampleConfig(), facts or {}
        self.counts = tuple(counts)
        self._prepared, self._compiled = None, False  # by ``prepare``

    def __repr__(self) -> str:
        channels, height, width = self.pixels
        names = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        classes = f"{self.classes} classes{f' ({names})' if names else ''}" if self.classes else "no classes"
        guidance = f", guidance {self.defaults.guidance.scale:g}" if self.defaults.guidance.scale != 1 else ""
        sampled = f"{self.defaults.sampler}, {self.defaults.steps} steps{guidance}"
        images = f"images {height}x{width}x{channels}, {classes}"
        return f"{type(self).__name__}({describe(self.network.config)}; {images}; {sampled}; {self.device})"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        rows, columns = self.network.spec.latent.size[-2:]
        return rows * self.autoencoder.factor, columns * self.autoencoder.factor

    @property
    def pixels(self) -> tuple[int, int, int]:
        """An image's shape (C, H, W)."""
        return self.autoencoder.channels, *self.size

    @property
    def classes(self) -> int:
        """Number of classes; 0 if the network is unconditional."""
        return self.network.spec.classes

    @property
    def guidable(self) -> bool:
        """Whether guidance is possible: the network has classes and their null."""
        return self.classes > 0 and all(condition.null for condition in self.network.spec.conditions)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device."""
        self.denoiser.to(device)
        self.autoencoder.to(device)
        self._prepared, self._compiled = None, False
        return self

    def label(self, wanted: str | int) -> int:
        """The index of a label given by name, in any case, or by number, see ``labels.find_label``.

        Raises:
            UserError: unknown or out of range.
        """
        if not self.classes:
            raise UserError(f"label {wanted!r}: this model is unconditional, it has no labels")
        return find_label(wanted, self.names, self.classes)

    def label_indices(self, labels: Labels, count: int) -> Tensor:
        """Labels of images 0 .. count - 1, int64 (count,): those given, or every trained class, in turn."""
        chosen = self._chosen(labels) or [NULL]
        return torch.tensor([chosen[k % len(chosen)] for k in range(count)], dtype=torch.int64)

    def random_labels(self, labels: Labels, count: int, seed: int) -> list[int]:
        """Labels of images 0 .. count - 1, each drawn uniformly from those given, or from all trained classes.

        The label of image k depends on the seed alone, not on the count.
        """
        chosen = self._chosen(labels)
        random = np.random.default_rng([seed, LABEL_STREAM])
        return [chosen[k] for k in random.integers(len(chosen), size=count)] if chosen else []

    def _chosen(self, labels: Labels) -> list[int]:
        """Indices of the labels given, or of all classes; UserError for an unknown label."""
        given = [labels] if isinstance(labels, str | int) else list(labels or ())
        return [self.label(label) for label in given] or self.trained_labels

    @property
    def trained_labels(self) -> list[int]:
        """The labels of classes with training images; all where the counts are not known."""
        return [label for label in range(self.classes) if not self.counts or self.counts[label]]

    def check(self, config: SampleConfig) -> None:
        """Raise UserError where this model cannot be sampled with ``config``."""
        config.guidance.check()
        if config.guidance.scale != 1 and not self.guidable:
            why = "was trained with condition dropout 0" if self.classes else "is unconditional"
            raise UserError(
                f"guidance {config.guidance.scale} needs a null class, and this model {why}; use guidance 1"
            )

    def guidance(self, config: SampleConfig) -> Guidance:
        """The guidance of ``config``, with predicted data clamped to its range where it has one."""
        self.check(config)
        guidance: Guidance = ClassifierFreeGuidance(config.guidance)
        return guidance if self.autoencoder.bounds is None else ClampedX0(guidance, *self.autoencoder.bounds)

    def latent_shape(self, size: Size | None = None) -> tuple[int, ...]:
        """(c, h, w) of a latent of images of ``size`` (H, W), by default the training size; UserError where it does not fit."""
        if size is None or tuple(size) == self.size:
            return self.network.spec.latent.shape
        if not self.network.supports.tokens:
            raise UserError(f"this model makes images of {self.size[0]}x{self.size[1]} only; a DiT makes other sizes")
        return self.autoencoder.latent_shape(size)

    def save(self, folder: Path, half: bool = False) -> None:
        """Write ``model.safetensors`` and ``model.json``, see ``model_file.save``."""
        parts = model_file.ModelParts(
            self.network, self.diffusion, self.autoencoder, self.names, self.defaults, self.facts, self.counts
        )
        model_file.save(parts, folder, half)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run folder, a ``model.safetensors``, or a shipped model by its name, see ``model_file.load``."""
        parts = model_file.load(path)
        model = cls(
            parts.network, parts.process, parts.autoencoder, parts.names, parts.defaults, parts.facts, parts.counts
        )
        model.path = Path(path)
        return model
