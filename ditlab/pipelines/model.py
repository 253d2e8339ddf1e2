"""A trained model: network, process, autoencoder, class names and sampling defaults, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import ClampedX0, ClassifierFreeGuidance, Denoiser, DiffusionConfig, Guidance, samplers
from ditlab.diffusion.time_grid import TimeGrid
from ditlab.encoders import Autoencoder, TextEncoder
from ditlab.errors import UserError
from ditlab.models import NULL, Condition, Network
from ditlab.models.network import describe
from ditlab.pipelines import model_file
from ditlab.pipelines.labels import find_label, is_label, prompt_labels, split_labels
from ditlab.pipelines.sampling import SampleConfig

LABEL_STREAM = 2**31  # random stream of labels: noise has those of the images, 0, 1, ...
Labels = Sequence[str | int] | str | int | None
"""What images are conditioned on, used in turn: classes by name or number, or prompts; None or empty is the model's own."""
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
        text: the encoder of prompts; None for a model conditioned on labels or on nothing.
        prompts: captions of held-out images, which are sampled where no prompt is given.
        path: where it was loaded from; None for a model that was built in memory.
    """

    path: Path | None = None

    def __init__(
        self, network: Network, diffusion: DiffusionConfig, autoencoder: Autoencoder, names: Sequence[str] = (),
        defaults: SampleConfig | None = None, facts: dict[str, object] | None = None, counts: Sequence[int] = (),
        text: TextEncoder | None = None, prompts: Sequence[str] = (),
    ):  # fmt: skip
        self.denoiser = Denoiser(network, diffusion.build_schedule(), diffusion.target, diffusion.learned_variance)
        self.network, self.diffusion, self.autoencoder = network, diffusion, autoencoder
        self.names, self.defaults, self.facts = tuple(names), defaults or SampleConfig(), facts or {}
        self.counts, self.text, self.prompts = tuple(counts), text, tuple(prompts)
        self._prepared, self._compiled = None, False  # by ``prepare``

    def __repr__(self) -> str:
        channels, height, width = self.pixels
        names = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        classes = f"{self.classes} classes{f' ({names})' if names else ''}" if self.classes else "no classes"
        classes = classes if self.text is None else "prompts"
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
    def clips(self) -> bool:
        """Whether it makes clips of several frames, not images."""
        size = self.network.spec.latent.size
        return len(size) == 3 and size[0] > 1

    @property
    def classes(self) -> int:
        """Number of classes; 0 if the network is unconditional."""
        return self.network.spec.classes

    @property
    def guidable(self) -> bool:
        """Whether guidance is possible: the network has classes and their null."""
        conditioned = self.classes > 0 or self.text is not None
        return conditioned and all(condition.null for condition in self.network.spec.conditions)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device."""
        self.denoiser.to(device)
        self.autoencoder.to(device)
        if self.text is not None:
            self.text.to(device)
        self._prepared, self._compiled = None, False
        return self

    def label(self, wanted: str | int) -> int:
        """The index of a label given by name, synonym or number, see ``labels.find_label``.

        Raises:
            UserError: unknown, out of range, or a match of several classes.
        """
        if not self.classes:
            raise UserError(f"label {wanted!r}: this model is unconditional, it has no labels")
        return find_label(wanted, self.names, self.classes)

    def label_indices(self, labels: Labels, count: int) -> Tensor:
        """Labels of images 0 .. count - 1, int64 (count,): those given, or every trained class, in turn."""
        chosen = self._chosen(labels) or [NULL]
        return torch.tensor([chosen[k % len(chosen)] for k in range(count)], dtype=torch.int64)

    def given(self, labels: Labels, prompts: Sequence[str] | str | None) -> Labels:
        """Labels, or prompts: of a model that takes labels, the classes that they name, see ``labels.prompt_labels``.

        Raises:
            UserError: labels for a model that takes prompts, both, or a prompt that does not name one class.
        """
        if self.text is not None and labels is not None:
            raise UserError("this model takes prompts, not labels: give prompts=[...]")
        if prompts is None or self.text is not None:
            return labels if prompts is None else prompts
        texts = _texts(prompts)
        if not self.classes and any(texts):
            raise UserError("this model is unconditional, it takes no prompts")
        if labels is not None:
            raise UserError("labels and prompts exclude each other")
        return [label for text in texts for label in prompt_labels(text, self.names, self.classes)] or None

    def turn(self, labels: Labels) -> Condition:
        """The condition of each of the labels or prompts, which images use in turn: image k that of row k % count.

        Raises:
            UserError: a label that the model does not have, or a prompt that is no text.
        """
        if self.text is None:
            return Condition.of_labels(torch.tensor(self._chosen(labels) or [NULL], dtype=torch.int64))
        return Condition.of_text(*self.text.encode(self._prompts(labels)))

    def condition(self, labels: Labels, count: int) -> Condition:
        """The condition of images 0 .. count - 1; UserError as of ``turn``."""
        turn = self.turn(labels)
        return turn.select(torch.arange(count) % turn.count)

    def descriptions(self, labels: Labels, count: int) -> tuple[Tensor, tuple[str, ...]]:
        """Indices of the labels or prompts of images 0 .. count - 1, int64 (count,), and the names they are indices of."""
        if self.text is None:
            return self.label_indices(labels, count), self.names
        texts = self._prompts(labels)
        return torch.arange(count) % len(texts), texts

    def captions(self, labels: Labels, count: int) -> list[str]:
        """Prompts of images 0 .. count - 1, to be written in pictures; empty for a model of labels."""
        texts = () if self.text is None else self._prompts(labels)
        return [texts[k % len(texts)] for k in range(count)] if texts else []

    def notes(self, prompts: Sequence[str], count: int, config: SampleConfig) -> list[str]:
        """What of prompts for ``count`` images has no effect, as lines for the user: words that are not known, and the like."""
        used = [*prompts[:count], *([config.negative] if config.negative else [])]
        lines = [f"prompt {each[:60]!r}: {note}" for each in dict.fromkeys(used) for note in self._notes(each)]
        if len(prompts) > count:
            lines.append(f"the first {count} of {len(prompts)} prompts are used: there are as many images")
        if config.negative and config.guidance.scale == 1:
            lines.append("the negative prompt has no effect, since guidance 1 is off")
        return lines

    def _notes(self, prompt: str) -> list[str]:
        if self.text is not None:
            return self.text.notes(prompt)
        parts, found = split_labels(prompt, self.names), prompt_labels(prompt, self.names, self.classes)
        if not found or any(is_label(part, self.names, self.classes) for part in parts):
            return []
        name = self.names[found[0]] if self.names else str(found[0])
        return [f"class {name!r}; this model is conditioned on classes, other words have no effect"]

    def _prompts(self, prompts: Labels) -> tuple[str, ...]:
        return _texts(prompts) or self.prompts or ("",)

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
            why = "was trained with condition dropout 0" if self.classes or self.text else "is unconditional"
            raise UserError(
                f"guidance {config.guidance.scale} needs a null class, and this model {why}; use guidance 1"
            )

    def guidance(self, config: SampleConfig) -> Guidance:
        """The guidance of ``config``, with predicted data clamped to its range where it has one."""
        self.check(config)
        negative = self.condition(self.check_negative(config), 1).to(self.device) if config.negative else None
        guidance: Guidance = ClassifierFreeGuidance(config.guidance, negative)
        if self.autoencoder.bounds is None:
            return guidance
        axes = [1] * len(self.network.spec.latent.size)
        low, high = (bound.view(-1, *axes) for bound in self.autoencoder.bounds)
        return ClampedX0(guidance, low, high)

    def time_grid(self, config: SampleConfig, shape: tuple[int, ...]) -> TimeGrid | None:
        """The times of sampling latents of ``shape`` (c, h, w), shifted as in training; None for those of the sampler.

        At another size than in training the shift grows with the square root of the area (Esser et al. 2024, equation 23).

        Raises:
            UserError: an unknown sampler.
        """
        samplers.check(config.sampler, self.denoiser.schedule, config.steps)
        area, trained = (math.prod(each[1:]) for each in (shape, self.network.spec.latent.shape))
        shift = self.diffusion.shift * (area / trained) ** 0.5
        if shift == 1 or self.denoiser.schedule.steps:
            return None
        return replace(samplers.SAMPLERS[config.sampler].grid, shift=shift)

    def check_negative(self, config: SampleConfig) -> Labels:
        """The text or the class to guide away from; UserError where a model of labels does not find one class in the text."""
        given = self.given(None, config.negative) if config.negative else ()
        if self.text is None and config.negative and len(given or ()) != 1:  # type: ignore[arg-type]
            raise UserError(f"negative {config.negative[:60]!r} must name one class")
        return given

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
            self.network, self.diffusion, self.autoencoder, self.names, self.defaults, self.facts, self.counts, self.text,
            self.prompts,
        )  # fmt: skip
        model_file.save(parts, folder, half)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run folder, a ``model.safetensors``, or a shipped model by its name, see ``model_file.load``."""
        parts = model_file.load(path)
        model = cls(
            parts.network, parts.process, parts.autoencoder, parts.names, parts.defaults, parts.facts, parts.counts,
            parts.text, parts.prompts,
        )  # fmt: skip
        model.path = Path(path)
        return model


def _texts(prompts: Labels) -> tuple[str, ...]:
    """Prompts as a tuple; UserError for one that is no text."""
    given = [prompts] if isinstance(prompts, str | int) else list(prompts or ())
    for each in given:
        if not isinstance(each, str):
            raise UserError(f"prompt {each!r} is no text")
    return tuple(map(str, given))
