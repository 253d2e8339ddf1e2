"""The tab Nearest: generated images next to the nearest training images, to find memorised ones."""

from __future__ import annotations

import threading

import gradio as gr
import numpy as np

from ditlab.errors import UserError
from ditlab.pipelines import grid
from ditlab.playground.backend import Backend
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.nearest import SPACES, TrainingImages
from ditlab.playground.page import controls, prompts
from ditlab.recipes.samples import training_data
from ditlab.runtime.console import markdown_table

NEIGHBOURS = 6
MAX_ROWS = 8


def nearest_tab(backend: Backend) -> None:
    """Settings above, the grid and a table of distances below."""
    cache: dict[tuple[str, str], TrainingImages] = {}  # one set at most
    lock = threading.Lock()

    def training_images(name: str, space: str, progress: gr.Progress) -> TrainingImages:
        with lock:
            if (name, space) not in cache:
                config = training_data(backend.sources[name], backend.model(name))
                if config is None:
                    raise UserError(f"the training data of {name} is unknown: its folder has no recipe.json")
                cache.clear()

                def update(fraction: float) -> None:
                    progress(fraction, "reading training images")

                cache[name, space] = TrainingImages(config, space, update)  # minutes: not in the compute thread
            return cache[name, space]

    with gr.Row():
        model = controls.model_dropdown(backend)
        labels = controls.labels_dropdown(backend, model)
        texts = prompts.prompt_box(backend, model)
        seed = controls.seed_number()
        count = controls.count_slider(backend, MAX_ROWS, 4)
        info = "features: EfficientNet-Lite0, slower on first use"
        space = gr.Radio(list(SPACES), value=SPACES[0], label="Distance in", info=info)
    button = gr.Button("Find nearest training images", variant="primary")
    image = controls.image_output(
        "Generated images and their nearest training images", "nearest", "generated images and nearest training images",
        elem_classes=["wide"],
    )  # fmt: skip
    text = gr.Markdown("", elem_id="nearest-text")

    def search(
        name: str, labels: list[int], text: str, seed: float, count: float, space: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:  # fmt: skip
        with controls.show_errors():
            if count > MAX_ROWS:
                raise UserError(f"{count:g} images are too many; at most {MAX_ROWS}")
            chosen = prompts.chosen_prompts(backend, name, text)
            request = controls.build_request(backend, name, labels, chosen, seed, count)
            generated = backend.generate(name, request)
            training = training_images(name, space, progress)
            found = run_on_compute_thread(training.search, generated, NEIGHBOURS)
            tiles = np.concatenate([generated[:, None], found.images], axis=1)
            rows = backend.row_names(name, request)
            columns = ["generated", *(f"{k}." for k in range(1, found.images.shape[1] + 1))]
            searched, total = len(training.rows), training.total
            subset = f" (a random subset of {total:,})" if searched < total else ""
            cells = [
                (controls.escape_markdown(row), f"{distances[0]:.4g}", f"{reference:.4g}")
                for row, distances, reference in zip(rows, found.distances, found.reference, strict=True)
            ]
            titles = (
                "image",
                "distance to its nearest training image",
                "distance from that to its own nearest neighbour",
            )
            summary = (
                f"Searched {searched:,} training images{subset} by distance in {space}. A copy has a distance near 0."
            )
            table = "\n".join([summary, "", *markdown_table(titles, cells)])
            return grid(tiles.reshape(-1, *tiles.shape[2:]), tiles.shape[1], rows, columns), table

    inputs = [model, labels, texts, seed, count, space]
    button.click(search, inputs, [image, text], trigger_mode="once", api_visibility="private")
