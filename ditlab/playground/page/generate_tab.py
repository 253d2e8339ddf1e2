"""The tab Generate: images with previews during sampling, interpolations, and files to download."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ditlab.errors import UserError
from ditlab.pipelines import grid, png, single, strip, write_zip
from ditlab.playground.backend import Backend, Preview
from ditlab.playground.page import controls, prompts
from ditlab.playground.request import Cancelled, Interpolation, QueueFull, Request, TimedOut
from ditlab.runtime import files

INTERPOLATED = 8  # images of an interpolation
HINT = "Select labels or write prompts, or leave them empty for all classes or the examples, and click Generate."
SETTINGS = ("negative_prompt", "guidance", "guidance_low", "guidance_high", "sampler", "steps")


def generate_tab(backend: Backend, page: gr.Blocks) -> None:
    """Settings on the left, images on the right."""
    active: dict[str, Request] = {}  # by browser session
    limits, defaults = backend.server.limits, backend.model(backend.names[0]).defaults
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = controls.model_dropdown(backend)
            labels = controls.labels_dropdown(backend, model)
            texts = prompts.prompt_box(backend, model)
            prompts.example_prompts(backend, model, texts)
            negative = prompts.negative_box(backend, model)
            classes = gr.Gallery(
                label="Classes: click to select", columns=5, height="auto", allow_preview=False, format="png",
                object_fit="contain", buttons=[], elem_classes=["classes"], interactive=False, visible=False,
            )  # fmt: skip
            with gr.Row():
                seed = controls.seed_number()
                count = controls.count_slider(backend, limits.images, 16)
            guidance, sampler, steps = controls.sampling_components(backend, model)
            guidance.render()
            with gr.Accordion("Sampler, steps, guidance interval", open=False):
                sampler.render()
                steps.render()
                low = gr.Slider(0, 1, value=defaults.guidance.low, step=0.05, label="Guide from t", info="1 is noise")
                high = gr.Slider(0, 1, value=defaults.guidance.high, step=0.05, label="Guide up to t")
            with gr.Accordion("Interpolate between two images", open=False):
                end_seed = controls.seed_number(1, "Seed of the last image")
                end_label = controls.label_dropdown(backend, model, "Label of the last image")
                end_prompt = prompts.prompt_box(backend, model, "Prompt of the last image", 1)
                interpolation = gr.Button("Interpolate")
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                generation = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", variant="stop", interactive=False)
            image = controls.image_output("Images", "images", "generated images", elem_classes=["pixels"])
            status = gr.Markdown(HINT, elem_id="status", latex_delimiters=[])
            notes = prompts.notes_box("notes")
            with gr.Row():
                png_file = gr.DownloadButton("Download PNG", interactive=False, size="sm")
                zip_file = gr.DownloadButton("Download ZIP of PNGs", interactive=False, size="sm")
            film = controls.image_output(
                "Sampling of the first image: x_t, and below it the predicted x0", "filmstrip", "filmstrip of the sampling",
                elem_classes=["wide"], visible=False,
            )  # fmt: skip

    def buttons(running: bool) -> dict[Any, Any]:
        idle, busy = gr.update(interactive=not running), gr.update(interactive=running)
        return {generation: idle, interpolation: idle, stop: busy}

    def run(name: str, request: Request, columns: int, session: str) -> Iterator[dict]:
        """Updates of the page, from the first step to the last."""
        started, preview = time.monotonic(), None
        if session in active:
            active[session].cancel()
        active[session] = request
        no_file, hidden = gr.update(value=None, interactive=False), gr.update(value=None, visible=False)
        nothing = {image: None, film: hidden, png_file: no_file, zip_file: no_file}
        yield {status: "queued", notes: prompts.notes_update(request.notes), **nothing, **buttons(True)}
        captions = () if isinstance(request, Interpolation) else request.captions
        try:
            for preview in backend.generate_with_previews(name, request):
                if not preview.finished:
                    drawn = grid(preview.images, columns, captions=captions)
                    yield {image: drawn, status: f"step {preview.step} of {preview.steps}"}
            assert preview is not None
            text = f"{len(preview.images)} images in {time.monotonic() - started:.1f} s, seed {request.seed}"
            command = "" if isinstance(request, Interpolation) else backend.command(name, request)
            text += f"\n\n{controls.code(command)}" if command else ""
            frames = gr.update(value=strip(backend.model(name), preview.states, captions=captions[:1]), visible=True)
            drawn = grid(preview.images, columns, captions=captions)
            with tempfile.TemporaryDirectory(prefix="ditlab-") as folder:  # gradio copies the files when it sends them
                one, archive = _write_files(backend, name, request, preview, drawn, Path(folder))
                result = {image: drawn, status: text, film: frames}
                downloads = {png_file: controls.file_update(one), zip_file: controls.file_update(archive)}
                yield {**result, **downloads, **buttons(False)}
        except Cancelled:
            step = f" at step {preview.step} of {preview.steps}" if preview else ""
            yield {status: f"stopped{step}", **buttons(False)}
        except Exception:
            yield {status: "failed", **buttons(False)}
            raise
        finally:
            if active.get(session) is request:
                del active[session]

    def sampling(name: str, *values: Any) -> dict[str, Any]:
        """The fields of a request from the values of ``settings``."""
        fields: dict[str, Any] = dict(zip(SETTINGS, values, strict=True))
        return fields if backend.model(name).text is not None else {**fields, "negative_prompt": None}

    def generate(
        name: str, labels: list[int], text: str, seed: float, count: float, negative: str, guidance: float,
        low: float, high: float, sampler: str, steps: float, http: gr.Request,
    ) -> Iterator[dict]:  # fmt: skip
        with controls.show_errors():
            settings = sampling(name, negative, guidance, low, high, sampler, steps)
            chosen = prompts.chosen_prompts(backend, name, text)
            request = controls.build_request(backend, name, labels, chosen, seed, count, **settings)
            columns = min(int(count), max(1, round(count**0.5)))
            yield from run(name, request, columns, str(http.session_hash))

    def interpolate(
        name: str, labels: list[int], text: str, seed: float, end_seed: float, end_label: int, end_prompt: str,
        negative: str, guidance: float, low: float, high: float, sampler: str, steps: float, http: gr.Request,
    ) -> Iterator[dict]:  # fmt: skip
        with controls.show_errors():
            count = min(INTERPOLATED, limits.images)
            settings = sampling(name, negative, guidance, low, high, sampler, steps)
            chosen = prompts.chosen_prompts(backend, name, text)
            chosen, last_prompt = (None, None) if chosen is None else (chosen[:1], [end_prompt])
            first = controls.build_request(backend, name, labels, chosen, seed, count, **settings)
            last = controls.build_request(backend, name, [end_label], last_prompt, end_seed, 1, **settings)
            if last.first == first.first:
                raise UserError("the first and the last image are the same; select another seed, label or prompt")
            lines = tuple(dict.fromkeys((*first.notes, *last.notes)))
            same = first.labels[:1].repeat(count), first.seed, first.config, first.timeout, first.prompts, lines
            request = Interpolation(*same, end=last.first)
            yield from run(name, request, 4, str(http.session_hash))

    async def cancel(http: gr.Request) -> None:  # async: it must not wait for one of the worker threads
        request = active.get(str(http.session_hash))
        if request is not None:
            request.cancel()

    def update_model(name: str) -> tuple:
        with controls.show_errors():
            defaults = backend.model(name).defaults
            return defaults.guidance.low, defaults.guidance.high, _class_gallery(backend, name)

    def toggle_label(labels: list[int] | None, event: gr.SelectData) -> tuple[list[int], Any]:
        labels, index = list(labels or []), int(event.index)
        toggled = [label for label in labels if label != index] if index in labels else [*labels, index]
        return toggled, gr.update(selected_index=None)

    outputs = [image, status, notes, png_file, zip_file, film, generation, interpolation, stop]
    settings = [negative, guidance, low, high, sampler, steps]
    once: dict[str, Any] = {"trigger_mode": "once", **controls.QUIET}
    generation.click(generate, [model, labels, texts, seed, count, *settings], outputs, **once)
    ends = [seed, end_seed, end_label, end_prompt]
    interpolation.click(interpolate, [model, labels, texts, *ends, *settings], outputs, **once)
    stop.click(cancel, None, None, queue=False, **controls.QUIET)
    model.change(update_model, model, [low, high, classes], **controls.QUIET)
    classes.select(toggle_label, labels, [labels, classes], queue=False, **controls.QUIET)
    page.load(lambda name: _class_gallery(backend, name), model, classes, **controls.QUIET)
    page.unload(cancel)


def _class_gallery(backend: Backend, name: str) -> Any:
    """An image of each class with its name; hidden if the server is too busy to generate them."""
    try:
        images = backend.class_images(name)
    except (UserError, QueueFull, Cancelled, TimedOut):
        images = []
    items = [(_enlarge(image), backend.label_name(name, label)) for label, image in enumerate(images)]
    return gr.update(value=items, visible=bool(items))


def _enlarge(image: np.ndarray) -> Image.Image:
    """A small image enlarged by an integer factor, so that the browser does not blur it."""
    scale = max(1, 96 // max(image.shape[:2]))
    return single(image.repeat(scale, axis=0).repeat(scale, axis=1))


def _write_files(
    backend: Backend, name: str, request: Request, preview: Preview, drawn: Image.Image, folder: Path
) -> tuple[Path, Path]:
    """Write the images as a grid, and as an archive of PNGs."""
    settings, labels = backend.settings(name, request), request.labels.numpy()
    if isinstance(request, Interpolation):
        labels = np.full_like(labels, controls.NO_LABEL)  # images between two classes belong to none
        seed, end = request.end
        last = {"prompt": end} if isinstance(end, str) else {"label": backend.label_name(name, end)}
        settings["to"] = {"seed": seed, **last}
    one, archive = (folder / f"{Path(name).name}-seed{request.seed}{ending}" for ending in (".png", ".zip"))
    files.write_file(one, png(drawn, settings))
    write_zip(preview.images, labels, request.prompts or backend.model(name).names, archive, settings)
    return one, archive
