"""The commands and examples of the documents work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ditlab.cli.main import COMMANDS
from ditlab.recipes import NAMES

ROOT = Path(__file__).resolve().parent.parent
# Pages whose examples are complete programs.
EXAMPLES = ("models.md", "diffusion.md", "index.md", "api.md", "howto.md", "own-vae.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == kind]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.splitlines():
                found += [(page.name, part.strip()) for part in line.split("#")[0].split("&&") if "ditlab " in part]
    found = [(page, re.sub(r"^(?:TORCH\w+=1 )?torchrun .*-m ditlab ", "ditlab ", line)) for page, line in found]
    return [(page, line) for page, line in found if line.startswith("ditlab ")]


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_examples_of_a_page_run_in_order(page: str, elsewhere: Path):
    code = blocks(ROOT / "docs" / page, "python")
    assert code
    namespace: dict[str, object] = {}
    for block in code:
        exec(compile(block, page, "exec"), namespace)


def test_the_lines_of_python_in_the_readme_run(elsewhere: Path, capsys: pytest.CaptureFixture):
    (code,) = blocks(ROOT / "README.md", "python")
    assert len(code.strip().splitlines()) <= 7
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(2, 28, 28, 1) (16, 8, 8, 1)\n"


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value)
def test_every_command_in_the_documents_is_one_that_exists(page: str, line: str, ditlab):
    _, command, *rest = shlex.split(line)
    if command in ("help", "version"):
        assert ditlab(command, *rest).code == 0
        return
    assert command in COMMANDS
    flags = [word for word in rest if word.startswith("--")]
    names = [word for word in rest[:1] if not word.startswith("-")]
    recipe = command in ("train", "autoencoder", "encode")
    # `--help` after a known recipe lists all flags.
    known = next((name for name in names if name in NAMES), "digits")
    shown = ditlab(command, *([known] if recipe else []), "--help").out
    for flag in flags:
        assert flag in shown or flag == "--help", f"{page}: {line}"
    if recipe and names and not names[0].isupper():
        assert names[0] in NAMES or names[0].endswith((".py", ".json")) or "/" in names[0], f"{page}: {line}"


def test_make_has_the_two_targets_of_the_readme():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
