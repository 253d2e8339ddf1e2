"""The tab Inspect: patches, attention, predictions and modulation for one image."""

from __future__ import annotations

import threading
from typing import Any, cast

import gradio as gr

from ditlab.errors import UserError
from ditlab.models import DiT
from ditlab.pipelines import Pipeline
from ditlab.playground.backend import Backend
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.inspection import Inspection
from ditlab.playground.page import controls, prompts
from ditlab.playground.words import word_attention, word_figure, words_figure, words_of

CACHED = 16  # images whose latents are kept


def inspect_tab(backend: Backend) -> None:
    """The image with its patches, sliders for time and block, and the figures."""
    cache: dict[tuple[str, tuple[int, int | str]], Inspection] = {}
    lock = threading.Lock()

    def inspection(name: str, label: int, text: str, seed: float) -> Inspection:
        prompted = backend.model(name).text is not None
        request = controls.build_request(backend, name, [label], [str(text or "")] if prompted else None, seed or 0, 1)
        key = (name, request.first)
        with lock:
            found = cache.get(key)
        if found is None:
            chosen, prompt = backend.model(name), "".join(request.captions)
            condition = run_on_compute_thread(request.condition, chosen)
            images = backend.generate_latent(name, request)
            found = Inspection(chosen, condition, request.seed, *images, prompt, request.notes)
            with lock:
                while len(cache) >= CACHED:
                    cache.pop(next(iter(cache)))
                cache[key] = found
        return found

    with gr.Row():
        model = controls.model_dropdown(backend)
        label = controls.label_dropdown(backend, model)
        text = prompts.prompt_box(backend, model, "Prompt", 1)
        seed = controls.seed_number(info="of the image")
    with gr.Row():
        t = gr.Slider(0.01, 1, value=0.5, step=0.01, label="Time t", info="0 is data, 1 is noise")
        block_range, patch_range = _ranges(backend.model(backend.names[0]))  # of the model that is selected first
        block = gr.Slider(0, **block_range, step=1, label="Block", info="for the attention weights")
        patch = gr.Slider(0, **patch_range, step=1, label="Patch", info="or click it in the image")
    button = gr.Button("Inspect", variant="primary")
    message = gr.Markdown("", elem_id="inspect-message")
    notes = prompts.notes_box("inspect-notes")
    with gr.Row():
        patches = controls.image_output(
            "Patches", "patches", "the image with its patch grid", buttons=[], min_width=280
        )
        attention = controls.image_output(
            "Attention weights of the selected patch", "attention", "maps of attention weights", min_width=280
        )
    words = controls.image_output(
        "Attention to the words of the prompt: mean over heads and blocks", "words", "maps of attention to each word",
        elem_classes=["wide"], visible=False,
    )  # fmt: skip
    word = gr.Radio([], label="Word", visible=False, elem_id="word")
    word_blocks = controls.image_output(
        "Attention to this word in each block: mean over heads", "word-blocks", "maps of attention to a word by block",
        elem_classes=["wide"], visible=False,
    )  # fmt: skip
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

    def inspect(
        name: str, label: int, text: str, seed: float, t: float, block: float, patch: float, word: int | None
    ) -> tuple:
        with controls.show_errors():
            shown = inspection(name, label, text, seed)
            rows, columns = shown.patches
            blocks, tokens, size = len(shown.network.blocks), rows * columns, shown.network.config.patch
            t, block, patch = min(max(float(t), 0.01), 1.0), min(int(block), blocks - 1), min(int(patch), tokens - 1)
            summary = f"{rows} x {columns} = {tokens} tokens, one for each patch of {size} x {size} latent pixels"
            try:
                vectors = gr.update(value=shown.modulation_figure(t), visible=True)
            except UserError as error:
                vectors, summary = _hidden(), f"{summary}; {error}"
            figures = shown.patch_figure(patch), shown.attention_figure(t, block, patch), shown.prediction_figure(t)
            lines = prompts.notes_update(shown.notes)
            return *figures, shown.channel_figure(t), vectors, summary, lines, block, patch, *attended(shown, t, word)

    def attended(shown: Inspection, t: float, word: int | None) -> tuple:
        """Updates of the figures of words, and of the choice between them; hidden for networks that attend to no word."""
        try:
            weights = word_attention(shown, t)
        except UserError:
            return _hidden(), _hidden(choices=[]), _hidden()
        names = words_of(shown)
        chosen = word if isinstance(word, int) and word < len(names) else 0
        choices = gr.update(choices=[(name, k) for k, name in enumerate(names)], value=chosen, visible=True)
        all_words, blocks = words_figure(shown, weights), word_figure(shown, weights, chosen)
        return gr.update(value=all_words, visible=True), choices, gr.update(value=blocks, visible=True)

    def select_word(name: str, label: int, text: str, seed: float, t: float, word: int) -> Any:
        with controls.show_errors():
            shown = inspection(name, label, text, seed)
            return word_figure(shown, word_attention(shown, min(max(float(t), 0.01), 1.0)), int(word))

    def update_model(name: str) -> tuple:
        """The ranges of another model, without the figures of the one before."""
        with controls.show_errors():
            sliders = [gr.update(**each) for each in _ranges(backend.model(name))]
            words = _hidden(), _hidden(choices=[]), _hidden()
            return *[None] * 4, _hidden(), "", prompts.notes_update(()), *sliders, *words

    def select_patch(name: str, label: int, text: str, seed: float, event: gr.SelectData) -> int:
        with controls.show_errors():
            return inspection(name, label, text, seed).patch_at(*event.index)

    inputs = [model, label, text, seed, t, block, patch, word]
    outputs = [
        patches,
        attention,
        predictions,
        channels,
        modulation,
        message,
        notes,
        block,
        patch,
        words,
        word,
        word_blocks,
    ]
    options: dict[str, Any] = {**controls.QUIET, "show_progress": "minimal"}
    button.click(inspect, inputs, outputs, trigger_mode="always_last", **options)
    for slider in (t, block, patch):
        slider.release(inspect, inputs, outputs, trigger_mode="always_last", **options)
    word.input(select_word, [model, label, text, seed, t, word], word_blocks, trigger_mode="always_last", **options)
    patches.select(select_patch, [model, label, text, seed], patch, **options).then(inspect, inputs, outputs, **options)
    model.change(update_model, model, outputs, **controls.QUIET)


def _ranges(model: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sliders of a model's blocks and patches; hidden for fewer than two, as in a U-Net."""
    counts = (1, 1)
    if model.network.supports.tokens:
        patch = cast(DiT, model.network).config.patch
        rows, columns = (side // patch for side in model.network.spec.latent.size)
        counts = len(model.network.block_list()), rows * columns
    blocks, patches = ({"value": 0, "maximum": max(count - 1, 1), "visible": count > 1} for count in counts)
    return blocks, patches


def _hidden(**changes: Any) -> Any:
    return gr.update(value=None, visible=False, **changes)  # a new one each time: gradio changes it
