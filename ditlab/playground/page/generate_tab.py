"""Generate: images as they appear from noise."""

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
from ditlab.playground.page import controls
from ditlab.playground.request import Busy, Cancelled, Interpolation, Late, Request
from ditlab.playground.studio import Studio, View
from ditlab.runtime import files

BETWEEN = 8  # images of an interpolation


def generate_tab(studio: Studio, page: gr.Blocks) -> None:
    """Controls on the left, images on the right."""
    running: dict[str, Request] = {}  # by the browser's session
    model, limits = studio.model(studio.names[0]), studio.served.limits
    usual = model.defaults
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            name = controls.model_choice(studio)
            labels = controls.labels_choice(studio)
            classes = gr.Gallery(
                label="Classes: choose one to add it", columns=5, height="auto", allow_preview=False, format="png",
                object_fit="contain", buttons=[], elem_classes=["classes"], interactive=False, visible=False,
            )  # fmt: skip
            with gr.Row():
                seed = controls.seed_choice()
                count = gr.Slider(1, limits.images, value=min(16, limits.images), step=1, label="Images")
            guidance = gr.Slider(
                0, 10, value=usual.guidance.scale, step=0.1, label="Guidance", info="1 is off", visible=model.guidable
            )
            with gr.Accordion("Sampler, steps, guidance interval", open=False):
                sampler = controls.sampler_choice(studio)
                steps = controls.steps_choice(studio)
                low = gr.Slider(0, 1, value=usual.guidance.low, step=0.05, label="Guide from t", info="1 is noise")
                high = gr.Slider(0, 1, value=usual.guidance.high, step=0.05, label="Guide up to t")
            with gr.Accordion("Between two images", open=False):
                other_seed = gr.Number(1, label="Seed of the other end", precision=0, minimum=0)
                other_label = controls.label_choice(studio)
                between = gr.Button("Interpolate")
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                go = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", variant="stop", interactive=False)
            picture = gr.Image(
                label="Images", interactive=False, format="png", type="pil", buttons=["fullscreen"],
                elem_classes=["pixels"], elem_id="images", alt_text="generated images",
            )  # fmt: skip
            status = gr.Markdown("Choose labels, or none, and generate.", elem_id="status")
            with gr.Row():
                png_file = gr.DownloadButton("PNG", interactive=False, size="sm")
                zip_file = gr.DownloadButton("Archive of PNGs", interactive=False, size="sm")
            film = gr.Image(
                label="Denoising of the first: x_t, and below the x0 the model expects", interactive=False, format="png",
                type="pil", buttons=["fullscreen"], elem_classes=["wide"], elem_id="filmstrip",
                alt_text="filmstrip of the denoising", visible=False,
            )  # fmt: skip

    outputs = [picture, status, png_file, zip_file, film, go, between, stop]

    def follow(name: str, request: Request, columns: int, session: str) -> Iterator[tuple]:
        """What the outputs show, from the first step to the last."""
        began, last = time.monotonic(), None
        if session in running:
            running[session].give_up()
        running[session] = request
        yield (gr.skip(), "waiting for a free place", *[_off()] * 2, gr.skip(), _off(), _off(), _on())
        try:
            for view in studio.follow(name, request):
                last = view
                if not view.done:
                    words = f"step {view.step} of {view.steps}"
                    yield (_paper(view, columns), words, *[gr.skip()] * 5, gr.skip())
            assert last is not None
            seconds = time.monotonic() - began
            command = "" if isinstance(request, Interpolation) else f"\n\n`{studio.command(name, request)}`"
            words = f"{len(last.images)} images in {seconds:.1f} s, seed {request.seed}{command}"
            film = gr.update(value=strip(studio.model(name), last.states), visible=True)
            with tempfile.TemporaryDirectory(prefix="ditlab-") as folder:  # the page copies what it is given at once
                files = _files(studio, name, request, last, columns, Path(folder))
                yield (_paper(last, columns), words, *files, film, _on(), _on(), _off())
        except Cancelled:
            words = f"stopped at step {last.step} of {last.steps}" if last else "stopped"
            yield (gr.skip(), words, *[gr.skip()] * 3, _on(), _on(), _off())
        except Exception:
            yield (gr.skip(), "not done", *[gr.skip()] * 3, _on(), _on(), _off())
            raise
        finally:
            if running.get(session) is request:
                del running[session]

    def generate(
        name: str, labels: list[int], seed: float, count: float, guidance: float, low: float, high: float,
        sampler: str, steps: float, who: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        with controls.told():
            asked = _asked(studio, name, labels, seed, guidance, low, high, sampler, steps, count)
            yield from follow(name, studio.request(asked), _columns(int(count)), str(who.session_hash))

    def interpolate(
        name: str, labels: list[int], seed: float, other_seed: float, other_label: int, guidance: float, low: float,
        high: float, sampler: str, steps: float, who: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        with controls.told():
            count = min(BETWEEN, limits.images)
            first = studio.request(_asked(studio, name, labels, seed, guidance, low, high, sampler, steps, count))
            other = _asked(studio, name, [other_label], other_seed, guidance, low, high, sampler, steps, 1)
            end = studio.request(other)
            last = (end.seed, int(end.labels[0]))
            if last == (first.seed, int(first.labels[0])):
                raise UserError("both ends are the same image; choose another seed, or another label")
            request = Interpolation(first.labels[:1].repeat(count), first.seed, first.config, first.seconds, last=last)
            yield from follow(name, request, 4, str(who.session_hash))

    async def give_up(who: gr.Request) -> None:  # in the server's own thread: others may be taken
        request = running.get(str(who.session_hash))
        if request is not None:
            request.give_up()

    def another(name: str) -> tuple:
        with controls.told():
            model = studio.model(name)
            usual = model.defaults
            return (
                controls.other_labels(studio, name), controls.other_label(studio, name),
                gr.update(value=usual.guidance.scale, visible=model.guidable), usual.guidance.low, usual.guidance.high,
                usual.sampler, min(usual.steps, limits.steps), _classes(studio, name),
            )  # fmt: skip

    def add(labels: list[int] | None, chosen: gr.SelectData) -> tuple[list[int], Any]:
        labels, index = list(labels or []), int(chosen.index)
        changed = [label for label in labels if label != index] if index in labels else [*labels, index]
        return changed, gr.update(selected_index=None)

    settings = [guidance, low, high, sampler, steps]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    go.click(generate, [name, labels, seed, count, *settings], outputs, trigger_mode="once", **quiet)
    between.click(
        interpolate, [name, labels, seed, other_seed, other_label, *settings], outputs, trigger_mode="once", **quiet
    )
    stop.click(give_up, None, None, queue=False, **quiet)
    name.change(another, name, [labels, other_label, guidance, low, high, sampler, steps, classes], **quiet)
    classes.select(add, labels, [labels, classes], queue=False, **quiet)
    page.load(lambda name: _classes(studio, name), name, classes, **quiet)
    page.unload(give_up)


def _asked(
    studio: Studio, name: str, labels: list[int] | None, seed: float, guidance: float, low: float, high: float,
    sampler: str, steps: float, count: float,
) -> Any:  # fmt: skip
    values = {"model": name, "labels": controls.wanted(labels), "seed": seed, "n": count}
    values["guidance"] = guidance if studio.model(name).guidable else None
    return controls.asked(**values, guidance_low=low, guidance_high=high, sampler=sampler, steps=steps)


def _classes(studio: Studio, name: str) -> Any:
    """Pictures of the classes, each with its name; nothing while the server is too busy to make them."""
    try:
        images = studio.pictures(name)
    except (UserError, Busy, Cancelled, Late):
        images = []
    items = [(single(_large(image)), studio.label_name(name, label)) for label, image in enumerate(images)]
    return gr.update(value=items, visible=bool(items))


def _large(image: np.ndarray) -> np.ndarray:
    """A small image enlarged by a whole number, so that the browser does not blur it."""
    scale = max(1, 96 // max(image.shape[:2]))
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _columns(count: int) -> int:
    return min(count, max(1, round(count**0.5)))


def _paper(view: View, columns: int) -> Image.Image:
    return grid(view.images, columns)


def _files(studio: Studio, name: str, request: Request, view: View, columns: int, folder: Path) -> tuple[Any, Any]:
    """The images for download: a grid, and an archive."""
    settings, labels = studio.settings(name, request), request.labels.numpy()
    if isinstance(request, Interpolation):
        labels = np.full_like(labels, controls.NONE)  # those between are of no class
        settings["to"] = {"seed": request.last[0], "label": studio.label_name(name, request.last[1])}
    stem = f"{Path(name).name}-seed{request.seed}"
    files.write_file(folder / f"{stem}.png", png(_paper(view, columns), settings))
    write_zip(view.images, labels, studio.model(name).names, folder / f"{stem}.zip", settings)
    return tuple(gr.update(value=str(folder / f"{stem}{end}"), interactive=True) for end in (".png", ".zip"))  # type: ignore[return-value]


def _on() -> Any:
    return gr.update(interactive=True)


def _off() -> Any:
    return gr.update(interactive=False)
