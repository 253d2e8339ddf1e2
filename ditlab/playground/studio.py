"""What the page does with models: requests for images, followed step by step, and models as they were earlier in a run."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ditlab.diffusion import State
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline, label_indices, to_images
from ditlab.playground.api import Generation, Served
from ditlab.playground.batcher import Batcher
from ditlab.playground.compute import computed
from ditlab.playground.request import Request
from ditlab.train.checkpoint import existing, load_average

SHARE = 0.25  # of the time that drawing previews may take
SOONEST = 0.08  # seconds from one preview to the next
FRAMES = 10  # of a filmstrip
PICTURED = 100  # classes of a model, at most, of which each has its picture
QUICK = 25  # sampling steps of these, at most


@dataclass(frozen=True)
class View:
    """Images under way, or done.

    Attributes:
        images: uint8 (N, H, W, C).
        step: steps done.
        steps: of how many.
        states: of the first image, some of the steps, for its filmstrip; when it is done.
    """

    images: np.ndarray
    step: int
    steps: int
    states: tuple[State, ...] = ()

    @property
    def done(self) -> bool:
        """Whether these are the images themselves."""
        return bool(self.states)


class Studio:
    """The models of a page.

    Args:
        served: the server's models, their batchers and limits.
        sources: of each model, by name, what it was found by.
        runs: the folder that runs and studies lie in.
    """

    def __init__(self, served: Served, sources: dict[str, str], runs: Path):
        self.served, self.sources, self.runs = served, sources, runs
        self._pictures: dict[str, list[np.ndarray]] = {}
        self._one = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return list(self.served.models)

    def model(self, name: str) -> Pipeline:
        """A model by name.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.served.models:
            raise UserError(f"no model {name[:100]!r} is served here")
        return self.served.models[name]

    def request(self, asked: Generation) -> Request:
        """A request within the server's limits.

        Raises:
            Refused: it cannot be made.
        """
        return self.served.request(asked)[2]

    def follow(self, name: str, request: Request) -> Iterator[View]:
        """Make a request's images, and show them as they become.

        Raises:
            UserError, Busy, Cancelled, Late: there are none.
        """
        with _Watch(self.model(name), request) as watch:
            self.begin(name, request)
            yield from watch.views()

    def begin(self, name: str, request: Request) -> Request:
        """Let the batcher have a request, and give it back; its ``images`` come later.

        Raises:
            UserError, Busy: it cannot.
        """
        return self.served.batchers[name].submit(request)

    def make(self, name: str, request: Request, model: Pipeline | None = None) -> np.ndarray:
        """Make a request's images, uint8 (N, H, W, C), of a model of that name as it is served, or of another of its kind.

        Raises:
            UserError, Busy, Cancelled, Late: there are none.
        """
        if model is None:
            return self.begin(name, request).images.result()
        batcher = Batcher(model, max(len(request.labels), 1), 1, request.config.bf16_on(model.device))
        try:
            return batcher.submit(request).images.result()
        finally:
            batcher.close()

    def label_name(self, name: str, label: int) -> str:
        """What a label is called; empty for none."""
        names = self.model(name).names
        return "" if label < 0 else names[label] if names else str(label)

    def latent(self, name: str, request: Request) -> tuple[torch.Tensor, np.ndarray]:
        """The latent (1, c, h, w) and the image uint8 (H, W, C) of a request for one.

        Raises:
            UserError, Busy, Cancelled, Late: there is none.
        """
        states = list[State]()
        request.watch = lambda state: states.__setitem__(slice(None), [state])
        images = self.make(name, request)
        return states[0].x.clone(), images[0]

    def settings(self, name: str, request: Request) -> dict[str, object]:
        """Everything the images depend on, for their files."""
        labels = request.labels.tolist()
        named = {"labels": [self.label_name(name, label) for label in labels], "label indices": labels}
        return {"model": self.sources[name], **named, "seed": request.seed, **asdict(request.config)}

    def command(self, name: str, request: Request) -> str:
        """What makes the same images in a terminal."""
        model, config = self.model(name), request.config
        usual = model.defaults
        labels = list(dict.fromkeys(request.labels.tolist()))
        words = [
            "ditlab",
            "sample",
            self.sources[name],
            "--count",
            str(len(request.labels)),
            "--seed",
            str(request.seed),
        ]
        if labels[0] >= 0 and labels != list(range(model.classes))[: len(request.labels)]:
            named = [self.label_name(name, label) for label in labels]
            clear = all(
                "," not in word and model.label(word) == label for word, label in zip(named, labels, strict=True)
            )
            words += ["--labels", ",".join(named if clear else map(str, labels))]
        values = {
            "guidance": (config.guidance.scale, usual.guidance.scale),
            "guidance-low": (config.guidance.low, usual.guidance.low),
            "guidance-high": (config.guidance.high, usual.guidance.high),
            "sampler": (config.sampler, usual.sampler),
            "steps": (config.steps, usual.steps),
        }
        for flag, (value, default) in values.items():
            if value != default:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    def pictures(self, name: str) -> list[np.ndarray]:
        """An image uint8 (H, W, C) of each class, made once; none where there are no classes or too many.

        Raises:
            UserError, Busy, Late: they cannot be made now.
        """
        model = self.model(name)
        if not 0 < model.classes <= PICTURED:
            return []
        with self._one:
            if name not in self._pictures:
                labels = label_indices(model, None, model.classes)
                parts = labels.split(self.served.batchers[name].most)
                steps = min(model.defaults.steps, self.served.limits.steps, QUICK)
                config = replace(model.defaults, steps=steps)
                made = [self.make(name, Request(part, 0, config, self.served.limits.seconds)) for part in parts]
                self._pictures[name] = list(np.concatenate(made))
        return self._pictures[name]

    def checkpoints(self, name: str) -> dict[int, Path]:
        """The checkpoints of a model's run, by images trained on."""
        source = Path(self.sources[name])
        folder = source.parent if source.suffix == ".safetensors" else source
        return {int(path.name): path for path in existing(folder / "checkpoints") if path.name.isdecimal()}

    def earlier(self, name: str, images: int) -> Pipeline:
        """A model as it was after so many images, as a checkpoint has it.

        Raises:
            UserError: there is no such checkpoint, or it cannot be read.
        """
        found = self.checkpoints(name)
        if images not in found:
            known = ", ".join(f"{count:,}" for count in found) or "none"
            raise UserError(f"{name} has no checkpoint after {images:,} images; there are: {known}")

        def load() -> Pipeline:
            model = Pipeline.load(self.sources[name])
            load_average(found[images], model.network)
            return model.to(self.model(name).device)

        return computed(load)


