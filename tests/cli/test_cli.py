"""The command line: help, output, and that every mistake of a user is one line."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditlab.cli.main import COMMANDS
from ditlab.recipes import NAMES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny run."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, ditlab):
    ended = ditlab(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "usage: ditlab " + command in ended.out
    assert len(ended.out.splitlines()) > 2


def test_the_program_has_help_and_a_version(ditlab):
    ended = ditlab("--help")
    assert (ended.code, ended.err) == (0, "")
    assert all(f"ditlab {command} " in ended.out for command in COMMANDS)
    assert ditlab().code == 2
    assert ditlab().out == ended.out
    assert ditlab("help").out == ended.out
    for words in ("--version", "version"):
        assert ditlab(words).out.startswith("ditlab 0.")
    assert ditlab("help", "sample").out == ditlab("sample", "--help").out
    assert "--model.depth" in ditlab("help", "train", "digits").out


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_shows_a_default_of_none(command: str, ditlab):
    recipe = ["fashion-plane"] if command in ("train", "autoencoder", "encode") else []
    assert "None" not in ditlab(command, *recipe, "--help").out


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_help_of_a_model_shows_the_models_own_defaults(command: str, run: Path, ditlab):
    record = json.loads((run / "model.json").read_text())
    record["sample"] |= {
        "sampler": "dpm-solver",
        "steps": 1234,
        "guidance": {**record["sample"]["guidance"], "scale": 5.75},
    }
    (run / "model.json").write_text(json.dumps(record))
    for model in (run, run / "model.safetensors"):
        out = ditlab(command, model, "--help").out
        for default in ("dpm-solver)", "1234)", "5.75)"):
            assert f"(default: {default}" in re.sub(r"[\s│]+", " ", out)
    assert "(default: of the model)" in re.sub(r"[\s│]+", " ", ditlab(command, "--help").out)
    (run / "model.json").write_text("{")
    assert ditlab(command, run, "--help").code == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_lists_its_fields_with_their_values(name: str, ditlab):
    ended = ditlab("train", name, "--help")
    assert (ended.code, ended.err) == (0, "")
    for flag in ("--model.depth", "--train.images", "--out", "--sample.guidance.scale", "--data.path"):
        assert flag in ended.out
    assert f"runs/{name}" in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'?"]),
        (["train"], ["`ditlab train` needs a recipe", "digits"]),
        (["encode", "--seed", "3"], ["needs a recipe"]),
        (["train", "digist"], ["unknown recipe 'digist'", "did you mean 'digits'?"]),
        (["autoencoder", "fasion"], ["did you mean 'fashion'?"]),
        (["train", "digits", "--model.dept", "3"], ["unknown flag --model.dept", "did you mean '--model.depth'?"]),
        (["train", "digits", "--trian.images=3"], ["unknown flag --trian.images", "'--train.images'"]),
        (["help", "trian"], ["unknown command 'trian'", "did you mean 'train'?"]),
        (["versoin"], ["did you mean 'version'?"]),
        (["train", "digits", "--seed", "three"], ["--seed 'three' is not a whole number"]),
        (["train", "digits", "--seed", "1.5"], ["--seed '1.5' is not a whole number;"]),
        (["train", "digits", "--seed="], ["--seed '' is not a whole number"]),
        (["train", "digits", "--train.images", "1e5"], ["'1e5' is not a whole number; use 100000"]),
        (["train", "digits", "--data.size", "8", "big"], ["--data.size 'big' is not a whole number"]),
        (["train", "digits", "--data.flip=true"], ["takes no value ('true' given); use --data.flip or --data.no-flip"]),
        (["train", "digits", "--data.flip", "no"], ["takes no value ('no' given); use --data.flip or --data.no-flip"]),
        (["train", "digits", "--name", "../x"], ["--name '../x'", "--out"]),
        (["train", "digits", "--device", "gpu"], ["--device 'gpu'", "cpu, cuda, cuda:1, mps"]),
        (["train", "digits", "--train.threads", "-1"], ["--train.threads -1"]),
        (["train", "digits", "--train.images", "-1"], ["--train.images -1"]),
        (["train", "digits", "--model", "unett"], ["unknown model 'unett'", "did you mean 'unet'?"]),
        (["train", "digits", "-s", "3"], ["unknown flag -s; did you mean '--seed'?"]),
        (["train", "nowhere.py"], ["no recipe at nowhere.py"]),
        (["train", "digits", "--seed"], ["missing value of --seed"]),
        (["train", "digits", "--seed", "-3"], ["--seed -3", "0 or more"]),
        (["train", "digits", "--train.lr", "fast"], ["--train.lr", "'fast'"]),
        (["train", "digits", "--train.lr", "1"], ["--train.lr 1.0", "below 1"]),
        (["train", "digits", "--train.lr", "nan"], ["--train.lr nan"]),
        (["train", "digits", "--train.images", "5"], ["--train.images 5", "128"]),
        (["train", "digits", "--train.batch", "-4"], ["--train.batch -4"]),
        (["train", "digits", "--sample-images", "-4"], ["--sample-images -4"]),
        (["train", "digits", "--model.block", "adaln-zro"], ["'adaln-zro'", "adaln-zero"]),
        (["train", "digits", "--model.heads", "5"], ["64", "5 heads"]),
        (["train", "digits", "--train.precision", "fp8"], ["'fp8'", "bf16"]),
        (["train", "digits", "stray"], ["stray"]),
        (["train", "digits", "-x"], ["unknown flag -x"]),
        (["train", "digits", "--data.split", "tset"], ["tset", "test"]),
        (["train", "digits", "--data.source", "digit"], ["'digit'", "digits"]),
        (["train", "digits", "--data.size", "9"], ["9x9", "nearest sizes for 9: 8 or 10", "--data.size"]),
        (["train", "digits", "--data.size", "8", "9"], ["8x9", "8 or 10"]),
        (["train", "digits", "--model.patch", "3"], ["8x8", "patch 3", "6 or 9"]),
        (["train", "digits", "--sample.sampler", "ddmi"], ["'ddmi'", "ddpm"]),
        (["train", "digits", "--sample.steps", "0"], ["0 sampling steps"]),
        (["train", "digits", "--diffusion.condition-dropout", "1"], ["condition dropout 1.0"]),
        (["train", "digits", "--diffusion.target", "epsilon"], ["'epsilon'", "'velocity'"]),
        (
            ["train", "digits", "--diffusion.condition-dropout", "0", "--sample.guidance.scale", "2"],
            ["2.0", "null class"],
        ),
        (["train", "folder"], ["--data.path"]),
        (["train", "folder", "--data.path", "nowhere"], ["nowhere"]),
        (
            ["train", "cifar10", "--data.path", "nowhere.tar"],
            ["nowhere.tar", "huggingface.co/datasets/uoft-cs/cifar10"],
        ),
        (["train", "cifar10"], ["--data.path", "huggingface.co/datasets/uoft-cs/cifar10", "train/CLASS/*.png"]),
        (["train", "imagenet256"], ["--data.path", "image-net.org", "train/n01440764/*.JPEG"]),
        (["encode", "imagenet512", "--data.path", "nowhere"], ["nowhere", "image-net.org", "train/n01440764/*.JPEG"]),
        (["study", "scaling", "--recipe", "cifar10"], ["--path", "huggingface.co/datasets/uoft-cs/cifar10"]),
        (["study", "scalng"], ["unknown study 'scalng'; did you mean 'scaling'?"]),
        (["study", "scaling", "--recipe", "digist"], ["did you mean 'digits'?"]),
        (["sample"], ["RUN"]),
        (["sample", "nowhere"], ["no model in nowhere"]),
        (["sample", "nowhere.safetensors"], ["no model in nowhere.safetensors"]),
        (["sample", "fashon"], ["no model in fashon", "did you mean 'fashion'?"]),
        (["sample", "fashion", "--guidance", "high"], ["--guidance 'high' is not a number;"]),
        (["sample", "fashion", "--steps", "2.5"], ["--steps '2.5' is not a whole number;"]),
        (["sample", "fashion", "--precision", "fp8"], ["did you mean 'fp32'?"]),
        (["sample", "fashion", "--device", "xpu"], ["--device 'xpu'"]),
        (["evaluate", "fashion", "--reference", "trian"], ["did you mean 'train'?"]),
        (["evaluate", "fashion", "--network", "inceptoin"], ["did you mean 'inception'?"]),
        (["play", "nowhere"], ["no model in nowhere"]),
        (["play", "--port", "abc"], ["--port 'abc' is not a whole number;"]),
        (["play", "--prot", "80"], ["did you mean '--port'?"]),
        (["export", "fashion", "out", "--to", "diffuser"], ["did you mean 'diffusers'?"]),
        *(
            ([*command.split(), "--device", "cuda:77"], ["--device cuda:77 is not available here; found: cpu"])
            for command in (
                "train digits",
                "encode fashion",
                "autoencoder fashion-plane",
                "sample fashion",
                "evaluate fashion",
                "study scaling",
                "play",
                "demo",
            )
        ),
        (["completion", "fish"], ["'fish'", "bash, zsh"]),
        (["sample", "nowhere", "--sed", "3"], ["unknown flag --sed", "'--seed'"]),
        (["inspect", "nowhere"], ["'nowhere'"]),
        (["inspect", "DiT-XXL/2"], ["'DiT-XXL/2'", "DiT-XL/2"]),
        (["inspect", "DiT-S/2", "--image", "100"], ["100", "96 or 104"]),
        (["inspect", "DiT-S/8", "--image", "232"], ["29", "24 or 32"]),
        (["inspect", "DiT-S/2", "--block", "adaln-zro"], ["'adaln-zro'", "adaln-zero"]),
        (["import", "nowhere.pt", "out"], ["nowhere.pt", "dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt"]),
        (["demo", "--ouch", "x"], ["unknown flag --ouch", "'--out'"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_writes_nothing(
    arguments: list, words: list[str], refused, elsewhere: Path
):
    refused(arguments, *words)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--labels", "11"], ["label 11 is out of range", "0 to 9"]),
        (["--labels", "-1"], ["label -1 is out of range"]),
        (["--labels", "3,sneaker"], ["unknown label 'sneaker'", "0, 1, 2"]),
        (["--sampler", "dim"], ["unknown sampler 'dim'", "did you mean 'ddim'?"]),
        (["--steps", "0"], ["0 sampling steps"]),
        (["--count", "0"], ["count 0"]),
        (["--batch", "-1"], ["batch -1"]),
        (["--seed", "-1"], ["seed -1"]),
        (["--guidance", "-2"], ["guidance scale -2.0"]),
        (["--guidance-low", "0.9", "--guidance-high", "0.1"], ["0.9 to 0.1"]),
        (["--guidance-channels", "-1"], ["-1"]),
        (["--out", "samples.jpg"], ["'.jpg'", ".png", ".npz"]),
        (["--steps", "many"], ["--steps", "'many'"]),
    ],
)
def test_a_mistake_in_sampling_is_one_line_and_leaves_the_run_untouched(
    flags: list[str], words: list[str], run: Path, refused, tree, elsewhere: Path
):
    before = tree(elsewhere)
    refused(["sample", run, "--steps", "1", "--count", "1", *flags], *words)
    assert tree(elsewhere) == before


def test_guidance_of_a_model_without_a_null_class_is_refused(tmp_path: Path, tiny: list[str], ditlab, refused, tree):
    folder = tmp_path / "run"
    assert ditlab("train", "digits", *tiny, "--diffusion.condition-dropout", "0", "--out", folder).code == 0
    before = tree(folder)
    refused(
        ["sample", folder, "--guidance", "2"], "guidance 2.0", "null class", "condition dropout 0", "use guidance 1"
    )
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"garbage, and more of it"),
        ("model.safetensors", b"\x80\x04\x95cos\nsystem\n"),
        ("model.json", b"{"),
        ("model.json", b"[]"),
        ("model.json", b"{}"),
        ("model.json", b"\xff\xfe\x00"),
    ],
)
def test_a_model_file_of_garbage_is_one_line(name: str, content: bytes, run: Path, refused, elsewhere: Path):
    (run / name).write_bytes(content)
    for model in (run, run / "model.safetensors"):
        refused(["sample", model], str(run))
    refused(["inspect", run], str(run))


def test_a_model_of_another_architecture_is_one_line(run: Path, refused, elsewhere: Path):
    record = json.loads((run / "model.json").read_text())
    record["network"]["width"] = 64
    (run / "model.json").write_text(json.dumps(record))
    refused(["sample", run], "another architecture", "patch_embedding.weight", "(32, 4)", "(64, 4)")


def test_a_run_of_other_settings_is_refused_and_untouched_and_a_longer_one_resumes(
    run: Path, tiny: list[str], ditlab, refused, tree, metrics
):
    before = tree(run)
    command = ["train", "digits", *tiny, "--out", run]
    refused([*command, "--seed", "2"], str(run), "seed 0 there, 2 here", "--out")
    refused([*command, "--model.depth", "3"], "model.depth 2 there, 3 here")
    refused([*command, "--train.batch", "16"], "train.batch 32 there, 16 here")
    refused([*command, "--data.limit", "100"], "data.limit 0 there, 100 here")
    assert tree(run) == before
    rows = metrics(run)
    ended = ditlab(*command, "--train.images", "960")
    assert (ended.code, ended.err) == (0, ""), ended
    assert "resumed from the checkpoint at 640 of 960 images" in ended.out
    assert metrics(run)[: len(rows)] == rows
    assert metrics(run)[-1]["images"] == 960
    assert json.loads((run / "recipe.json").read_text())["train"]["images"] == 960


def test_refused_settings_do_not_block_right_ones(tmp_path: Path, tiny: list[str], ditlab, refused):
    folder = tmp_path / "run"
    wrong = ["--diffusion.condition-dropout", "0", "--sample.guidance.scale", "2"]
    refused(["train", "digits", *tiny, *wrong, "--out", folder], "null class")
    assert ditlab("train", "digits", *tiny, "--out", folder).code == 0


def test_a_checkpoint_of_another_architecture_or_damaged_is_one_line(run: Path, tiny: list[str], refused, tree):
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["model"]["width"] = 64
    (run / "recipe.json").write_text(json.dumps(recipe))
    before = tree(run)
    command = ["train", "digits", *tiny, "--model.width", "64", "--out", run]
    refused(command, "000000000640 is of another architecture", "patch_embedding.weight is (32, 4), not (64, 4)")
    after = tree(run)
    assert {name: after[name] for name in before if name != "recipe.json"} == {
        name: before[name] for name in before if name != "recipe.json"
    }
    for path in (run / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    refused(command, "every checkpoint in", "is damaged", "delete")


def test_a_damaged_checkpoint_is_logged_and_the_run_ends_as_before(run: Path, tiny: list[str], ditlab, tree):
    before = tree(run)
    (run / "checkpoints" / "000000000640" / "__0_0.distcp").unlink()
    ended = ditlab("train", "digits", *tiny, "--out", run)
    assert (ended.code, ended.err) == (0, ""), ended
    assert "000000000640 is damaged (__0_0.distcp is missing); using the one before" in ended.out
    assert "resumed from the checkpoint at 320 of 640 images" in ended.out
    after = tree(run)
    for name in ("model.safetensors", "model.json", "samples/000000000640.png"):
        assert after[name] == before[name]
    assert after["checkpoints/000000000640/__0_0.distcp"] == before["checkpoints/000000000640/__0_0.distcp"]


def test_a_folder_of_images_in_place_of_a_recipe_is_answered_with_the_command(pictures, elsewhere: Path, refused):
    pictures(elsewhere / "photos", ("cat",), 1)
    refused(["train", "photos"], "no recipe at photos", "ditlab train folder --data.path photos")


def test_a_mistyped_run_is_answered_with_the_nearest_one(run: Path, refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parent.parent)
    refused(["sample", f"{run.parent.name}/rum"], f"did you mean '{run.parent.name}/run'?")


def test_an_empty_folder_and_one_of_broken_images_are_one_line(tmp_path: Path, refused):
    folder = tmp_path / "photos"
    folder.mkdir()
    base = ["train", "folder", "--out", tmp_path / "run", "--data.path", folder]
    refused(base, str(folder), "image")
    (folder / "a.png").write_bytes(b"no image")
    refused(base, "a.png")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, tiny: list[str], run: Path, refused):
    file = tmp_path / "file"
    file.write_text("x")
    refused(["train", "digits", *tiny, "--out", file / "run"], str(file))
    refused(["sample", run, "--count", "1", "--out", file / "grid.png"], str(file))
    assert file.read_text() == "x"


def test_sampling_writes_a_grid_an_archive_a_folder_and_a_filmstrip(run: Path, tmp_path: Path, ditlab, tree):
    before = tree(run)
    base = ["sample", run, "--labels", "3,8", "--count", "5", "--steps", "2", "--seed", "4"]
    ended = ditlab(*base, "--out", tmp_path / "g.png")
    assert (ended.code, ended.err) == (0, ""), ended
    assert str(tmp_path / "g.png") in ended.out
    with Image.open(tmp_path / "g.png") as grid, Image.open(tmp_path / "g-filmstrip.png") as film:
        settings = json.loads(grid.text["ditlab"])  # type: ignore[attr-defined]
        assert (settings["seed"], settings["labels"], settings["steps"]) == (4, ["3", "8"], 2)
        assert film.size[0] > 128
    assert ditlab(*base, "--batch", "2", "--no-filmstrip", "--out", tmp_path / "a.npz").code == 0
    assert not (tmp_path / "a-filmstrip.png").exists()
    assert ditlab(*base, "--out", tmp_path / "singles").code == 0
    with np.load(tmp_path / "a.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (5, 8, 8, 1)
    assert labels.tolist() == [3, 8, 3, 8, 3]
    names = sorted(path.name for path in (tmp_path / "singles").iterdir())
    assert names == ["000000-3.png", "000001-8.png", "000002-3.png", "000003-8.png", "000004-3.png"]
    for name, image in zip(names, images, strict=True):
        with Image.open(tmp_path / "singles" / name) as single:
            assert np.array_equal(np.asarray(single), image[..., 0])
    assert tree(run) == before


def test_inspect_prints_json_for_programs(run: Path, ditlab):
    paper = json.loads(ditlab("inspect", "DiT-XL/2", "--image", "256", "--json").out)
    assert paper["tokens"] == 256
    assert paper["gmacs"] == pytest.approx(118.64, rel=0.006)
    assert round(paper["parameters"] / 1e6) == 675
    assert paper["paper"]["gmacs"] == 118.64
    assert sum(part["parameters"] for part in paper["parts"].values()) == paper["parameters"]
    for model in (run, run / "model.safetensors", "digits"):
        ended = ditlab("inspect", model, "--json")
        assert (ended.code, ended.err) == (0, "")
        found = json.loads(ended.out)
        assert found["tokens"] == 16
        assert {"parameters", "gmacs", "tokens"} <= found.keys()


def test_inspect_prints_a_table_next_to_the_papers_figure(ditlab):
    ended = ditlab("inspect", "DiT-S/4")
    assert ended.code == 0
    for words in ("64 tokens", "the paper", "1.41", "blocks: attention", "GMACs", "multiply-accumulates"):
        assert words in ended.out


def test_ctrl_c_is_130_and_one_line_whatever_the_command(monkeypatch: pytest.MonkeyPatch, ditlab):
    def interrupted(arguments: list[str]) -> None:
        signal.raise_signal(signal.SIGINT)

    # A process that a shell starts in the background ignores the interrupt; so would this one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for command, more in (("inspect", ""), ("train", "; the same command resumes from the last checkpoint")):
            monkeypatch.setitem(COMMANDS, command, interrupted)
            ended = ditlab(command, "x")
            assert (ended.code, ended.out) == (130, "")
            assert ended.err == f"ditlab: stopped{more}\n"
    finally:
        signal.signal(signal.SIGINT, before)


SLEEPING = """
import sys, time
from ditlab.cli import main

