"""Components that several tabs use, and the conversion of errors into messages on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from pydantic import ValidationError

from ditlab.diffusion import SAMPLERS
from ditlab.errors import UserError
from ditlab.playground.backend import Backend
from ditlab.playground.request import Cancelled, QueueFull, Request, TimedOut
from ditlab.playground.schema import GenerationRequest, RequestError, explain

NO_LABEL = -1
MAX_SEED = 2**53 - 1  # of numbers in a browser
MAX_GUIDANCE = 10.0  # of the slider, unless a model's default is above
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # options of an event


@contextmanager
def show_errors() -> Iterator[None]:
    """Show errors that a user can correct as messages on the page."""
    try:
        yield
    except (UserError, RequestError, QueueFull, TimedOut) as error:
        raise gr.Error(str(error), duration=8, print_exception=False, title="Error") from None
    except Cancelled:
        raise gr.Error("the request was stopped", duration=3, print_exception=False, title="Stopped") from None


def build_request(
    backend: Backend, model: str, labels: Sequence[int] | None, prompts: Sequence[str] | None, seed: float | None,
    n: float, **settings: Any,
) -> Request:  # fmt: skip
    """A request from the values of the page's components, validated as the API validates them; guided by default.

    Prompts replace the labels.

    Raises:
        UserError: a value has the wrong type or is out of range.
        RequestError: the request exceeds a limit or does not fit the model.
    """
    settings["guidance"] = settings.get("guidance", backend.guidance(model)) if backend.model(model).guidable else None
    if isinstance(seed, float | int) and abs(seed) > MAX_SEED:
        raise UserError(
            f"seed {seed:.17g}: a browser rounds numbers above {MAX_SEED:,}; the command and the API do not"
        )
    indices = [label for label in labels or () if label != NO_LABEL] or None
    given: dict[str, Any] = {"labels": indices} if prompts is None else {"prompt": list(prompts)}
    try:
        body = GenerationRequest(model=model, **given, seed=seed, n=n, **settings)  # type: ignore[arg-type]
    except ValidationError as error:
        raise UserError(explain(error.errors())[0]) from None
    return backend.build_request(body)


def model_dropdown(backend: Backend) -> gr.Dropdown:
    """Selects a model."""
    return gr.Dropdown(backend.names, value=backend.names[0], label="Model")


def _labels(backend: Backend, name: str, several: bool) -> dict[str, Any]:
    choices = [(backend.label_name(name, label), label) for label in range(backend.model(name).classes)]
    if several:
        return {"choices": choices, "value": [], "visible": bool(choices)}
    first = 0 if choices else NO_LABEL
    return {"choices": choices or [("none", NO_LABEL)], "value": first, "visible": bool(choices)}


def labels_dropdown(backend: Backend, model: gr.Dropdown) -> gr.Dropdown:
    """Selects any number of the model's classes."""
    info = "repeated in order; empty: all classes"
    options = _labels(backend, backend.names[0], True)
    dropdown = gr.Dropdown(**options, multiselect=True, label="Labels", info=info)
    model.change(show_errors()(lambda name: gr.update(**_labels(backend, name, True))), model, dropdown, **QUIET)
    return dropdown


def label_dropdown(backend: Backend, model: gr.Dropdown, title: str = "Label") -> gr.Dropdown:
    """Selects one of the model's classes."""
    dropdown = gr.Dropdown(**_labels(backend, backend.names[0], False), label=title)
    model.change(show_errors()(lambda name: gr.update(**_labels(backend, name, False))), model, dropdown, **QUIET)
    return dropdown


def seed_number(value: int = 0, title: str = "Seed", info: str = "empty: random") -> gr.Number:
    """A seed; without a precision, since gradio would round 1.5, and checked in ``build_request``."""
    return gr.Number(value, label=title, info=info)


def count_slider(backend: Backend, limit: int, value: int, title: str = "Images", info: str | None = None) -> gr.Slider:
    """A number of images, within the server's limit."""
    limit = min(limit, backend.server.limits.images)
    return gr.Slider(1, limit, value=min(value, limit), step=1, label=title, info=info)


def sampling_components(backend: Backend, model: gr.Dropdown) -> tuple[gr.Slider, gr.Dropdown, gr.Slider]:
    """Guidance scale, sampler and steps, which follow the model's defaults; placed where ``render`` is called."""

    def options(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        chosen, scale, most = backend.model(name), backend.guidance(name), backend.max_steps(name)
        guidance = {"value": scale, "maximum": max(MAX_GUIDANCE, scale), "visible": chosen.guidable}
        return (
            guidance,
            {"value": chosen.defaults.sampler},
            {"value": min(chosen.defaults.steps, most), "maximum": most},
        )

    @show_errors()
    def update(name: str) -> tuple:
        return tuple(gr.update(**each) for each in options(name))

    scale, method, count = options(backend.names[0])
    guidance = gr.Slider(0, **scale, step=0.1, label="Guidance scale", info="1 disables guidance", render=False)
    sampler = gr.Dropdown(list(SAMPLERS), **method, label="Sampler", render=False)
    steps = gr.Slider(1, **count, step=1, label="Steps", render=False)
    model.change(update, model, [guidance, sampler, steps], **QUIET)
    return guidance, sampler, steps


def image_output(label: str, elem_id: str, alt_text: str, **options: Any) -> gr.Image:
    """An image that the page shows losslessly."""
    defaults = {"interactive": False, "format": "png", "type": "pil", "buttons": ["fullscreen"]}
    return gr.Image(label=label, elem_id=elem_id, alt_text=alt_text, **defaults | options)


def file_update(path: object) -> Any:
    """An update of a download button with a file."""
    return gr.update(value=str(path), interactive=True)


def code(text: str) -> str:
    """A text of one line as Markdown's code, which interprets nothing in it."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}"


def escape_markdown(text: object) -> str:
    """The name of a file or class without characters that Markdown or HTML would interpret."""
    return str(text).translate(str.maketrans({"|": "/", "<": "(", ">": ")", "\n": " ", "`": "'", "[": "(", "]": ")"}))