class _Watch:
    """Watches a request: keeps the newest state for a preview, and some of the first image's for a filmstrip."""

    def __init__(self, model: Pipeline, request: Request):
        self.model, self.request = model, request
        steps = request.config.steps
        self.kept = set(np.linspace(0, steps - 1, FRAMES - 1).round().astype(int).tolist())
        self.step, self.newest = 0, torch.empty(0)
        self.states: list[State] = []
        request.watch = self.extract_features

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.request.give_up()  # whoever looked has gone; nothing happens where it is done

    def extract_features(self, state: State) -> None:
        """Called in the request's thread after each step."""
        if self.step in self.kept:
            before, x0, x = (tensor[:1].clone() for tensor in (state.before, state.x0, state.x))
            self.states.append(State(before, x0, x, state.here, state.there))
        self.newest, self.step = state.x, self.step + 1

    def views(self) -> Iterator[View]:
        """The newest images now and then, and those that are done at the end."""
        steps, shown, pause = self.request.config.steps, 0, SOONEST
        while not wait([self.request.images], pause).done:
            if self.step == shown:
                continue
            began, shown = time.monotonic(), self.step
            yield View(computed(to_images, self.model, self.newest), shown, steps)
            pause = max(SOONEST, (time.monotonic() - began) / SHARE)
        yield View(self.request.images.result(), steps, steps, tuple(self.states))
