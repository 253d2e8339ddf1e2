"""Runs: what has been trained under a folder, and what is being trained."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import gradio as gr
from PIL import Image

from ditlab.playground.history import (
    Run,
    evaluations,
    find_runs,
    find_studies,
    sample_count,
    sample_pictures,
    study_report,
)
from ditlab.playground.page import controls
from ditlab.playground.studio import Studio
from ditlab.runtime.console import markdown_table
from ditlab.train import loss_figure

EVERY = 2.0  # seconds from one look at the folder to the next
NEVER = ("", -1, "", 0)  # the run that is drawn, how far it was, its state, and its samples
HEADERS = ("run", "state", "images", "of", "loss", "images/s")
NOTHING = "no run is here yet: `ditlab train digits` makes one in three minutes"


def runs_tab(studio: Studio) -> None:
    """All runs in a table, one of them in pictures, studies below."""
    with gr.Row():
        hint = gr.Markdown(_hint(studio, True), elem_id="runs-hint")
    table = gr.Dataframe(
        headers=list(HEADERS),
        label="Runs",
        interactive=False,
        elem_id="runs-table",
        datatype="str",
        max_height=300,
        wrap=True,
    )
    name = gr.Dropdown([], label="Run", elem_id="run-choice", allow_custom_value=False)
    facts = gr.Markdown("", elem_id="run-facts")
    losses = gr.Image(
        label="Loss, loss by time t, speed", interactive=False, format="png", type="pil", buttons=["fullscreen"], visible=False,
        elem_id="run-loss", elem_classes=["wide"], alt_text="curves of the loss",
    )  # fmt: skip
    samples = gr.Gallery(
        label="Samples through its time", height=560, format="png", interactive=False, visible=False, preview=True,
        elem_id="run-samples", elem_classes=["pixels"], object_fit="contain", buttons=["fullscreen"],
    )  # fmt: skip
    with gr.Accordion("Studies", open=False):
        study = gr.Dropdown([], label="Study", elem_id="study-choice")
        figures = gr.Gallery(
            label="Figures", columns=2, height="auto", format="png", interactive=False, object_fit="contain", visible=False,
            buttons=["fullscreen"],
        )  # fmt: skip
        report = gr.Markdown("", elem_id="study-report")
    shown = gr.State(NEVER)

    def look(chosen: str | None, chosen_study: str | None, before: tuple) -> tuple:
        runs, studies = find_runs(studio.runs), find_studies(studio.runs)
        wanted = chosen if chosen in runs else next(iter(runs), None)
        study = chosen_study if chosen_study in studies else next(iter(studies), None)
        rows = [[run.name, run.state, f"{run.images:,}", f"{run.total:,}", *_last(run)] for run in runs.values()]
        return (
            _hint(studio, bool(runs)), gr.update(value=rows, visible=bool(rows)), _choice(runs, chosen, wanted),
            _choice(studies, chosen_study, study), *_drawn(runs[wanted] if wanted else None, before),
        )  # fmt: skip

    def study_shown(chosen: str | None) -> tuple:
        with controls.told():
            studies = find_studies(studio.runs)
            if chosen not in studies:
                return gr.update(
                    value=None, visible=False
                ), "no study is here yet: `ditlab study scaling --recipe digits`"
            text, pictures = study_report(studies[chosen])
            return gr.update(value=pictures, visible=bool(pictures)), text

    outputs = [hint, table, name, study, facts, losses, samples, shown]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    timer = gr.Timer(EVERY)
    timer.tick(look, [name, study, shown], outputs, trigger_mode="once", **quiet)
    name.input(look, [name, study, shown], outputs, trigger_mode="always_last", **quiet)
    study.change(study_shown, study, [figures, report], **quiet)


def _hint(studio: Studio, some: bool) -> str:
    return (
        f"Runs under `{studio.runs}/`, looked at every {EVERY:g} seconds."
        if some
        else f"In `{studio.runs}/` {NOTHING}."
    )


def _last(run: Run) -> tuple[str, str]:
    if not run.rows:
        return "", ""
    return f"{run.rows[-1]['loss']:.4f}", f"{run.rows[-1]['images_per_second']:,.0f}"


def _choice(found: Iterable[str], chosen: str | None, wanted: str | None) -> Any:
    """A list to choose from; what a person has chosen meanwhile is left alone."""
    names = list(found)
    return gr.update(choices=names, visible=bool(names), **({} if chosen == wanted else {"value": wanted}))


def _drawn(run: Run | None, before: tuple) -> tuple:
    """Facts, curves and samples of a run; nothing new where it has not gone on since."""
    if run is None:
        hidden = gr.update(value=None, visible=False)
        return "", hidden, hidden, NEVER
    now = (run.name, run.images, run.state, sample_count(run))
    if now == tuple(before):
        return gr.skip(), gr.skip(), gr.skip(), now
    curves = Image.open(io.BytesIO(loss_figure(list(run.rows)))) if run.rows else None
    samples = gr.skip()
    if (now[0], now[3]) != (before[0], before[3]):
        pictures = sample_pictures(run)
        last = len(pictures) - 1 if pictures else None
        samples = gr.update(value=pictures, visible=bool(pictures), selected_index=last)
    return _facts(run), gr.update(value=curves, visible=curves is not None), samples, now


def _facts(run: Run) -> str:
    """A table of a run's speed, what was left out, and how it was measured."""
    last = run.rows[-1] if run.rows else {}
    share = f" ({run.images / run.total:.0%})" if run.total else ""
    rows = [(run.state, f"{run.images:,} of {run.total:,} images{share}")]
    speeds = sorted(row["images_per_second"] for row in run.rows)
    if speeds:
        rows.append(("images/s, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    words = {
        "skipped": "steps left out",
        "psnr": "PSNR, dB",
        "mfu": "share of the machine's peak (MFU)",
        "memory_gib": "memory, GiB",
    }
    rows += [(word, f"{last[key]:.4g}") for key, word in words.items() if isinstance(last.get(key), int | float)]
    for evaluation in evaluations(run)[-3:]:
        how, numbers = evaluation["how"], evaluation["numbers"]
        values = ", ".join(f"{name} {number['value']:.4g}" for name, number in numbers.items() if _is_number(number))
        rows.append((controls.plain(how.get("samples", "evaluated")), controls.plain(values)))
    return "\n".join(markdown_table(("", ""), rows))


def _is_number(number: object) -> bool:
    return isinstance(number, dict) and isinstance(number.get("value"), int | float)
