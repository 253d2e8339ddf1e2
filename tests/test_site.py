"""The site of the documentation builds, and a dead link, of a page or of the API reference, fails it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

mkdocs = pytest.importorskip("mkdocs.commands.build", reason="the site needs the extra docs")
Abort = pytest.importorskip("mkdocs.exceptions", reason="the site needs the extra docs").Abort

ROOT = Path(__file__).resolve().parent.parent
DEAD = """
[a page](nowhere.md), [a section](api.md#nowhere), [a file](../nowhere.py), [an object][ditlab.nowhere]
and [a page that is there](cli.md#exit-codes), [a file that is there](../LICENSE)
"""


def build(pages: Path, site: Path, **changes: Any) -> None:
    from mkdocs.config import load_config

    mkdocs.build(load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=str(site), **changes))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")


def test_the_site_builds_with_every_page_and_every_public_name(tmp_path: Path):
    build(ROOT / "docs", tmp_path)
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in tmp_path.glob("*.html")}
    front = (tmp_path / "index.html").read_text()
    assert pages <= {
        target.removesuffix(".html") for target in re.findall(r'href="([\w-]+\.html)"', front)
    }  # in the nav
    import ditlab

    reference = (tmp_path / "api.html").read_text()
    for name in ditlab.__all__:
        assert f"ditlab.{name}<" in reference
    for method in ("sample", "denoise", "encode", "decode"):
        assert f'id="ditlab.pipelines.pipeline.Pipeline.{method}"' in reference
    assert "https://fonts" not in front


def test_dead_links_of_every_kind_fail_the_site(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Links\n{DEAD}")
    (pages / "api.md").write_text("# Reference\n\n::: ditlab.errors.UserError\n\n::: ditlab.errors.Nothing\n")
    (pages / "cli.md").write_text("# cli\n\n## Exit codes\n")
    nav = ["index.md", "api.md", "cli.md"]
    with caplog.at_level(logging.WARNING), pytest.raises(Abort):
        build(pages, tmp_path / "site", nav=nav)
    assert "ditlab.errors.Nothing could not be found" in caplog.text
    caplog.clear()
    (pages / "api.md").write_text("# Reference\n\n::: ditlab.errors.UserError\n")
    with caplog.at_level(logging.WARNING), pytest.raises(Abort):
        build(pages, tmp_path / "site", nav=nav)
    found = [record.getMessage() for record in caplog.records]
    for dead in ("nowhere.md", "#nowhere", "nowhere.py", "ditlab.nowhere"):
        assert any(dead in line for line in found), found
    assert not any("LICENSE" in line or "exit-codes" in line for line in found)
