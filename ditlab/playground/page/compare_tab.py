"""The tab Compare: one setting varies over the columns, the noise over the rows."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from ditlab.errors import UserError
from ditlab.pipelines import grid, png
from ditlab.playground.backend import Backend
from ditlab.playground.page import controls, prompts
from ditlab.playground.request import Request
from ditlab.runtime import files

VALUES = {"guidance": "1, 1.5, 2, 3, 4", "steps": "2, 5, 10, 25, 50", "sampler": "ddim, euler, heun, dpm-solver, ddpm"}
SETTINGS = (*VALUES, "checkpoint", "model", "prompt")
MAX_COLUMNS, MAX_ROWS = 8, 8


class Column(NamedTuple):
    """One value of the compared setting."""

    title: str
    model: str
    changes: dict[str, Any]  # of the request
    checkpoint: int | None = None  # images trained on; None: the served weights
    prompts: list[str] | None = None  # in place of those of the rows


def compare_tab(backend: Backend) -> None:
    """Settings above, the grid below."""
    with gr.Row():
        model = controls.model_dropdown(backend)
        setting = gr.Dropdown(list(SETTINGS), value="guidance", label="Compared setting")
        info = f"up to {MAX_COLUMNS}, separated by commas"
        values = gr.Textbox(VALUES["guidance"], label="Values", info=info, max_length=500)
    with gr.Row():
        labels = controls.labels_dropdown(backend, model)
        texts = prompts.prompt_box(backend, model)
        seed = controls.seed_number()
        rows = controls.count_slider(backend, MAX_ROWS, 4, "Rows", "images per column")
    with gr.Row():
        guidance, sampler, steps = controls.sampling_components(backend, model)
        for component in (sampler, steps, guidance):
            component.render()
        negative = prompts.negative_box(backend, model)
    button = gr.Button("Compare", variant="primary")
    image = controls.image_output(
        "Images of a row start from the same noise", "comparison", "one setting compared on the same noise",
        elem_classes=["pixels"],
    )  # fmt: skip
    status = gr.Markdown("", elem_id="comparison-status")
    notes = prompts.notes_box("comparison-notes")
    file = gr.DownloadButton("Download PNG", interactive=False, size="sm")

    def compare(
        name: str, setting: str, values: str, labels: list[int], text: str, seed: float, rows: float, negative: str,
        guidance: float, sampler: str, steps: float,
    ) -> Iterator[tuple]:  # fmt: skip
        with controls.show_errors():
            if rows > MAX_ROWS:
                raise UserError(f"{rows:g} rows are too many; at most {MAX_ROWS}")
            chosen = prompts.chosen_prompts(backend, name, text)
            if setting == "prompt":
                columns = _prompt_columns(name, chosen)
            else:
                columns = _parse_columns(backend, name, setting, values)
            seed = secrets.randbelow(2**31) if seed is None else seed
            settings = {"guidance": guidance, "sampler": sampler, "steps": steps}
            settings |= {} if chosen is None else {"negative_prompt": negative}
            requests = [
                controls.build_request(
                    backend, column.model, labels, column.prompts or chosen, seed, rows, **settings | column.changes
                )
                for column in columns
            ]
            images, drawn = list[np.ndarray](), Image.new("L", (1, 1))
            lines = prompts.notes_update(note for request in requests for note in request.notes)
            yield None, "queued", lines, gr.update(value=None, interactive=False)
            try:
                for column, request in zip(columns, requests, strict=True):
                    if column.checkpoint is None:  # the batcher denoises these together
                        backend.submit(column.model, request)
                for column, request in zip(columns, requests, strict=True):
                    if column.checkpoint is None:
                        images.append(request.images.result())
                    else:
                        earlier = backend.load_checkpoint(column.model, column.checkpoint)
                        images.append(backend.generate(column.model, request, earlier))
                    drawn = _draw(backend, requests, images, columns)
                    yield drawn, f"{len(images)} of {len(columns)} columns", gr.skip(), gr.skip()
            except Exception:
                yield gr.skip(), f"failed after {len(images)} of {len(columns)} columns", gr.skip(), gr.skip()
                raise
            finally:
                for request in requests:
                    request.cancel()
            facts = {**backend.settings(columns[0].model, requests[0]), "across": setting}
            facts["values"] = [column.title for column in columns]
            with tempfile.TemporaryDirectory(prefix="ditlab-") as folder:
                path = Path(folder) / f"{Path(columns[0].model).name}-{setting}.png"
                files.write_file(path, png(drawn, facts))
                text = f"{len(requests[0].labels)} rows, {len(columns)} columns"
                yield drawn, text, gr.skip(), controls.file_update(path)

    def suggest_values(name: str, setting: str) -> Any:
        with controls.show_errors():
            if setting == "prompt":
                return gr.update(value="", visible=False)  # a prompt may have commas
            return gr.update(value=suggested(name, setting), visible=True)

    def suggested(name: str, setting: str) -> str:
        with controls.show_errors():
            if setting == "checkpoint":
                return ", ".join(map(str, backend.checkpoints(name)))
            return ", ".join(backend.names[:MAX_COLUMNS]) if setting == "model" else VALUES.get(setting, "")

    def update_model(name: str, setting: str) -> Any:
        return suggest_values(name, setting) if setting in ("checkpoint", "model") else gr.skip()

    inputs = [model, setting, values, labels, texts, seed, rows, negative, guidance, sampler, steps]
    button.click(compare, inputs, [image, status, notes, file], trigger_mode="once", **controls.QUIET)
    setting.change(suggest_values, [model, setting], values, **controls.QUIET)
    model.change(update_model, [model, setting], values, **controls.QUIET)


def _prompt_columns(name: str, prompts: list[str] | None) -> list[Column]:
    """A column for each prompt."""
    if prompts is None:
        raise UserError(f"{name} is conditioned on labels, not prompts; compare another setting")
    if len(prompts) > MAX_COLUMNS:
        raise UserError(f"{len(prompts)} prompts: enter 1 to {MAX_COLUMNS}, one a line")
    return [Column(prompt, name, {}, None, [prompt]) for prompt in prompts]


def _parse_columns(backend: Backend, name: str, setting: str, text: str) -> list[Column]:
    """The columns of a comparison, from comma-separated values."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    if setting not in SETTINGS:
        raise UserError(f"unknown setting {setting[:100]!r}; available: {', '.join(SETTINGS)}")
    if setting == "guidance" and not backend.model(name).guidable:
        raise UserError(f"{name} was trained without a null class and cannot be guided; compare another setting")
    if not 1 <= len(values) <= MAX_COLUMNS:
        empty = setting == "checkpoint" and not backend.checkpoints(name)
        hint = f"; the folder of {name} has no checkpoints" if empty else ""
        raise UserError(f"{len(values)} values of {setting}: enter 1 to {MAX_COLUMNS}, separated by commas{hint}")
    columns = list[Column]()
    for value in values:
        if setting == "model":
            columns.append(Column(value, value, {}))
        elif setting == "checkpoint":
            images = _parse_number(value, int)
            columns.append(Column(f"{images:,} images", name, {}, images))
        elif setting == "sampler":
            columns.append(Column(value, name, {"sampler": value}))
        else:
            number = _parse_number(value, int if setting == "steps" else float)
            columns.append(Column(f"{setting} {value}", name, {setting: number}))
    return columns


