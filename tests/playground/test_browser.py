"""The page in Chromium. DITLAB_SCREENSHOTS names a folder for the screenshots of the documentation.

Its folder ``tabs`` gets those of every tab, at three widths, light and dark.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from colours import captioned
from forked import Forked
from PIL import Image
from playwright.sync_api import BrowserContext, Download, Locator, Page, expect, sync_playwright

from ditlab.interop.find import find_model
from ditlab.pipelines import Pipeline, grid
from ditlab.playground.backend import GUIDANCE
from ditlab.playground.page import runs_tab
from ditlab.playground.served import Limits, ModelServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = Path(os.environ["DITLAB_SCREENSHOTS"]).resolve() if "DITLAB_SCREENSHOTS" in os.environ else None
TABS = ("Generate", "Compare", "Runs", "Inspect", "Nearest")
WAIT = 60_000 if SCREENSHOTS is None else 300_000  # milliseconds until a test fails
Listening = Callable[..., AbstractContextManager[str]]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not tested in a browser"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # inside gradio
]


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """One browser with one cache, so that the page's scripts load once."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--disable-extensions"],
        )
        yield opened.new_context(reduced_motion="reduce")
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits_run: Path) -> Path:
    """The folder of the server's runs."""
    runs = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(digits_run, runs / "digits")
    return runs


@pytest.fixture(scope="module")
def fashion() -> Pipeline:
    return find_model("fashion")


