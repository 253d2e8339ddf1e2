"""The page, mounted on the application of the API."""

from __future__ import annotations

import html
from hmac import compare_digest

import gradio as gr
from anyio import CapacityLimiter
from fastapi import FastAPI

from ditlab.playground.backend import Backend
from ditlab.playground.page.compare_tab import compare_tab
from ditlab.playground.page.generate_tab import generate_tab
from ditlab.playground.page.inspect_tab import inspect_tab
from ditlab.playground.page.nearest_tab import nearest_tab
from ditlab.playground.page.runs_tab import runs_tab

CACHE = (600, 3600)  # seconds: interval of the clean-up of the page's image files, and their lifetime
MAX_CONCURRENT = 8  # events of one kind
MAX_QUEUE = 64  # events
THREADS = 40  # for events
FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # installed fonts: none is downloaded
CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto; }
.block:has(> label[data-testid="block-label"]):not(#run-samples) { display: flex; flex-direction: column; }
.block:not(#run-samples) > label[data-testid="block-label"] { position: static !important; width: fit-content; }
.wide, #runs-table { contain: inline-size; overflow-x: auto !important; }
.wide .image-frame, .wide .image-container, .wide button:has(> .image-frame) { display: block; text-align: left; }
.classes .grid-wrap { min-height: 0; max-height: 420px; }
.classes .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; }
.classes .caption-label { left: 4%; right: auto; bottom: 4%; padding: 0 4px; font-size: 0.75em; max-width: 92%; }
@media (min-width: 701px) { .pixels img { image-rendering: pixelated; } }
@media (max-width: 500px) {
  .tab-container button { padding: 0 4px; font-size: 14px; }
  .wide img { min-width: 620px; }
}
:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 1px; }
"""


def build_page(backend: Backend) -> gr.Blocks:
    """The page with its tabs."""
    with gr.Blocks(title="ditlab", analytics_enabled=False, delete_cache=CACHE) as page:
        names = ", ".join(html.escape(name) for name in backend.names)
        gr.Markdown(f"# ditlab\nModels: {names}")
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate_tab(backend, page)
            with gr.Tab("Compare"):
                compare_tab(backend)
            with gr.Tab("Runs") as tab:
                runs_tab(backend, tab)
            with gr.Tab("Inspect"):
                inspect_tab(backend)
            with gr.Tab("Nearest"):
                nearest_tab(backend)
    page.limiter = CapacityLimiter(THREADS)  # separate from the API's threads
    return page.queue(default_concurrency_limit=MAX_CONCURRENT, max_size=MAX_QUEUE)


def mount_page(app: FastAPI, backend: Backend, key: str) -> FastAPI:
    """Mount the page at the root of the application; with an API key it has a login, whose password is the key."""
    return gr.mount_gradio_app(
        app,
        build_page(backend),
        path="/",
        auth=(lambda _, password: compare_digest(password.encode(), key.encode())) if key else None,
        auth_message="Enter the API key of this server as the password, and any user name." if key else None,
        theme=gr.themes.Soft(font=FONT, font_mono=MONO),
        css=CSS,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1mb",
    )
