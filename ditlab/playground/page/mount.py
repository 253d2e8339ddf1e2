"""The page as a whole, on the server's own application."""

from __future__ import annotations

import html
from hmac import compare_digest

import gradio as gr
from anyio import CapacityLimiter
from fastapi import FastAPI

from ditlab.playground.page.compare_tab import compare_tab
from ditlab.playground.page.generate_tab import generate_tab
from ditlab.playground.page.inside_tab import inside_tab
from ditlab.playground.page.nearest_tab import nearest_tab
from ditlab.playground.page.runs_tab import runs_tab
from ditlab.playground.studio import Studio

KEPT = (600, 3600)  # seconds: how often pictures of the page are looked through, and how old they become
SIDE_BY_SIDE = 8  # events of one kind at a time
WAITING = 64  # events that may wait
THREADS = 40  # in which they are worked on
FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the machine: nothing is fetched
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
.block:has(> label[data-testid="block-label"]):not(#run-samples) { display: flex; flex-direction: column; }
.block:not(#run-samples) > label[data-testid="block-label"] { position: static !important; width: fit-content; }
.wide, #runs-table { contain: inline-size; overflow-x: auto !important; }
.wide .image-frame, .wide .image-container, .wide button:has(> .image-frame) { display: block; text-align: left; }
.classes .grid-wrap { min-height: 0; max-height: 420px; }
.classes .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; }
.classes .caption-label { left: 4%; right: auto; bottom: 4%; padding: 0 4px; font-size: 0.75em; max-width: 92%; }
@media (min-width: 701px) { .pixels img { image-rendering: pixelated; } }
@media (max-width: 500px) {
  .tab-container button { padding: 0 6px; font-size: 14px; }
  .gradio-container { padding: 8px !important; }
  .wide img { min-width: 620px; }
}
:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 1px; }
"""


def build_page(studio: Studio) -> gr.Blocks:
    """The page of some models and runs."""
    with gr.Blocks(title="ditlab", analytics_enabled=False, delete_cache=KEPT) as page:
        names = ", ".join(html.escape(name) for name in studio.names)
        gr.Markdown(f"# ditlab\nDiffusion transformers, looked at: {names}.")
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate_tab(studio, page)
            with gr.Tab("Compare"):
                compare_tab(studio)
            with gr.Tab("Runs"):
                runs_tab(studio)
            with gr.Tab("Inside"):
                inside_tab(studio)
            with gr.Tab("Nearest"):
                nearest_tab(studio)
    page.limiter = CapacityLimiter(THREADS)  # of its own: those of the API stay free
    return page.queue(default_concurrency_limit=SIDE_BY_SIDE, max_size=WAITING)


def mount_page(app: FastAPI, studio: Studio, key: str) -> FastAPI:
    """Put the page at the application's root; behind a login where there is a key, which is the password."""
    return gr.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        auth=(lambda _, password: compare_digest(password.encode(), key.encode())) if key else None,
        auth_message="The password is this server's key; any name will do." if key else None,
        theme=gr.themes.Soft(font=FONT, font_mono=MONO),
        css=CSS,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1mb",
    )