@pytest.fixture(scope="module")
def address(folder: Path, fashion: Pipeline, listening: Listening) -> Iterator[str]:
    """A server of two models, whose page updates its runs more often than usual."""
    models = ModelServer({"fashion": fashion, "digits": Pipeline.load(folder / "digits")}, Limits(steps=1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        if SCREENSHOTS is None:
            patch.setattr(runs_tab, "INTERVAL", 0.5)
        with listening(models, {"fashion": "fashion", "digits": "runs/digits"}, Path("runs")) as found:
            yield found


class Visit:
    """An open page, and the errors on it."""

    def __init__(self, browser: BrowserContext, address: str, width: int = 1280, height: int = 900):
        self.page: Page = browser.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.set_default_timeout(WAIT)
        self.errors = list[str]()
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        own = (address, "data:", "blob:", f"ws{address.removeprefix('http')}")
        self.page.on("request", lambda sent: None if sent.url.startswith(own) else self.errors.append(sent.url))
        self.page.goto(address)
        self.button("Generate").wait_for()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def image(self, place: str) -> np.ndarray:
        """The image in a component, as the server sent it."""
        source = self.page.locator(f"#{place} img").first.get_attribute("src")
        assert source is not None
        return np.asarray(Image.open(io.BytesIO(httpx.get(source).content)).convert("RGB"))

    def number(self, label: str, value: float) -> None:
        field = self.page.get_by_label(f"number input for {label}").locator("visible=true")
        field.fill(str(value))
        field.press("Enter")

    def choose(self, label: str, value: str) -> None:
        field = self.page.get_by_label(label, exact=True).locator("visible=true").first
        field.click()
        self.page.get_by_role("option", name=value, exact=True).locator("visible=true").click()

    def status(self, words: str | re.Pattern[str], place: str = "status") -> None:
        expect(self.page.locator(f"#{place}")).to_contain_text(words, timeout=WAIT)

    def download(self, name: str) -> Path:
        with self.page.expect_download() as waiting:
            self.button(name).locator("visible=true").click()
        found: Download = waiting.value
        return Path(found.path())

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        until = time.monotonic() + WAIT / 1000
        while not true():
            assert time.monotonic() < until
            self.page.wait_for_timeout(50)

    def settings(self) -> dict[str, Any]:
        """The settings in the text of the PNG."""
        return json.loads(Image.open(io.BytesIO(self.download("Download PNG").read_bytes())).info["ditlab"])

    def keep(self, name: str) -> None:
        """Write a screenshot for the documentation if DITLAB_SCREENSHOTS is set."""
        if SCREENSHOTS is not None:
            self.page.mouse.move(0, 0)
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)  # creates folders

    def close(self) -> None:
        self.page.close()
        assert self.errors == []


@pytest.fixture
def visit(browser: BrowserContext, address: str) -> Iterator[Visit]:
    opened = Visit(browser, address)
    yield opened
    opened.close()


def test_images_appear_step_by_step_and_equal_seeds_give_equal_images(visit: Visit, fashion: Pipeline):
    page, count = visit.page, 4 if SCREENSHOTS is None else 16
    visit.number("Images", count)
    page.get_by_label("Thumbnail 9 of 10").click()  # the image of a bag
    expect(page.locator(".token")).to_have_count(1)
    page.get_by_label("Thumbnail 8 of 10").click()  # and of a sneaker
    expect(page.locator(".token")).to_have_count(2)
    visit.page.get_by_label("Seed", exact=True).locator("visible=true").fill("3")
    visit.button("Generate").click()
    visit.status(re.compile(r"step \d+ of 25"))
    early = visit.image("images")
    visit.status(f"{count} images in")
    late = visit.image("images")
    assert early.shape == late.shape
    assert not np.array_equal(early, late)
    expected = fashion.sample(["bag", "sneaker"], guidance=GUIDANCE, seed=3, count=count)
    assert np.abs(late.astype(int) - np.asarray(grid(expected, round(count**0.5)).convert("RGB"))).max() <= 1
    visit.status(f"ditlab sample fashion --count {count} --seed 3 --labels bag,sneaker --guidance {GUIDANCE}")
    first = visit.download("Download PNG").read_bytes()
    settings = visit.settings()
    assert (settings["model"], settings["seed"], settings["labels"][:2]) == ("fashion", 3, ["bag", "sneaker"])
    with zipfile.ZipFile(visit.download("Download ZIP of PNGs")) as archive:
        names = archive.namelist()
        assert len(names) == count
        one = Image.open(io.BytesIO(archive.read(names[1])))
    assert names[1] == "000001-sneaker.png"
    assert np.abs(np.asarray(one).astype(int) - expected[1, ..., 0]).max() <= 1
    assert json.loads(one.info["ditlab"])["image"] == 1
    assert visit.image("filmstrip").shape[1] > 600
    visit.keep("page-generate")
    visit.button("Generate").click()
    visit.status("step")
    visit.status(f"{count} images in")
    assert visit.download("Download PNG").read_bytes() == first


def test_an_interpolation_between_two_labels(visit: Visit, folder: Path):
    page = visit.page
    visit.choose("Model", "digits")
    expect(page.get_by_label("Thumbnail 10 of 10")).to_be_visible()
    page.get_by_role("button", name="Interpolate between").click()
    visit.choose("Label of the last image", "7")
    visit.button("Interpolate").click()
    visit.status("8 images in")
    assert visit.settings()["to"] == {"seed": 1, "label": "7"}
    model = Pipeline.load(folder / "digits")
    made = visit.image("images").astype(int)
    ends = [model.sample([label], guidance=GUIDANCE, seed=seed)[0] for label, seed in ((0, 0), (7, 1))]
    whole = np.asarray(grid(np.stack([ends[0], *[ends[0]] * 6, ends[1]]), 4).convert("RGB")).astype(int)
    height, width = whole.shape[0] // 2, whole.shape[1] // 4
    assert np.abs(made - whole)[:height, :width].max() <= 1
    assert np.abs(made - whole)[height:, -width:].max() <= 1


def test_a_generation_stops_at_its_next_step_and_leaves_nothing_stale(visit: Visit):
    page = visit.page
    expect(page.get_by_label("Thumbnail 10 of 10")).to_be_visible(timeout=WAIT)  # no other images are being denoised
    page.get_by_role("button", name="Sampler, steps").click()
    visit.choose("Sampler", "ddpm")
    visit.number("Images", 4)
    visit.number("Steps", 2)
    visit.button("Generate").click()
    visit.status("4 images in")
    expect(page.locator("#filmstrip")).to_be_visible()
    before = visit.image("images")
    visit.number("Images", 16)
    visit.number("Steps", 1000)
    visit.button("Generate").click()
    visit.status(re.compile(r"step \d+ of 1000"))
    began = time.monotonic()
    visit.button("Stop").click()
    visit.status(re.compile(r"stopped at step \d+ of 1000"))
    assert time.monotonic() - began < 5
    expect(visit.button("Generate")).to_be_enabled()
    assert visit.image("images").shape != before.shape  # the preview of this generation
    expect(page.locator("#filmstrip")).to_be_hidden()
    for name in ("Download PNG", "Download ZIP of PNGs"):
        expect(visit.button(name).locator("visible=true")).to_be_disabled()
    metrics = httpx.get(f"{page.url}metrics").text
    assert 'ditlab_images_under_way{model="fashion"} 0.0' in metrics
    visit.keep("page-stopped")


def test_one_setting_is_compared(visit: Visit, folder: Path):
    visit.tab("Compare")
    if SCREENSHOTS is None:
        visit.choose("Model", "digits")  # faster
    visit.button("Compare").click()
    visit.status("4 rows, 5 columns", "comparison-status")
    visit.keep("page-compare")
    visit.choose("Model", "digits")
    visit.choose("Compared setting", "checkpoint")
    expect(visit.page.get_by_label("Values")).to_have_value("320, 640")
    visit.button("Compare").click()
    visit.status("4 rows, 2 columns", "comparison-status")
    model = Pipeline.load(folder / "digits")
    assert visit.settings()["values"] == ["320 images", "640 images"]
    made = visit.image("comparison").astype(int)
    side = 64  # of a tile, with a gap of 5 on both sides
    last = model.sample([0, 1, 2, 3], guidance=GUIDANCE, seed=0)[..., 0].repeat(8, axis=1).repeat(8, axis=2)
    assert np.abs(made[-side - 5 : -5, -side - 5 : -5, 0] - last[3]).max() <= 1
    visit.page.get_by_label("Values").fill("7")
    visit.button("Compare").click()
    expect(visit.page.get_by_text("digits has no checkpoint at 7 images")).to_be_visible()


def test_runs_are_updated_during_training(visit: Visit, folder: Path, tiny: list[str]):
    images = 16000 if SCREENSHOTS is None else 64000
    flags = f"--train.images {images} --train.log 640 --train.samples 3200 --sample-images 10 --train.checkpoint 3200"
    visit.tab("Runs")
    table = visit.page.locator("#runs-table")
    expect(table).to_contain_text("digits", timeout=WAIT)
    training = Forked("train", "digits", *tiny, *flags.split(), "--out", folder / "live")
    try:
        expect(table).to_contain_text("training", timeout=WAIT)
        visit.choose("Run", "live")
        visit.status(re.compile(rf"training\s+[\d,]+ of {images // 32:,} steps"), "run-facts")
        first = visit.page.locator("#run-facts").inner_text()
        curves = visit.image("run-loss")
        expect(visit.page.locator("#run-facts")).not_to_have_text(first, timeout=WAIT)
        visit.until(lambda: not np.array_equal(visit.image("run-loss"), curves))
        expect(visit.page.locator("#run-samples img").first).to_be_visible(timeout=WAIT)
        visit.keep("page-runs")
        steps = images // 32
        visit.status(re.compile(rf"finished\s+{steps:,} of {steps:,} steps"), "run-facts")
        expect(table).to_contain_text(f"{steps:,} of {steps:,} steps")
    finally:
        training.kill()
        training.wait()


def test_inspect_an_image(visit: Visit):
    page = visit.page
    visit.tab("Inspect")

    def ranges() -> list[str | None]:
        sliders = [page.get_by_label(f"range slider for {name}") for name in ("Block", "Patch")]
        return [slider.get_attribute("max") for slider in sliders]

    assert ranges() == ["5", "48"]  # before the first image: of fashion's 6 blocks and 7 x 7 patches
    visit.choose("Model", "digits")
    visit.until(lambda: ranges() == ["1", "15"])
    visit.button("Inspect").click()
    visit.status("4 x 4 = 16 tokens", "inspect-message")
    visit.choose("Model", "fashion")
    visit.until(lambda: ranges() == ["5", "48"])
    expect(page.locator("#inspect-message")).not_to_contain_text("tokens", timeout=WAIT)  # nothing of the other model
    visit.choose("Label", "sneaker")
    visit.button("Inspect").click()
    visit.status("7 x 7 = 49 tokens", "inspect-message")
    before = visit.image("attention")
    box = page.locator("#patches img").bounding_box()
    assert box is not None
    page.locator("#patches img").click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    expect(page.get_by_label("number input for Patch")).to_have_value("24", timeout=WAIT)
    visit.until(lambda: not np.array_equal(visit.image("attention"), before))
    for place in ("predictions", "channels", "modulation"):
        assert min(visit.image(place).shape[:2]) > 60
    visit.keep("page-inspect")


def test_nearest_training_images(visit: Visit):
    visit.tab("Nearest")
    visit.choose("Model", "digits")
    visit.button("Find nearest training images").click()
    visit.status("Searched 1,797 training images", "nearest-text")
    assert visit.image("nearest").shape[1] > 400
    if SCREENSHOTS is not None:  # of a trained model, whose images must be available
        visit.choose("Model", "fashion")
        visit.page.get_by_label("Labels", exact=True).locator("visible=true").wait_for()
        visit.button("Find nearest training images").click()
        visit.status("Searched 60,000 training images", "nearest-text")
    visit.keep("page-nearest")


def check_widths(visit: Visit, folder: str, widths: tuple[int, ...] = (390, 1280, 1920)) -> None:
    """Show every tab at some widths, light and dark, and keep screenshots in a folder."""
    page = visit.page
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        expect(page.locator("body.dark")).to_have_count(int(theme == "dark"))
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            for tab in TABS:
                visit.tab(tab)
                expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
                panel = page.get_by_role("tabpanel").locator("visible=true")
                page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
                box = panel.bounding_box()
                assert box is not None
                column = min(width, 1200) - 2 * 32  # less margins
                assert box["width"] == pytest.approx(column, abs=1), (theme, width, tab)
                if tab == "Runs":
                    visit.status(re.compile(r"finished\s+[\d,]+ of [\d,]+ steps"), "run-facts")
                visit.keep(f"{folder}/{tab.lower()}-{width}-{theme}")
                if (folder, theme, width, tab) == ("tabs", "light", 390, "Generate"):
                    visit.keep("page-phone")


def test_every_tab_has_one_width_on_every_screen_in_light_and_dark(browser: BrowserContext, address: str):
    visit = Visit(browser, address)
    for tab, button, place, words in (
        ("Generate", "Generate", "status", "16 images in"),
        ("Compare", "Compare", "comparison-status", "4 rows, 5 columns"),
        ("Inspect", "Inspect", "inspect-message", "tokens"),
        ("Nearest", "Find nearest training images", "nearest-text", "Searched 1,797 training images"),
    ):
        visit.tab(tab)
        if SCREENSHOTS is None or tab == "Nearest":
            visit.choose("Model", "digits")  # faster
        visit.button(button).click()
        visit.status(words, place)
    check_widths(visit, "tabs")
    visit.close()


@pytest.mark.parametrize(
    ("seed", "words"), [("1.5", "seed: 1.5 is not a whole number"), ("-1", "seed: "), ("1e16", "seed 1")]
)
def test_a_seed_that_is_not_a_whole_number_is_refused(visit: Visit, seed: str, words: str):
    visit.page.get_by_label("Seed", exact=True).locator("visible=true").fill(seed)
    visit.button("Generate").click()
    expect(visit.page.get_by_text(words)).to_be_visible(timeout=WAIT)
    expect(visit.page.locator("#status")).to_contain_text("click Generate")


def test_the_page_works_by_keyboard(visit: Visit):
    page = visit.page
    expect(page.get_by_label("Thumbnail 1 of 10")).to_be_visible(timeout=WAIT)
    page.get_by_role("tab", name="Generate").focus()
    page.keyboard.press("ArrowRight")
    seen = set[str]()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"))
        if page.evaluate("document.activeElement.innerText") == "Generate" and "Seed" in seen:
            break
    assert {"Model", "Labels", "Thumbnail 1 of 10", "Seed"} <= seen, seen
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    visit.status("16 images in")


def test_a_folder_without_runs(
    browser: BrowserContext, tmp_path: Path, listening: Listening, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    source = folder / "digits"
    with listening(
        ModelServer({"digits": Pipeline.load(source)}, Limits()), {"digits": str(source)}, Path("runs")
    ) as address:
        opened = Visit(browser, address)
        opened.tab("Runs")
        opened.status("No training runs in runs/ yet. ditlab train digits", "runs-hint")
        opened.page.get_by_role("button", name="Studies").click()
        opened.keep("page-empty")
        opened.close()


def test_markup_in_names_is_shown_as_text(browser: BrowserContext, folder: Path, tmp_path: Path, listening: Listening):
    evil = "<img src=x onerror='window.hacked=1'>"
    runs = tmp_path / "runs"
    shutil.copytree(folder / "digits", runs / evil)
    model = Pipeline.load(runs / evil)
    model.names = tuple(f"{evil}{k}" for k in range(10))
    model.save(runs / evil)
    study = runs / f"{evil}-study"
    study.mkdir()
    (study / "plan.json").write_text("{}")
    (study / "report.md").write_text(
        f"# A study\n\n{evil}\n\n<script>window.hacked=1</script>\n\n[x](javascript:alert(1))\n"
    )
    with listening(ModelServer({evil: model}, Limits()), {evil: str(runs / evil)}, runs) as address:
        opened = Visit(browser, address)
        opened.button("Generate").click()
        opened.status("16 images in")
        opened.tab("Compare")
        opened.button("Compare").click()
        opened.status("4 rows, 5 columns", "comparison-status")
        opened.tab("Runs")
        expect(opened.page.locator("#runs-table")).to_contain_text(evil)
        opened.page.get_by_role("button", name="Studies").click()
        opened.status("A study", "study-report")
        opened.tab("Inspect")
        opened.button("Inspect").click()
        opened.status("16 tokens", "inspect-message")
        opened.tab("Nearest")
        opened.button("Find nearest training images").click()
        opened.status("Searched 1,797 training images", "nearest-text")
        assert opened.page.evaluate("window.hacked") is None
        opened.page.close()
        assert [words for words in opened.errors if "404" not in words and words.rsplit("/", 1)[-1] != "x"] == []


def test_the_page_of_a_server_with_a_key_has_a_login(browser: BrowserContext, folder: Path, listening: Listening):
    models = ModelServer({"digits": Pipeline.load(folder / "digits")}, Limits(), key="s3cret")
    with listening(models, {"digits": str(folder / "digits")}, folder) as address:
        assert httpx.get(f"{address}/config").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("wrong")
        with page.expect_response("**/login") as refused:
            page.get_by_role("button", name="Login").click()
        assert refused.value.status == 400
        assert page.get_by_role("button", name="Generate", exact=True).count() == 0
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("s3cret")
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible(timeout=WAIT)
        started = time.monotonic()  # an open page does not delay the shutdown of the server
    assert time.monotonic() - started < 15
    page.close()


@pytest.fixture(scope="module")
def prompt_address(
    tmp_path_factory: pytest.TempPathFactory, colours_run: Path, digits_run: Path, listening: Listening
) -> Iterator[str]:
    """A server of a model of prompts, whose training images are in a folder, and of one of labels."""
    root = tmp_path_factory.mktemp("prompts")
    shutil.copytree(colours_run, root / "runs" / "colours")
    (root / "images").mkdir()
    for k, image in enumerate(captioned().pixels):
        Image.fromarray(image).save(root / "images" / f"{k}.png")
    recipe = json.loads((root / "runs" / "colours" / "recipe.json").read_text())
    recipe["data"] |= {"source": "folder", "path": str(root / "images")}
    (root / "runs" / "colours" / "recipe.json").write_text(json.dumps(recipe))
    models = ModelServer(
        {"colours": Pipeline.load(root / "runs" / "colours"), "digits": Pipeline.load(digits_run)}, Limits()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with listening(models, {"colours": "runs/colours", "digits": str(digits_run)}, Path("runs")) as found:
            yield found


@pytest.fixture
def prompts(browser: BrowserContext, prompt_address: str) -> Iterator[Visit]:
    opened = Visit(browser, prompt_address)
    yield opened
    opened.close()


def write(visit: Visit, label: str, text: str) -> None:
    box(visit, label).fill(text)


def box(visit: Visit, label: str) -> Locator:
    """A visible text box; the text below its label is a part of its name."""
    return visit.page.get_by_label(re.compile(rf"^\s*{label}")).locator("visible=true")


def test_prompts_are_written_or_clicked_and_stand_under_the_images(prompts: Visit, colours_run: Path):
    page, model = prompts.page, Pipeline.load(colours_run)
    expect(page.get_by_label("Labels", exact=True).locator("visible=true")).to_have_count(0)
    prompts.number("Images", 4)
    page.locator("#examples").get_by_role("button", name="a green image").click()
    expect(box(prompts, "Prompts")).to_have_value("a green image")
    prompts.button("Generate").click()
    prompts.status("ditlab sample runs/colours --count 4 --seed 0 --prompt 'a green image' --guidance 2.0")
    expected = model.sample(prompts="a green image", guidance=GUIDANCE, count=4)
    drawn = np.asarray(grid(expected, 2, captions=["a green image"] * 4))
    assert np.abs(prompts.image("images").astype(int) - drawn).max() <= 1
    expect(page.locator("#notes")).to_be_hidden()
    write(prompts, "Prompts", "a red image\n\n  blue and mauve \n")
    write(prompts, "Negative prompt", "a green image")
    prompts.button("Generate").click()
    prompts.status("--prompt 'a red image' 'blue and mauve' --negative 'a green image'")
    note = "prompt 'blue and mauve': words that no training caption has are skipped: 'and', 'mauve'"
    expect(page.locator("#notes textarea")).to_have_value(note)
    texts = ["a red image", "blue and mauve"] * 2
    expected = model.sample(prompts=texts, negative="a green image", guidance=GUIDANCE)
    assert np.abs(prompts.image("images").astype(int) - np.asarray(grid(expected, 2, captions=texts))).max() <= 1
    settings = prompts.settings()
    assert (settings["prompts"], settings["negative"], settings["notes"]) == (texts, "a green image", [note])
    with zipfile.ZipFile(prompts.download("Download ZIP of PNGs")) as archive:
        assert archive.namelist()[:2] == ["000000-a red image.png", "000001-blue and mauve.png"]
    prompts.keep("page-prompts")
    page.get_by_role("button", name="Interpolate between").click()
    expect(box(prompts, "Prompt of the last image")).to_have_value("a red image")  # mounted: it keeps what is written
    write(prompts, "Prompt of the last image", "a blue image")
    prompts.button("Interpolate").click()
    prompts.status("8 images in")
    assert prompts.settings()["to"] == {"seed": 1, "prompt": "a blue image"}
    prompts.choose("Model", "digits")
    expect(page.get_by_label("Labels", exact=True).locator("visible=true")).to_have_count(1)
    expect(box(prompts, "Negative prompt")).to_have_count(0)
    prompts.button("Generate").click()
    prompts.status("ditlab sample")
    assert "negative" not in page.locator("#status").inner_text()


def test_markup_in_prompts_is_shown_as_text_in_every_tab_light_and_dark(prompts: Visit):
    evil = (
        "red `<img src=x onerror='window.hacked=1'>` <script>window.hacked=1</script> ![x](http://x.test/y.png) $$x$$"
    )
    write(prompts, "Prompts", f"{evil}\n{'x' * 10_000}")
    write(prompts, "Negative prompt", evil)
    prompts.button("Generate").click()
    prompts.status("16 images in")
    expect(prompts.page.locator("#notes")).to_be_visible()
    write(prompts, "Prompts", evil)
    prompts.button("Generate").click()
    prompts.status("ditlab sample")
    prompts.status("<script>window.hacked=1</script> ![x](http://x.test/y.png) $$x$$")
    for tab, button, place, words in (
        ("Compare", "Compare", "comparison-status", "4 rows, 5 columns"),
        ("Nearest", "Find nearest training images", "nearest-text", "Searched 24 training images"),
    ):
        prompts.tab(tab)
        write(prompts, "Prompts", evil)
        prompts.button(button).click()
        prompts.status(words, place)
    prompts.tab("Inspect")
    write(prompts, "Prompt", evil)
    prompts.button("Inspect").click()
    prompts.status("2 x 2 = 4 tokens", "inspect-message")
    assert prompts.page.locator("#status img, #nearest-text img").count() == 0
    assert prompts.page.evaluate("window.hacked") is None
    check_widths(prompts, "prompts", (390,) if SCREENSHOTS is None else (390, 1280, 1920))
    prompts.tab("Inspect")
    write(prompts, "Prompt", "r" * 10_001)
    prompts.button("Inspect").click()
    expect(prompts.page.get_by_text("a text of 10,001 characters is too long")).to_be_visible(timeout=WAIT)


def test_prompts_are_compared_side_by_side(prompts: Visit, colours_run: Path):
    prompts.tab("Compare")
    prompts.choose("Compared setting", "prompt")
    expect(prompts.page.get_by_label("Values")).to_have_count(0)
    write(prompts, "Prompts", "red, a colour\nblue\nall is green")
    prompts.number("Rows", 2)
    prompts.button("Compare").click()
    prompts.status("2 rows, 3 columns", "comparison-status")
    model, texts = Pipeline.load(colours_run), ["red, a colour", "blue", "all is green"]
    made = np.stack([model.sample(prompts=text, guidance=GUIDANCE, count=2) for text in texts], axis=1)
    expected = np.asarray(grid(made.reshape(-1, *made.shape[2:]), 3, captions=texts * 2))
    assert np.abs(prompts.image("comparison").astype(int) - expected).max() <= 1
    expect(prompts.page.locator("#comparison-notes textarea")).to_have_value(re.compile("skipped: ',', 'colour'"))
    prompts.keep("page-compare-prompts")
    prompts.choose("Compared setting", "guidance")
    prompts.page.get_by_label("Values").fill("1, 4")
    prompts.button("Compare").click()
    prompts.status("2 rows, 2 columns", "comparison-status")
    made = np.stack([model.sample(prompts=texts[:2], guidance=scale) for scale in (1, 4)], axis=1)
    captions = [text for text in texts[:2] for _ in range(2)]
    expected = np.asarray(
        grid(made.reshape(-1, *made.shape[2:]), 2, (), ["guidance 1", "guidance 4"], captions=captions)
    )
    assert np.abs(prompts.image("comparison").astype(int) - expected).max() <= 1
    prompts.choose("Model", "digits")
    prompts.choose("Compared setting", "prompt")
    prompts.button("Compare").click()
    expect(prompts.page.get_by_text("digits is conditioned on labels, not prompts")).to_be_visible()


def test_a_words_attention_is_inspected(prompts: Visit):
    page = prompts.page
    prompts.tab("Inspect")
    write(prompts, "Prompt", "a mauve red image")
    prompts.button("Inspect").click()
    prompts.status("2 x 2 = 4 tokens", "inspect-message")
    assert page.locator("#word label").all_inner_texts() == ["a", "red", "image"]
    expect(page.locator("#inspect-notes textarea")).to_have_value(re.compile("skipped: 'mauve'"))
    words, before = prompts.image("words"), prompts.image("word-blocks")
    page.locator("#word").get_by_label("red").click()
    prompts.until(lambda: not np.array_equal(prompts.image("word-blocks"), before))
    assert np.array_equal(prompts.image("words"), words)
    prompts.keep("page-words")
    prompts.choose("Model", "digits")
    expect(page.locator("#word")).to_be_hidden()
    expect(page.locator("#words")).to_be_hidden()
