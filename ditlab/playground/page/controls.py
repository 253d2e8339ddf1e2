"""Controls that tabs have in common, and how what cannot be done is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from pydantic import ValidationError

from ditlab.diffusion import SAMPLERS
from ditlab.errors import UserError
from ditlab.playground.api import Generation, Refused
from ditlab.playground.request import Busy, Cancelled, Late
from ditlab.playground.studio import Studio

NONE = -1  # in a list of labels: no label


@contextmanager
def told() -> Iterator[None]:
    """What a person can mend becomes a message on the page."""
    try:
        yield
    except (UserError, Refused, Busy, Late) as error:
        raise gr.Error(str(error), duration=8, print_exception=False, title="Not done") from None
    except Cancelled:
        raise gr.Error("stopped", duration=3, print_exception=False, title="Stopped") from None


def asked(**values: Any) -> Generation:
    """A request as the API takes it, whatever the page sent.

    Raises:
        UserError: a value is of another type or out of range.
    """
    try:
        return Generation(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def model_choice(studio: Studio) -> gr.Dropdown:
    """Which model."""
    return gr.Dropdown(studio.names, value=studio.names[0], label="Model")


def label_names(studio: Studio, name: str) -> list[tuple[str, int]]:
    """Labels of a model as a list to choose from: what they are called, and their number."""
    return [(studio.label_name(name, label), label) for label in range(studio.model(name).classes)]


def labels_choice(studio: Studio) -> gr.Dropdown:
    """Any labels."""
    choices = label_names(studio, studio.names[0])
    return gr.Dropdown(
        choices,
        value=[],
        multiselect=True,
        label="Labels",
        info="given out in turn; none: every class",
        visible=bool(choices),
    )


def label_choice(studio: Studio) -> gr.Dropdown:
    """One label."""
    choices = label_names(studio, studio.names[0])
    return gr.Dropdown(choices or [("none", NONE)], value=0 if choices else NONE, label="Label", visible=bool(choices))


def other_labels(studio: Studio, name: str) -> dict[str, Any]:
    """The choice of any labels when the model is another."""
    choices = label_names(studio, name)
    return gr.update(choices=choices, value=[], visible=bool(choices))


def other_label(studio: Studio, name: str) -> dict[str, Any]:
    """The choice of one label when the model is another."""
    choices = label_names(studio, name)
    return gr.update(choices=choices or [("none", NONE)], value=0 if choices else NONE, visible=bool(choices))


def seed_choice() -> gr.Number:
    """A seed."""
    return gr.Number(0, label="Seed", precision=0, minimum=0, info="the same again gives the same images")


def sampler_choice(studio: Studio) -> gr.Dropdown:
    """A sampler."""
    return gr.Dropdown(list(SAMPLERS), value=studio.model(studio.names[0]).defaults.sampler, label="Sampler")


def steps_choice(studio: Studio) -> gr.Slider:
    """A number of steps."""
    usual, most = studio.model(studio.names[0]).defaults.steps, studio.served.limits.steps
    return gr.Slider(1, most, value=min(usual, most), step=1, label="Steps")


def wanted(labels: Sequence[int] | None) -> list[int | str] | None:
    """Labels as the API takes them."""
    return [label for label in labels if label != NONE] or None if labels else None


def plain(text: object) -> str:
    """Words of a file or a label without what Markdown would make of them."""
    return str(text).translate(str.maketrans({"|": "/", "<": "(", ">": ")", "\n": " ", "`": "'", "[": "(", "]": ")"}))
