"""Inside: what a model does to one image."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from ditlab.errors import UserError
from ditlab.playground.inside import Subject
from ditlab.playground.page import controls
from ditlab.playground.studio import Studio

KEPT = 16  # images whose latents are remembered


def inside_tab(studio: Studio) -> None:
    """An image, cut into patches; sliders for the time and the block; what the model does there."""
    known: dict[tuple[str, int, int], Subject] = {}  # the last few images that were looked at
    one = threading.Lock()

    def subject(name: str, label: int, seed: float) -> Subject:
        request = studio.request(controls.asked(model=name, labels=controls.wanted([label]), seed=seed or 0, n=1))
        key = (name, int(request.labels[0]), request.seed)
        with one:
            found = known.get(key)
        if found is None:
            found = Subject(studio.model(name), key[1], key[2], *studio.latent(name, request))
            with one:
                while len(known) >= KEPT:
                    known.pop(next(iter(known)))
                known[key] = found
        return found

    with gr.Row():
        name = controls.model_choice(studio)
        label = controls.label_choice(studio)
        seed = controls.seed_choice()
    with gr.Row():
        t = gr.Slider(0.01, 1, value=0.5, step=0.01, label="Time t", info="0 is data, 1 is noise")
        block = gr.Slider(0, 11, value=0, step=1, label="Block", info="of which attention is shown")
        patch = gr.Slider(0, 15, value=0, step=1, label="Patch", info="or click it in the image")
    go = gr.Button("Look inside", variant="primary")
    message = gr.Markdown("", elem_id="inside-message")
    with gr.Row():
        cut = gr.Image(
            label="The image, cut into patches", interactive=False, format="png", type="pil", buttons=[], elem_id="patches",
            min_width=280, alt_text="the image with lines between its patches",
        )  # fmt: skip
        attention = gr.Image(
            label="Attention: what the chosen patch takes of each", interactive=False, format="png", type="pil",
            buttons=["fullscreen"], elem_id="attention", min_width=280, alt_text="maps of attention",
        )  # fmt: skip
    predictions = gr.Image(
        label="x_t at each t, and the x0 the model makes of it in one step", interactive=False, format="png", type="pil",
        buttons=["fullscreen"], elem_classes=["wide"], elem_id="predictions", alt_text="noised and predicted",
    )  # fmt: skip
    channels = gr.Image(
        label="The latent z, noised, and as the model expects it", interactive=False, format="png", type="pil",
        buttons=["fullscreen"], elem_classes=["pixels"], elem_id="channels", alt_text="channels of the latent",
    )  # fmt: skip
    modulation = gr.Image(
        label="Modulation: root mean square of each block's shift, scale and gate", interactive=False, format="png",
        type="pil", buttons=["fullscreen"], elem_classes=["wide"], elem_id="modulation", alt_text="strength of modulation",
    )  # fmt: skip

    def look(name: str, label: int, seed: float, t: float, block: float, patch: float) -> tuple:
        with controls.told():
            looked = subject(name, label, seed)
            rows, columns = looked.patches
            blocks = len(looked.network.blocks)
            t, block, patch = (
                min(max(float(t), 0.01), 1.0),
                min(int(block), blocks - 1),
                min(int(patch), rows * columns - 1),
            )
            try:
                strengths, words = gr.update(value=looked.modulation_figure(t), visible=True), ""
            except UserError as error:
                strengths, words = gr.update(value=None, visible=False), str(error)
            size = looked.network.config.patch
            words = (
                words or f"{rows} x {columns} = {rows * columns} tokens, each a patch of {size} x {size} latent pixels"
            )
            return (
                looked.cut(patch), looked.attention_figure(t, block, patch), looked.predictions(t),
                looked.channels(t),
                strengths, words, gr.update(value=block, maximum=blocks - 1),
                gr.update(value=patch, maximum=rows * columns - 1),
            )  # fmt: skip

    def click(name: str, label: int, seed: float, at: gr.SelectData) -> int:
        with controls.told():
            return subject(name, label, seed).patch_at(*at.index)

    everything = [name, label, seed, t, block, patch]
    outputs = [cut, attention, predictions, channels, modulation, message, block, patch]
    quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
    name.change(lambda name: controls.other_label(studio, name), name, label, **quiet)
    go.click(look, everything, outputs, trigger_mode="always_last", **quiet)
    for slider in (t, block, patch):
        slider.release(look, everything, outputs, trigger_mode="always_last", **quiet)
    cut.select(click, [name, label, seed], patch, **quiet).then(look, everything, outputs, **quiet)
