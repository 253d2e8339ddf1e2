"""The tab Inspect: patches, attention, predictions and modulation for one image."""

from __future__ import annotations

import threading
from typing import Any, cast

import gradio as gr

from ditlab.errors import UserError
from ditlab.models import DiT
from ditlab.pipelines import Pipeline
from ditlab.playground.backend import Backend
from ditlab.playground.inspection import Inspection
from ditlab.playground.page import controls

CACHED = 16  # images whose latents are kept


def inspect_tab(backend: Backend) -> None:
    """The image with its patches, sliders for time and block, and the figures."""
    cache: dict[tuple[str, int, int], Inspection] = {}
    lock = threading.Lock()

    def inspection(name: str, label: int, seed: float) -> Inspection:
        request = controls.build_request(backend, name, [label], seed or 0, 1)
        key = (name, int(request.labels[0]), request.seed)
        with lock:
            found = cache.get(key)
        if found is None:
            found = Inspection(backend.model(name), key[1], key[2], *backend.generate_latent(name, request))
            with lock:
                while len(cache) >= CACHED:
                    cache.pop(next(iter(cache)))
                cache[key] = found
        return found

    with gr.Row():
        model = controls.model_dropdown(backend)
        label = controls.label_dropdown(backend, model)
        seed = controls.seed_number(info="of the image")
    with gr.Row():
        t = gr.Slider(0.01, 1, value=0.5, step=0.01, label="Time t", info="0 is data, 1 is noise")
        block_range, patch_range = _ranges(backend.model(backend.names[0]))  # of the model that is selected first
        block = gr.Slider(0, **block_range, step=1, label="Block", info="for the attention weights")
        patch = gr.Slider(0, **patch_range, step=1, label="Patch", info="or click it in the image")
    button = gr.Button("Inspect", variant="primary")
    message = gr.Markdown("", elem_id="inspect-message")
    with gr.Row():
        patches = controls.image_output(
            "Patches", "patches", "the image with its patch grid", buttons=[], min_width=280
        )
        attention = controls.image_output(
            "Attention weights of the selected patch", "attention", "maps of attention weights", min_width=280
        )
    predictions = controls.image_output(
        "x_t at several times t, and below it the x0 predicted from it", "predictions", "noised images and predictions",
        elem_classes=["wide"],
    )  # fmt: skip
    channels = controls.image_output(
        "Channels of the latent z, of z noised to t, and of the predicted x0", "channels", "channels of the latent",
        elem_classes=["pixels"],
    )  # fmt: skip
    modulation = controls.image_output(
        "Modulation: root mean square of the shift, scale and gate vectors of each block", "modulation",
        "size of the modulation vectors", elem_classes=["wide"],
    )  # fmt: skip

    def inspect(name: str, label: int, seed: float, t: float, block: float, patch: float) -> tuple:
        with controls.show_errors():
            shown = inspection(name, label, seed)
            rows, columns = shown.patches
            blocks, tokens, size = len(shown.network.blocks), rows * columns, shown.network.config.patch
            t, block, patch = min(max(float(t), 0.01), 1.0), min(int(block), blocks - 1), min(int(patch), tokens - 1)
            text = f"{rows} x {columns} = {tokens} tokens, one for each patch of {size} x {size} latent pixels"
            try:
                vectors = gr.update(value=shown.modulation_figure(t), visible=True)
            except UserError as error:
                vectors, text = gr.update(value=None, visible=False), f"{text}; {error}"
            figures = shown.patch_figure(patch), shown.attention_figure(t, block, patch), shown.prediction_figure(t)
            return *figures, shown.channel_figure(t), vectors, text, block, patch

    def update_model(name: str) -> tuple:
        """The ranges of another model, without the figures of the one before."""
        with controls.show_errors():
            sliders = [gr.update(**each) for each in _ranges(backend.model(name))]
            return *[None] * 4, gr.update(value=None, visible=False), "", *sliders

    def select_patch(name: str, label: int, seed: float, event: gr.SelectData) -> int:
        with controls.show_errors():
            return inspection(name, label, seed).patch_at(*event.index)

    inputs = [model, label, seed, t, block, patch]
    outputs = [patches, attention, predictions, channels, modulation, message, block, patch]
    options: dict[str, Any] = {**controls.QUIET, "show_progress": "minimal"}
    button.click(inspect, inputs, outputs, trigger_mode="always_last", **options)
    for slider in (t, block, patch):
        slider.release(inspect, inputs, outputs, trigger_mode="always_last", **options)
    patches.select(select_patch, [model, label, seed], patch, **options).then(inspect, inputs, outputs, **options)
    model.change(update_model, model, outputs, **controls.QUIET)


def _ranges(model: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sliders of a model's blocks and patches; hidden where there is one or none, as in a U-Net."""
    counts = (1, 1)
    if model.network.supports.tokens:
        patch = cast(DiT, model.network).config.patch
        rows, columns = (side // patch for side in model.network.spec.latent.size)
        counts = len(model.network.block_list()), rows * columns
    blocks, patches = ({"value": 0, "maximum": max(count - 1, 1), "visible": count > 1} for count in counts)
    return blocks, patches
