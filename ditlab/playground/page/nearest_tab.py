"""Nearest: whether a made image is a copy."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr
import numpy as np

from ditlab.errors import UserError
from ditlab.pipelines import grid
from ditlab.playground.compute import computed
from ditlab.playground.nearest import MOST, SPACES, TrainingImages
from ditlab.playground.page import controls
from ditlab.playground.studio import Studio
from ditlab.recipes.samples import training_data
from ditlab.runtime.console import markdown_table

CLOSEST = 6
ROWS = 8


def nearest_tab(studio: Studio) -> None:
    """Made images on the left, the training images closest to each beside it."""
    known: dict[tuple[str, str], TrainingImages] = {}
    one = threading.Lock()  # training images are looked at by one at a time

    def training(name: str, space: str, progress: gr.Progress) -> TrainingImages:
        with one:
            if (name, space) not in known:
                config = training_data(studio.sources[name], studio.model(name))
                if config is None:
                    raise UserError(f"it is not known what {name} was trained on: no recipe is beside it")
                known.clear()  # of which one set is in memory

                def tell(share: float) -> None:
                    progress(share, "training images")

                known[name, space] = TrainingImages(config, space, tell)  # minutes: beside the networks
            return known[name, space]

    with gr.Row():
        name = controls.model_choice(studio)
        labels = controls.labels_choice(studio)
        seed = controls.seed_choice()
        most = min(ROWS, studio.served.limits.images)
        count = gr.Slider(1, most, value=min(4, most), step=1, label="Images")
        space = gr.Radio(list(SPACES), value=SPACES[0], label="Closest in", info="features take longer the first time")
    go = gr.Button("Find the closest training images", variant="primary")
    picture = gr.Image(
        label="Made, and the closest training images", interactive=False, format="png", type="pil", buttons=["fullscreen"],
        elem_classes=["wide"], elem_id="nearest", alt_text="made images beside the closest training images",
    )  # fmt: skip
    words = gr.Markdown("", elem_id="nearest-words")

    def find(
        name: str,
        labels: list[int],
        seed: float,
        count: float,
        space: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:
        with controls.told():
            if count > ROWS:
                raise UserError(f"{count:g} images are too many; at most {ROWS}")
            asked = controls.asked(model=name, labels=controls.wanted(labels), seed=seed, n=count)
            request = studio.request(asked)
            images = studio.make(name, request)
            known = training(name, space, progress)
            found = computed(known.closest, images, CLOSEST)
            across = np.concatenate([images[:, None], found.images], axis=1)
            rows = [studio.label_name(name, int(label)) or f"image {k}" for k, label in enumerate(request.labels)]
            columns = ["made", *(f"{k}." for k in range(1, found.images.shape[1] + 1))]
            paper = grid(across.reshape(-1, *across.shape[2:]), across.shape[1], rows, columns)
            searched = len(known.rows)
            of = (
                f", drawn from {known.total:,} (of more than {MOST:,} so many are looked at)"
                if searched < known.total
                else ""
            )
            cells = [
                (controls.plain(row), f"{distances[0]:.4g}", f"{beside:.4g}")
                for row, distances, beside in zip(rows, found.distances, found.beside, strict=True)
            ]
            table = markdown_table(("", "to the closest", "from that one to its own closest"), cells)
            text = f"Of {searched:,} training images{of}, by distance in {space}. A copy has a distance near 0."
            return paper, "\n".join([text, "", *table])

    quiet: dict[str, Any] = {"api_visibility": "private"}
    name.change(lambda name: controls.other_labels(studio, name), name, labels, **quiet)
    go.click(find, [name, labels, seed, count, space], [picture, words], trigger_mode="once", **quiet)
