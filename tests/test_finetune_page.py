"""The commands of docs/finetune.md work as typed, in order, with flags and files that shorten them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from specs import image_spec

from ditlab import load
from ditlab.interop import official
from ditlab.models import DiTConfig, build

PAGE = Path(__file__).resolve().parent.parent / "docs" / "finetune.md"
SHORT = "--train.images 32 --train.batch 16 --sample.steps 1 --sample-images 2"
TINY = "--model.depth 1 --model.width 32 --model.heads 2 --data.size 16"
SHORTER = {"sample": "--count 4 --steps 1 --no-filmstrip", "import": "--heads 2 --vae pixels"}


def typed() -> list[list[str]]:
    """The words of the page's commands, after ``ditlab``."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip() for kind, block in blocks if not kind for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ditlab ")]


def test_a_new_user_comes_from_a_model_to_samples_of_a_fine_tuned_one(
    ditlab: Callable, pictures: Callable, elsewhere: Path
):
    for name, classes in {"birds": ("robin", "wren"), "photos": ("cat", "wren"), "clothes": ("bag", "hat")}.items():
        pictures(elsewhere / name, classes, 4)
    network = build(DiTConfig(depth=1, width=32, heads=2, patch=2), image_spec(3, 16, 16, 1000, learned_variance=True))
    torch.save(official.state_dict(network), "DiT-XL-2-256x256.pt")  # type: ignore[arg-type]
    commands, outputs = typed(), dict[str, str]()
    assert sum("--init" in words for words in commands) >= 3
    for words in commands:
        flags = SHORTER.get(words[0], SHORT) + (f" {TINY}" if words[0] == "train" and "--init" not in words else "")
        ended = ditlab(*words, *flags.split())
        assert (ended.code, ended.err) == (0, ""), (words, ended)
        outputs[words[-1]] = ended.out
    assert "new: label table (1 of 2 classes: cat)" in outputs["photos"]
    assert "new: label table (1 of 2 classes: hat)" in outputs["clothes"]
    assert "new: label table (2 classes: cat, wren)" in outputs["photos-xl"]
    with Image.open("wrens.png") as picture:
        assert min(picture.size) >= 32
    for name, side in {"birds": 16, "photos": 16, "clothes": 28, "photos-xl": 16}.items():
        assert load(Path("runs") / name).size == (side, side)
