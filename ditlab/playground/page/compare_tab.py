"""Compare: the same noise down, one setting across, as papers print it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ditlab import atomic
from ditlab.errors import UserError
from ditlab.playground.batcher import Request
from ditlab.playground.page import controls
from ditlab.playground.studio import Studio
from ditlab.sample import Model, grid, png

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
        rows = gr.Slider(1, ROWS, value=4, step=1, label="Rows: images of the seed")
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
            columns = _columns(studio, name, setting, values)
            asked = {
                "labels": controls.wanted(labels), "seed": seed, "n": rows, "sampler": sampler, "steps": steps,
                "guidance": guidance if studio.model(name).classes else None,
            }  # fmt: skip
            requests = [studio.request(controls.asked(**asked | changes)) for _, changes, _ in columns]
            made = list[np.ndarray]()
            with ThreadPoolExecutor(len(columns)) as together:  # the batcher denoises them side by side
                futures = [
                    together.submit(studio.make, str(changes["model"]), request, model)
                    for (_, changes, model), request in zip(columns, requests, strict=True)
                ]
                try:
                    for future in futures:
                        made.append(future.result())
                        words = f"{len(made)} of {len(columns)} columns"
                        yield _paper(studio, name, requests, made, columns), words, gr.update(interactive=False)
                except BaseException:
                    for request in requests:
                        request.give_up()
                    raise
            paper = _paper(studio, name, requests, made, columns)
            facts = {
                **studio.settings(name, requests[0]),
                "across": setting,
                "values": [words for words, _, _ in columns],
            }
            with tempfile.TemporaryDirectory(prefix="ditlab-") as folder:
                path = Path(folder) / f"{Path(name).name}-{setting}.png"
                atomic.write_file(path, png(paper, facts))
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


def _columns(studio: Studio, name: str, setting: str, text: str) -> list[tuple[str, dict[str, object], Model | None]]:
    """Of each column its name, what of a request it changes, and a model where it is not the one that is served."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    if setting not in SETTINGS:
        raise UserError(f"unknown setting {setting[:100]!r}; {', '.join(SETTINGS)}")
    if not 1 <= len(values) <= MOST:
        hint = (
            f"; {name} has no checkpoints beside it" if setting == "checkpoint" and not studio.checkpoints(name) else ""
        )
        raise UserError(f"{len(values)} values of {setting}: 1 to {MOST}, with commas between{hint}")
    columns = list[tuple[str, dict[str, object], Model | None]]()
    for value in values:
        if setting == "model":
            columns.append((value, {"model": value}, None))
        elif setting == "checkpoint":
            images = _number(value, int, "a number of images")
            columns.append((f"{images:,} images", {"model": name}, studio.earlier(name, images)))
        elif setting == "sampler":
            columns.append((value, {"model": name, "sampler": value}, None))
        else:
            number = _number(value, int if setting == "steps" else float, "a number")
            columns.append((f"{setting} {number:g}", {"model": name, setting: number}, None))
    return columns


def _number(text: str, kind: type, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{text[:100]!r} is not {what}") from None


def _paper(studio: Studio, name: str, requests: list[Request], made: list[np.ndarray], columns: list[tuple]) -> Any:
    """The grid so far, what is not made yet in grey."""
    shapes = {images.shape[1:] for images in made}
    if len(shapes) > 1:
        raise UserError(f"models that make images of {' and '.join(map(str, shapes))} do not go on one grid")
    blank = np.full_like(made[0], 225)
    down = np.stack([*made, *[blank] * (len(columns) - len(made))], axis=1)  # (rows, columns, H, W, C)
    rows = [studio.label_name(name, int(label)) or f"image {k}" for k, label in enumerate(requests[0].labels)]
    return grid(down.reshape(-1, *down.shape[2:]), len(columns), rows, [words for words, _, _ in columns])


def _ready(path: Path) -> Any:
    return gr.update(value=str(path), interactive=True)