def sleep(words):
    print("ready", flush=True)
    time.sleep(60)

main.COMMANDS[sys.argv[1]] = sleep
main.run()
"""


@pytest.mark.parametrize(
    ("command", "more"), [("sample", ""), ("encode", "; the same command resumes from the last checkpoint")]
)
def test_sigterm_ends_a_command_with_one_line(command: str, more: str):
    started = subprocess.Popen(
        [sys.executable, "-c", SLEEPING, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.terminate()
    _, err = started.communicate(timeout=5)
    assert (started.returncode, err) == (143, f"ditlab: stopped{more}\n")


def complete(script: str, *words: str) -> list[str]:
    """What bash proposes for the last word."""
    line = f'source "$1"; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _shtab_ditlab; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", line, "bash", script], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_recipes_flags_and_files(elsewhere: Path, ditlab):
    script = elsewhere / "script"
    script.write_text(ditlab("completion", "bash").out)
    assert set(complete(str(script), "ditlab", "''")) == {*COMMANDS}
    assert complete(str(script), "ditlab", "sam") == ["sample"]
    assert complete(str(script), "ditlab", "train", "fas") == ["fashion", "fashion-plane"]
    assert complete(str(script), "ditlab", "train", "digits", "--model.dep") == ["--model.depth"]
    assert complete(str(script), "ditlab", "sample", "runs/x", "--seed", "3", "--cou") == ["--count"]
    assert complete(str(script), "ditlab", "sample", "scr") == ["script"]
    assert ditlab("completion", "zsh").out.startswith("#compdef ditlab")


def test_on_a_terminal_the_line_has_no_boxes_and_no_colours(tmp_path: Path):
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "ditlab", "sample", "run", "--seed", "three"]
    child = subprocess.Popen(
        command,
        stdin=end,
        stdout=end,
        stderr=end,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
    )
    os.close(end)
    output = b""
    with contextlib.suppress(OSError):  # raised when the child closes the terminal
        while part := os.read(terminal, 4096):
            output += part
    os.close(terminal)
    assert child.wait() == 2
    line = "ditlab: --seed 'three' is not a whole number; see `ditlab sample --help`"
    assert output.decode().replace("\r\n", "\n") == line + "\n"


def test_in_a_process_of_its_own_too_a_mistake_is_one_line_and_code_2(process, tmp_path: Path):
    mistakes = [
        (["train", "digits", "--model.dept", "3"], "--model.depth"),
        (["train", "digits", "--data.size", "9"], "8 or 10"),
        (["sample", "nowhere.safetensors"], "nowhere.safetensors"),
    ]
    running = [(process(*arguments, cwd=tmp_path), words) for arguments, words in mistakes]
    for child, words in running:
        _, err = child.communicate(timeout=60)
        assert child.returncode == 2
        assert err.startswith("ditlab: ")
        assert words in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_into_a_pipe_that_is_closed_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ditlab", "evaluate", "--help"]
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
