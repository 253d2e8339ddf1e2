"""The page's access to models: generation with previews, checkpoints of a run, and the equivalent shell command."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch

from ditlab.diffusion import State
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.pipelines.labels import matching_labels
from ditlab.playground.batcher import Batcher
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.request import Request
from ditlab.playground.schema import GenerationRequest
from ditlab.playground.served import ModelServer
from ditlab.train.checkpoint import existing, load_average

# The scale of models whose own default is none. Of the scales measured on digits, precision is highest at 2 (docs/tour.md,
# docs/log.md). On fashion, samples outside the real images are 31% without guidance, 22% at 1.5 and 2; real ones are 19%.
GUIDANCE = 2.0
PREVIEW_SHARE = 0.25  # of the time, at most, is spent on decoding previews
MIN_INTERVAL = 0.08  # seconds between two previews
FRAMES = 10  # of a filmstrip
MAX_CLASS_IMAGES = 100  # a model with more classes has no class images
MAX_COMMAND = 2000  # characters of the prompts in a command
ROW_NAME = 24  # characters of a prompt next to a row of images
CLASS_IMAGE_STEPS = 25  # sampling steps of a class image, at most


@dataclass(frozen=True)
class Preview:
    """The images of a request, while they are denoised or finished.

    Attributes:
        images: uint8 (N, H, W, C).
        step: finished sampling steps.
        steps: all sampling steps.
        states: of the first image, at some of the steps; empty unless finished.
    """

    images: np.ndarray
    step: int
    steps: int
    states: tuple[State, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether these are the final images."""
        return bool(self.states)


