"""The tab Runs: training runs and studies in a folder, updated while they train."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import gradio as gr
from PIL import Image

from ditlab.playground.backend import Backend
from ditlab.playground.page import controls
from ditlab.playground.runs import (
    Run,
    evaluations,
    find_runs,
    find_studies,
    sample_count,
    sample_images,
    study_report,
)
from ditlab.runtime.console import markdown_table
from ditlab.train import loss_figure

INTERVAL = 2.0  # seconds between two updates
NOTHING_SHOWN = ("", -1, "", 0)  # name, images, state and sample grids of the run on the page
NO_STUDIES = "No studies yet. `ditlab study scaling --recipe digits` runs one."
HEADERS = ("run", "state", "progress", "loss", "images/s")


def runs_tab(backend: Backend, tab: gr.Tab) -> None:
    """A table of all runs, the curves and samples of one, and studies below."""
    hint = gr.Markdown(_hint(backend, True), elem_id="runs-hint")
    table = gr.Dataframe(
        headers=list(HEADERS), label="Runs", interactive=False, elem_id="runs-table", datatype="str", max_height=300, wrap=True,
        visible=False,
    )  # fmt: skip
    name = gr.Dropdown([], label="Run", elem_id="run-choice", allow_custom_value=False, visible=False)
    facts = gr.Markdown("", elem_id="run-facts")
    losses = controls.image_output(
        "Loss, loss by time t, throughput", "run-loss", "loss curves", elem_classes=["wide"], visible=False
    )
    samples = gr.Gallery(
        label="Samples during training", height=560, format="png", interactive=False, visible=False, preview=True,
        elem_id="run-samples", elem_classes=["pixels"], object_fit="contain", buttons=["fullscreen"],
    )  # fmt: skip
    with gr.Accordion("Studies", open=False):
        study = gr.Dropdown([], label="Study", elem_id="study-choice")
        figures = gr.Gallery(
            label="Figures", columns=2, height="auto", format="png", interactive=False, object_fit="contain", visible=False,
            buttons=["fullscreen"],
        )  # fmt: skip
        report = gr.Markdown(NO_STUDIES, elem_id="study-report")
    shown = gr.State(NOTHING_SHOWN)

    def update(chosen: str | None, chosen_study: str | None, before: tuple) -> tuple:
        runs, studies = find_runs(backend.runs), find_studies(backend.runs)
        run = chosen if chosen in runs else next(iter(runs), None)
        study = chosen_study if chosen_study in studies else next(iter(studies), None)
        rows = [[run.name, run.state, run.progress, *_last(run)] for run in runs.values()]
        return (
            _hint(backend, bool(runs)), gr.update(value=rows, visible=bool(rows)), _choices(runs, chosen, run),
            _choices(studies, chosen_study, study), *_run_updates(runs[run] if run else None, before),
        )  # fmt: skip

    def update_study(chosen: str | None) -> tuple:
        with controls.show_errors():
            studies = find_studies(backend.runs)
            if chosen not in studies:
                return gr.update(value=None, visible=False), NO_STUDIES
            text, images = study_report(studies[chosen])
            return gr.update(value=images, visible=bool(images)), text

    outputs = [hint, table, name, study, facts, losses, samples, shown]
    tab.select(update, [name, study, shown], outputs, trigger_mode="once", **controls.QUIET)  # not only after INTERVAL
    gr.Timer(INTERVAL).tick(update, [name, study, shown], outputs, trigger_mode="once", **controls.QUIET)
    name.input(update, [name, study, shown], outputs, trigger_mode="always_last", **controls.QUIET)
    study.change(update_study, study, [figures, report], **controls.QUIET)


def _hint(backend: Backend, some: bool) -> str:
    if some:
        return f"Training runs in `{backend.runs}/`, updated every {INTERVAL:g} seconds."
    return f"No training runs in `{backend.runs}/` yet. `ditlab train digits` trains a model in about three minutes."


def _last(run: Run) -> tuple[str, str]:
    if not run.rows:
        return "", ""
    return f"{run.rows[-1]['loss']:.4f}", f"{run.rows[-1]['images_per_second']:,.0f}"


def _choices(found: Iterable[str], chosen: str | None, value: str | None) -> Any:
    """An update of a dropdown; sets its value only if needed, so that a selection made meanwhile is kept."""
    names = list(found)
    return gr.update(choices=names, visible=bool(names), **({} if chosen == value else {"value": value}))


def _run_updates(run: Run | None, before: tuple) -> tuple:
    """Updates of the facts, curves and samples of a run; skipped if the run has not changed."""
    if run is None:
        hidden = gr.update(value=None, visible=False)
        return "", hidden, hidden, NOTHING_SHOWN
    now = (run.name, run.images, run.state, sample_count(run))
    if now == tuple(before):
        return gr.skip(), gr.skip(), gr.skip(), now
    curves = Image.open(io.BytesIO(loss_figure(list(run.rows)))) if run.rows else None
    samples = gr.skip()
    if (now[0], now[3]) != (before[0], before[3]):
        images = sample_images(run)
        samples = gr.update(value=images, visible=bool(images), selected_index=len(images) - 1 if images else None)
    return _facts(run), gr.update(value=curves, visible=curves is not None), samples, now


def _facts(run: Run) -> str:
    """A table of a run's progress, throughput and evaluations."""
    last = run.rows[-1] if run.rows else {}
    total = f" of {run.total_images:,} images ({run.images / run.total_images:.0%})" if run.total_images else " images"
    rows = [(run.state, run.progress), ("trained on", f"{run.images:,}{total}")]
    speeds = sorted(row["images_per_second"] for row in run.rows)
    if speeds:
        rows.append(("images/s, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    titles = {"skipped": "skipped steps", "psnr": "PSNR, dB", "mfu": "MFU", "memory_gib": "memory, GiB"}
    rows += [(title, f"{last[key]:.4g}") for key, title in titles.items() if isinstance(last.get(key), int | float)]
    for evaluation in evaluations(run)[-3:]:
        how, numbers = evaluation["how"], evaluation["numbers"]
        values = ", ".join(f"{name} {number['value']:.4g}" for name, number in numbers.items() if _is_number(number))
        rows.append((controls.escape_markdown(how.get("samples", "evaluation")), controls.escape_markdown(values)))
    return "\n".join(markdown_table(("", ""), rows))


def _is_number(number: object) -> bool:
    return isinstance(number, dict) and isinstance(number.get("value"), int | float)
