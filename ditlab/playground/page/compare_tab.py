"""Compare: the same noise down, one setting across, as papers print it."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ditlab.errors import UserError
from ditlab.pipelines import grid, png
from ditlab.playground.page import controls
from ditlab.playground.request import Request
from ditlab.playground.studio import Studio
from ditlab.runtime import files

SETTINGS = ("guidance", "steps", "sampler", "checkpoint", "model")
USUAL = {"guidance": "1, 1.5, 2, 3, 4", "steps": "2, 5, 10, 25, 50", "sampler": "ddim, euler, heun, dpm-solver, ddpm"}
MOST = 8  # columns
ROWS = 8


def compare_tab(studio: Studio) -> None:
    """Controls above, the grid below."""
    with gr.Row():
        name = controls.model_choice(studio)
        setting = gr.Dropdown(list(SETTINGS), value="guidance", label="Setting across")
        values = gr.Textbox(
            USUAL["guidance"], label="Its values", info=f"up to {MOST}, with commas between", max_length=500
        )
    with gr.Row():
        labels = controls.labels_choice(studio)
        seed = controls.seed_choice()
        most = min(ROWS, studio.served.limits.images)
        rows = gr.Slider(1, most, value=min(4, most), step=1, label="Rows: images of the seed")
    with gr.Row():
        sampler = controls.sampler_choice(studio)
        steps = controls.steps_choice(studio)
        guidance = gr.Slider(
            0, 10, value=studio.model(studio.names[0]).defaults.guidance.scale, step=0.1, label="Guidance"
        )
    go = gr.Button("Compare", variant="primary")
    picture = gr.Image(
        label="Same noise along each row", interactive=False, format="png", type="pil", buttons=["fullscreen"],
        elem_classes=["pixels"], elem_id="comparison", alt_text="the same noise under several settings",
    )  # fmt: skip
    status = gr.Markdown("", elem_id="comparison-status")
    file = gr.DownloadButton("PNG", interactive=False, size="sm")

    def compare(
        name: str, setting: str, values: str, labels: list[int], seed: float, rows: float, sampler: str, steps: float,
        guidance: float,
    ) -> Iterator[tuple]:  # fmt: skip
        with controls.told():
            if rows > ROWS:
                raise UserError(f"{rows:g} rows are too many; at most {ROWS}")
            columns = _columns(studio, name, setting, values)
            asked = {
                "labels": controls.wanted(labels), "n": rows, "sampler": sampler, "steps": steps,
                "guidance": guidance if studio.model(name).guidable else None,
                "seed": secrets.randbelow(2**31) if seed is None else seed,
            }  # fmt: skip
            requests = [studio.request(controls.asked(**asked | changes)) for _, changes, _ in columns]
            made = list[np.ndarray]()
            try:
                for (_, changes, images), request in zip(columns, requests, strict=True):
                    if images is None:  # the batcher denoises them side by side
                        studio.begin(str(changes["model"]), request)
                for (_, _, images), request in zip(columns, requests, strict=True):
                    if images is None:
                        made.append(request.images.result())
                    else:
                        made.append(studio.make(name, request, studio.earlier(name, images)))
                    words = f"{len(made)} of {len(columns)} columns"
                    yield _paper(studio, requests, made, columns), words, gr.update(interactive=False)
            finally:
                for request in requests:  # where somebody went away; nothing happens where they are done
                    request.give_up()
            paper = _paper(studio, requests, made, columns)
            facts = {**studio.settings(_named(columns), requests[0]), "across": setting}
            facts["values"] = [words for words, _, _ in columns]
            with tempfile.TemporaryDirectory(prefix="ditlab-") as folder:
                path = Path(folder) / f"{Path(_named(columns)).name}-{setting}.png"
                files.write_file(path, png(paper, facts))
                yield paper, f"{len(requests[0].labels)} rows, {len(columns)} columns", _ready(path)

    def usual(name: str, setting: str) -> str:
        with controls.told():
            if setting == "checkpoint":
                return ", ".join(map(str, studio.checkpoints(name)))
            return ", ".join(studio.names[:MOST]) if setting == "model" else USUAL.get(setting, "")

    def another(name: str, setting: str) -> tuple:
        with controls.told():
            model = studio.model(name).defaults
            most = studio.served.limits.steps
            changed = controls.other_labels(studio, name), model.sampler, min(model.steps, most), model.guidance.scale
            return (*changed, usual(name, setting) if setting in ("checkpoint", "model") else gr.skip())

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    inputs = [name, setting, values, labels, seed, rows, sampler, steps, guidance]
    go.click(compare, inputs, [picture, status, file], trigger_mode="once", **quiet)
    setting.change(usual, [name, setting], values, **quiet)
    name.change(another, [name, setting], [labels, sampler, steps, guidance, values], **quiet)


Column = tuple[str, dict[str, object], int | None]


def _columns(studio: Studio, name: str, setting: str, text: str) -> list[Column]:
    """Of each column its name, what of a request it changes, and of which checkpoint it is where it is of one."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    if setting not in SETTINGS:
        raise UserError(f"unknown setting {setting[:100]!r}; {', '.join(SETTINGS)}")
    if not 1 <= len(values) <= MOST:
        hint = (
            f"; {name} has no checkpoints beside it" if setting == "checkpoint" and not studio.checkpoints(name) else ""
        )
        raise UserError(f"{len(values)} values of {setting}: 1 to {MOST}, with commas between{hint}")
    columns = list[Column]()
    for value in values:
        if setting == "model":
            columns.append((value, {"model": value}, None))
        elif setting == "checkpoint":
            images = _number(value, int, "a number of images")
            columns.append((f"{images:,} images", {"model": name}, images))
        elif setting == "sampler":
            columns.append((value, {"model": name, "sampler": value}, None))
        else:
            number = _number(value, int if setting == "steps" else float, "a number")
            columns.append((f"{setting} {value}", {"model": name, setting: number}, None))
    return columns


def _named(columns: list[Column]) -> str:
    """The model of the first column, by whose names labels are called."""
    return str(columns[0][1]["model"])


def _number(text: str, kind: type, what: str) -> Any:
    try:
        return kind(text[:50])
    except (ValueError, OverflowError):
        raise UserError(f"{text[:100]!r} is not {what}") from None


def _paper(studio: Studio, requests: list[Request], made: list[np.ndarray], columns: list[Column]) -> Any:
    """The grid so far, what is not made yet in grey."""
    shapes = {images.shape[1:] for images in made}
    if len(shapes) > 1:
        raise UserError(f"models that make images of {' and '.join(map(str, shapes))} do not go on one grid")
    blank = np.full_like(made[0], 225)
    down = np.stack([*made, *[blank] * (len(columns) - len(made))], axis=1)  # (rows, columns, H, W, C)
    labels = requests[0].labels.tolist()
    rows = [studio.label_name(_named(columns), label) or f"image {k}" for k, label in enumerate(labels)]
    return grid(down.reshape(-1, *down.shape[2:]), len(columns), rows, [words for words, _, _ in columns])


def _ready(path: Path) -> Any:
    return gr.update(value=str(path), interactive=True)