class Backend:
    """The models that a page shows.

    Args:
        server: the models with their batchers and limits.
        sources: path, shipped name or hub id of each model, by name.
        runs: the folder of runs and studies.
    """

    def __init__(self, server: ModelServer, sources: dict[str, str], runs: Path):
        self.server, self.sources, self.runs = server, sources, runs
        self._class_images: dict[str, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self.server.models)

    def model(self, name: str) -> Pipeline:
        """A model by name.

        Raises:
            UserError: unknown model.
        """
        if name not in self.server.models:
            raise UserError(f"unknown model {name[:100]!r}; available: {', '.join(self.names)}")
        return self.server.models[name]

    def guidance(self, name: str) -> float:
        """The guidance scale that the page starts with: the model's default, or GUIDANCE where that is off.

        The command line and the API keep the model's default, whose samples vary more.
        """
        model = self.model(name)
        scale = model.defaults.guidance.scale
        return GUIDANCE if scale == 1 and model.guidable else scale

    def max_steps(self, name: str) -> int:
        """The most sampling steps: the server's limit, or fewer if the model's schedule has fewer."""
        return min(self.server.limits.steps, self.model(name).denoiser.schedule.steps or self.server.limits.steps)

    def build_request(self, body: GenerationRequest) -> Request:
        """A request within the server's limits.

        Raises:
            RequestError: the request exceeds a limit or does not fit the model.
        """
        return self.server.build_request(body)[2]

    def submit(self, name: str, request: Request) -> Request:
        """Queue a request and return it; ``request.images`` is the future of its result.

        Raises:
            UserError: the request cannot be generated.
            QueueFull: retry later.
        """
        return self.server.batchers[name].submit(request)

    def generate(self, name: str, request: Request, model: Pipeline | None = None) -> np.ndarray:
        """Generate images uint8 (N, H, W, C) with a served model, or with another checkpoint of it.

        Raises:
            UserError, QueueFull, Cancelled, TimedOut: see Batcher.
        """
        if model is None:
            return self.submit(name, request).images.result()
        batcher = Batcher(model, max(len(request.labels), 1), 1, request.config.bf16_on(model.device))
        try:
            return batcher.submit(request).images.result()
        finally:
            batcher.close()

    def generate_with_previews(self, name: str, request: Request) -> Iterator[Preview]:
        """Generate images, with previews between the steps; cancels the request when the iterator is closed.

        Raises:
            UserError, QueueFull, Cancelled, TimedOut: see Batcher.
        """
        model, steps = self.model(name), request.config.steps
        recorder = request.on_step = _StepRecorder(steps)
        try:
            self.submit(name, request)
            shown, pause = 0, MIN_INTERVAL
            while not wait([request.images], pause).done:
                if recorder.step == shown:
                    continue
                started, shown = time.monotonic(), recorder.step
                yield Preview(run_on_compute_thread(model.decode, recorder.latest), shown, steps)
                pause = max(MIN_INTERVAL, (time.monotonic() - started) / PREVIEW_SHARE)
            yield Preview(request.images.result(), steps, steps, tuple(recorder.states))
        finally:
            request.cancel()

    def generate_latent(self, name: str, request: Request) -> tuple[torch.Tensor, np.ndarray]:
        """The latent (1, c, h, w) and the image uint8 (H, W, C) of a request for one image.

        Raises:
            UserError, QueueFull, Cancelled, TimedOut: see Batcher.
        """
        recorder = request.on_step = _StepRecorder(request.config.steps)
        images = self.generate(name, request)
        return recorder.latest.clone(), images[0]

    def label_name(self, name: str, label: int) -> str:
        """The name of a class; empty for an unconditional image."""
        names = self.model(name).names
        return "" if label < 0 else names[label] if names else str(label)

    def row_names(self, name: str, request: Request) -> list[str]:
        """A name for each image of a request: its class, its prompt, shortened, or its number."""
        if request.prompts:
            return [shorten(" ".join(prompt.split()), ROW_NAME, placeholder=" ...") for prompt in request.captions]
        return [self.label_name(name, label) or f"image {k}" for k, label in enumerate(request.labels.tolist())]

    def settings(self, name: str, request: Request) -> dict[str, object]:
        """All settings that the images depend on, for the text of a PNG."""
        labels = request.labels.tolist()
        named = {"labels": [self.label_name(name, label) for label in labels], "label indices": labels}
        named = {"prompts": request.captions, "notes": request.notes} if request.prompts else named
        return {"model": self.sources[name], **named, "seed": request.seed, **asdict(request.config)}

    def command(self, name: str, request: Request) -> str:
        """The shell command that generates the same images; empty for prompts that a command line cannot hold."""
        model, config = self.model(name), request.config
        defaults, count = model.defaults, len(request.labels)
        words = ["ditlab", "sample", self.sources[name], "--count", str(count), "--seed", str(request.seed)]
        texts = [*request.prompts, config.negative]
        if not all(text.isprintable() and text[:1] != "-" for text in texts) or sum(map(len, texts)) > MAX_COMMAND:
            return ""
        if request.prompts:
            words += [] if request.prompts == model.prompts[:count] else ["--prompt", *request.prompts]
        else:
            words += self._label_words(name, list(dict.fromkeys(request.labels.tolist())), count)
        words += ["--negative", config.negative] if config.negative != defaults.negative else []
        values = {
            "guidance": (config.guidance.scale, defaults.guidance.scale),
            "guidance-low": (config.guidance.low, defaults.guidance.low),
            "guidance-high": (config.guidance.high, defaults.guidance.high),
            "sampler": (config.sampler, defaults.sampler),
            "steps": (config.steps, defaults.steps),
        }
        for flag, (value, default) in values.items():
            if value != default:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    def _label_words(self, name: str, labels: list[int], count: int) -> list[str]:
        """The flag of different labels, by name where that is unique; none for the command's own choice."""
        model = self.model(name)
        if labels[0] < 0 or labels == list(range(model.classes))[:count]:
            return []
        names = [self.label_name(name, label) for label in labels]
        unique = all(
            "," not in word and matching_labels(word, model.names) in ([label], [])
            for word, label in zip(names, labels, strict=True)
        )
        return ["--labels", ",".join(names if unique else map(str, labels))]

    def class_images(self, name: str) -> list[np.ndarray]:
        """One image uint8 (H, W, C) per class, generated once; none for a model without classes, or with too many.

        Raises:
            UserError, QueueFull, TimedOut: see Batcher.
        """
        model = self.model(name)
        if not 0 < model.classes <= MAX_CLASS_IMAGES:
            return []
        with self._lock:
            if name not in self._class_images:
                batches = model.label_indices(None, model.classes).split(self.server.batchers[name].max_images)
                limits = self.server.limits
                guidance = replace(model.defaults.guidance, scale=self.guidance(name))
                steps = min(model.defaults.steps, limits.steps, CLASS_IMAGE_STEPS)
                config = replace(model.defaults, steps=steps, guidance=guidance)
                images = [self.generate(name, Request(batch, 0, config, limits.timeout)) for batch in batches]
                self._class_images[name] = list(np.concatenate(images))
        return self._class_images[name]

    def checkpoints(self, name: str) -> dict[int, Path]:
        """The checkpoints of a model's run, by the number of images trained on."""
        source = Path(self.sources[name])
        folder = source.parent if source.suffix == ".safetensors" else source
        return {int(path.name): path for path in existing(folder / "checkpoints") if path.name.isdecimal()}

    def load_checkpoint(self, name: str, images: int) -> Pipeline:
        """A model with the EMA weights of an earlier checkpoint of its run.

        Raises:
            UserError: no such checkpoint, or it cannot be read.
        """
        checkpoints = self.checkpoints(name)
        if images not in checkpoints:
            available = ", ".join(f"{count:,}" for count in checkpoints) or "none"
            raise UserError(f"{name} has no checkpoint at {images:,} images; available: {available}")

        def load() -> Pipeline:
            model = Pipeline.load(self.sources[name])
            load_average(checkpoints[images], model.network)
            return model.to(self.model(name).device)

        return run_on_compute_thread(load)


class _StepRecorder:
    """Called with the state after each step: keeps the latest latents, and states of the first image for a filmstrip."""

    def __init__(self, steps: int):
        self.frames = set(np.linspace(0, steps - 1, FRAMES - 1).round().astype(int).tolist())
        self.step, self.latest = 0, torch.empty(0)
        self.states: list[State] = []

    def __call__(self, state: State) -> None:
        if self.step in self.frames:
            x_t, x0, x_s = (tensor[:1].clone() for tensor in (state.x_t, state.x0, state.x_s))
            self.states.append(State(x_t, x0, x_s, state.t, state.s))
        self.latest, self.step = state.x_s, self.step + 1