def _parse_number(text: str, kind: type) -> Any:
    try:
        return kind(text[:50])
    except (ValueError, OverflowError):
        raise UserError(f"{text[:100]!r} is not {'an integer' if kind is int else 'a number'}") from None


def _draw(backend: Backend, requests: list[Request], images: list[np.ndarray], columns: list[Column]) -> Image.Image:
    """The grid of all columns, unfinished ones in grey; prompts are written under the images."""
    shapes = {column.shape[1:] for column in images}
    if len(shapes) > 1:
        raise UserError(f"models with image shapes {' and '.join(map(str, shapes))} cannot share a grid")
    blank = np.full_like(images[0], 225)
    stacked = np.stack([*images, *[blank] * (len(columns) - len(images))], axis=1)  # (rows, columns, H, W, C)
    tiles, titles = stacked.reshape(-1, *stacked.shape[2:]), [column.title for column in columns]
    if not any(request.prompts for request in requests):
        return grid(tiles, len(columns), backend.row_names(columns[0].model, requests[0]), titles)
    named = [
        request.captions or backend.row_names(column.model, request)
        for column, request in zip(columns, requests, strict=True)
    ]
    captions = [name for row in zip(*named, strict=True) for name in row]
    return grid(tiles, len(columns), (), () if columns[0].prompts else titles, captions)
