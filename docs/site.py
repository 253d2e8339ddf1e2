"""Hook of mkdocs: the pages link to files of the repository, which are not part of the site."""

import logging
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger("mkdocs.plugins.ditlab")


def on_page_markdown(markdown, page, **_):
    """Write a link to a file outside of docs/ as its text and the file's path; one that is not there is a warning."""

    def as_text(link):
        text, path = link[1], link[2].partition("#")[0]
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_path, path)
        return text if text.strip("`") in path else f"{text} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", as_text, markdown)
