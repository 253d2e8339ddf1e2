"""The commands of docs/first-hour.md work as typed, in order, with flags that shorten them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from PIL import Image

PAGE = Path(__file__).resolve().parent.parent / "docs" / "first-hour.md"
SHORTER = {
    "train": "--train.images 128 --model.depth 1 --model.width 32 --model.heads 2 --sample.steps 2 --sample-images 4",
    "sample": "--steps 2 --no-filmstrip",
}
LONG = ("evaluate", "play", "import")  # a feature network's work on a CPU, a server, a file of 2.7 GB: tested elsewhere


def typed() -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip() for kind, block in blocks if not kind for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ditlab ")]


def test_a_new_user_comes_from_the_installation_to_samples_of_their_own_folder(ditlab, pictures, elsewhere: Path):
    pictures(elsewhere / "photos", ("cat", "dog"), 4)
    commands = [words for words in typed() if words[0] not in LONG]
    assert len(commands) >= 8
    outputs = []
    for words in commands:
        ended = ditlab(*words, *SHORTER.get(words[0], "").split())
        outputs.append(ended.out)
        assert (ended.code, ended.err) == (0, ""), (words, ended)
    assert any("8 images of 3x32x32, 2 classes" in out for out in outputs)
    assert any("chosen at the start of this run" in out for out in outputs)  # the same command again
    for name in ("fashion.png", "samples.png", "cats.png", "runs/folder/samples/000000000128.png"):
        with Image.open(elsewhere / name) as picture:
            assert min(picture.size) >= 32
    assert (elsewhere / "runs/short/model.safetensors").is_file()


def test_the_mistake_on_the_page_prints_what_the_page_says(refused, elsewhere: Path):
    shown = re.search(r"^\$ ditlab (.*)\n(ditlab: .*\n)", PAGE.read_text(), flags=re.MULTILINE)
    assert shown is not None
    assert refused(shlex.split(shown[1])) == shown[2]
