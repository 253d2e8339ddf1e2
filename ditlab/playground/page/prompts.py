"""Components for models that take prompts; hidden for models of labels."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import shorten
from typing import Any

import gradio as gr

from ditlab.playground.backend import Backend
from ditlab.playground.page import controls

EXAMPLES = 16  # prompts of a model


def chosen_prompts(backend: Backend, model: str, text: str | None) -> list[str] | None:
    """The prompts of a text, one a line, or the model's examples; None for a model of labels."""
    chosen = backend.model(model)
    if chosen.text is None:
        return None
    return [line.strip() for line in str(text or "").split("\n") if line.strip()] or list(chosen.prompts) or [""]


def prompt_box(backend: Backend, model: gr.Dropdown, title: str = "Prompts", lines: int = 3) -> gr.Textbox:
    """The prompts of a model that takes prompts, one a line; a single prompt with ``lines`` 1. Hidden for models of labels."""

    def options(name: str) -> dict[str, Any]:
        chosen = backend.model(name)
        first = {"value": next(iter(chosen.prompts), "")} if lines == 1 else {}
        return {"visible": chosen.text is not None, **first}

    info = "one a line, repeated in order; empty: the examples" if lines > 1 else None
    box = gr.Textbox(
        **options(backend.names[0]),
        label=title,
        info=info,
        lines=lines,
        max_lines=max(lines, 8),
        buttons=[],
        scale=2,
        min_width=300,
    )
    model.change(controls.show_errors()(lambda name: gr.update(**options(name))), model, box, **controls.QUIET)
    return box


def example_prompts(backend: Backend, model: gr.Dropdown, box: gr.Textbox) -> None:
    """The model's example prompts; a click writes one into the box."""

    def options(name: str) -> dict[str, Any]:
        prompts = backend.model(name).prompts[:EXAMPLES]
        return {"samples": [[shorten(prompt, 100)] for prompt in prompts], "visible": bool(prompts)}

    @controls.show_errors()
    def choose(name: str, index: int) -> str:
        return backend.model(name).prompts[index]

    examples = gr.Dataset(
        components=[gr.Textbox(render=False)], type="index", layout="gallery", label="Examples: click to use",
        samples_per_page=EXAMPLES, elem_id="examples", **options(backend.names[0]),
    )  # fmt: skip
    examples.click(choose, [model, examples], box, **controls.QUIET)
    model.change(controls.show_errors()(lambda name: gr.Dataset(**options(name))), model, examples, **controls.QUIET)


def negative_box(backend: Backend, model: gr.Dropdown) -> gr.Textbox:
    """A negative prompt, for a model that takes prompts and can be guided."""

    def visible(name: str) -> bool:
        return backend.model(name).text is not None and backend.model(name).guidable

    info = "guided away from; needs a guidance scale other than 1"
    box = gr.Textbox(label="Negative prompt", info=info, visible=visible(backend.names[0]), max_lines=3, buttons=[])
    model.change(controls.show_errors()(lambda name: gr.update(visible=visible(name))), model, box, **controls.QUIET)
    return box


def notes_box(elem_id: str) -> gr.Textbox:
    """What of the prompts has no effect; a text box, which interprets no markup."""
    return gr.Textbox(label="Notes on the prompts", visible=False, interactive=False, elem_id=elem_id, buttons=[])


def notes_update(notes: Iterable[str]) -> Any:
    """An update of ``notes_box``: the different ones of some notes."""
    text = "\n".join(dict.fromkeys(notes))
    return gr.update(value=text, visible=bool(text), lines=text.count("\n") + 1)
