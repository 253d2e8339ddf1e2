"""The command line: ``ditlab COMMAND ...``. Errors a person can cause are one line and exit code 2."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from ditlab import __version__
from ditlab.errors import Stopped, UserError, nearest
from ditlab.flags import parse

T = TypeVar("T", bound=Sized)


def say(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """What processes other than the first say."""


def _recipe_command(arguments: list[str], command: str) -> tuple[Any, Any]:
    """The recipe, flags applied and settled for this machine, and the place it runs in."""
    from ditlab.processes import join
    from ditlab.recipes import NAMES, Place, Recipe, default_device, find_recipe, settle

    known = f"one of {', '.join(NAMES)}, a .py file, a recipe.json or a run folder"
    if arguments and arguments[0] in ("-h", "--help"):
        say(f"usage: ditlab {command} RECIPE [--out DIR] [--FIELD VALUE ...]\n\nRECIPE is {known}.")
        say(f"`ditlab {command} RECIPE --help` lists its fields with their values.")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"`ditlab {command}` needs a recipe first: {known}")
    recipe, out = find_recipe(arguments[0])
    where = Annotated[str, tyro.conf.arg(help="Run folder.")]
    look = Annotated[bool, tyro.conf.arg(help="Write where a training step's time goes into DIR/profile.")]
    options = dataclasses.make_dataclass(
        "Options", [("recipe", Annotated[Recipe, tyro.conf.arg(name="")]), ("out", where), ("profile", look)]
    )
    given = parse(options, arguments[1:], f"{command} {arguments[0]}", options(recipe, str(out), False))
    place = Path(given.out)
    if place == out and out.name == recipe.name:
        place = out.with_name(given.recipe.name)  # the recipe's name names the folder, unless --out does
    processes = join(given.recipe.train.timeout)
    tell = say if processes.first else _say_nothing
    device = default_device(processes)
    recipe = settle(given.recipe, device, tell, open_size=recipe.name == "folder")
    return recipe, Place(place, device, tell, processes, given.profile)


def train(arguments: list[str]) -> None:
    """Train a recipe to its end; the same command goes on where it stopped."""
    from ditlab.recipes import train_recipe

    recipe, place = _recipe_command(arguments, "train")
    train_recipe(recipe, place)


def autoencoder(arguments: list[str]) -> None:
    """Train a recipe's autoencoder."""
    from ditlab.recipes import train_autoencoder

    recipe, place = _recipe_command(arguments, "autoencoder")
    train_autoencoder(recipe, place)


def encode(arguments: list[str]) -> None:
    """Make a recipe's latent cache ahead of training."""
    from ditlab.recipes import encode_latents

    recipe, place = _recipe_command(arguments, "encode")
    place.say(f"latents: {encode_latents(recipe, place)}")


@dataclass(frozen=True)
class SampleOptions:
    """Make images with a trained model."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, a model.safetensors, or a model that ships: fashion."""
    labels: str = ""
    """Classes by name or number, between commas, given out in turn; all where empty."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 is off."""
    guidance_low: float | None = None
    """Guide only at times of at least this (1 is noise)."""
    guidance_high: float | None = None
    """Guide only at times of at most this."""
    guidance_channels: int | None = None
    """Guide only the first so many latent channels; 0 is all, 3 what DiT's published numbers did."""
    steps: int | None = None
    """Sampling steps."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun or dpm-solver."""
    seed: int = 0
    """Image k of a seed is the same whatever the count and the batch (to one level of 255 between batches)."""
    count: int = 64
    """How many images."""
    batch: int = 64
    """How many at a time; fewer where they do not fit in the GPU's memory."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """bf16 computes matrix products in bfloat16; auto takes it on GPUs."""
    compile: bool = False
    """Compile the network first, which pays for thousands of steps."""
    out: str = "samples.png"
    """A .png is a grid, an .npz an archive in ADM's layout, a folder one PNG an image."""
    filmstrip: bool = True
    """Draw the denoising of the first images too, from noise to image, beside OUT as NAME-filmstrip.png."""


def sample(arguments: list[str]) -> None:
    """Make images with a trained model."""
    options = parse(SampleOptions, arguments, "sample")
    from ditlab.processes import join
    from ditlab.recipes import default_device
    from ditlab.sample import (
        Model,
        SampleConfig,
        check_ending,
        filmstrip,
        gather,
        generate,
        label_indices,
        write,
        write_png,
    )
    from ditlab.train import progress_bar

    out = Path(options.out)
    check_ending(out)
    processes = join()
    model = Model.load(options.run).to(default_device(processes))
    if options.compile:
        model.compile()
    default = model.defaults
    told = {
        "scale": options.guidance,
        "low": options.guidance_low,
        "high": options.guidance_high,
        "channels": options.guidance_channels,
    }
    guidance = dataclasses.replace(
        default.guidance, **{name: value for name, value in told.items() if value is not None}
    )
    steps = default.steps if options.steps is None else options.steps
    config = SampleConfig(options.sampler or default.sampler, steps, guidance, options.precision or default.precision)
    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    indices = label_indices(model, labels, options.count)
    with progress_bar(shown=processes.first) as bar:
        task = bar.add_task("sampling", total=options.count, rate="")
        made = generate(model, labels, options.seed, options.count, config, options.batch, processes)
        images = gather(_told(made, lambda count: bar.update(task, advance=count * processes.size)), processes)
    if not processes.first:
        return
    settings = {"model": options.run, "labels": labels, "seed": options.seed, **dataclasses.asdict(config)}
    write(images, indices.numpy(), model.names, out, settings)
    say(f"{options.count} image{'s' * (options.count != 1)}: {out}")
    if options.filmstrip:
        strip = out.with_name(f"{out.stem}-filmstrip.png")
        write_png(filmstrip(model, labels, options.seed, min(options.count, 4), config), strip, settings)
        say(f"filmstrip: {strip}")


def _told(batches: Iterable[T], tell: Callable[[int], None]) -> Iterator[T]:
    """Batches as they come, their sizes told."""
    for batch in batches:
        tell(len(batch))
        yield batch


@dataclass(frozen=True)
class InspectOptions:
    """What a model is made of and what it costs."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A model of the paper, as DiT-XL/2; a recipe; or a run folder."""
    image: int = 256
    """Side of the image in pixels, of which the latent is an eighth (models of the paper)."""
    block: str = "adaln-zero"
    """Block design (models of the paper)."""
    batch: int = 256
    """Images a training step, over all GPUs."""
    gpus: int = 1
    """GPUs that share a training step."""
    part: int = 0
    """Images a GPU computes at a time; 0 is its whole share of the batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of training."""
    recompute: bool = False
    """Training computes activations again going back."""
    json: bool = False
    """Print JSON."""


def inspect(arguments: list[str]) -> None:
    """Parts, parameters, GMACs and memory of a model."""
    options = parse(InspectOptions, arguments, "inspect")
    from ditlab.recipes import inspect_model

    inspect_model(**dataclasses.asdict(options))


@dataclass(frozen=True)
class ImportOptions:
    """A checkpoint in the public DiT layout becomes a ditlab model."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A .pt (read without running code) or .safetensors file."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder of the new model."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """The VAE its latents belong to: a folder or a hub id."""
    force: bool = False
    """Replace a model that is there already."""


def import_(arguments: list[str]) -> None:
    """Turn a public DiT checkpoint into a ditlab model."""
    options = parse(ImportOptions, arguments, "import")
    from ditlab.interop import official

    folder = official.import_checkpoint(Path(options.checkpoint), Path(options.out), options.vae, options.force)
    say(f"model: {folder}")


@dataclass(frozen=True)
class DemoOptions:
    """Train on digits, measure, and show."""

    out: str = "runs/demo"
    """Run folder."""


def demo(arguments: list[str]) -> None:
    """Train on digits for about three minutes, measure the samples, and draw them."""
    options = parse(DemoOptions, arguments, "demo")
    from ditlab.demo import run_demo

    run_demo(Path(options.out), say)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "autoencoder": autoencoder,
    "encode": encode,
    "sample": sample,
    "inspect": inspect,
    "import": import_,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, or with 2 after one line that says what was wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("--version", "-V"):
        say(f"ditlab {__version__}")
        return
    if not words or words[0] in ("-h", "--help"):
        say("ditlab: train, sample and study diffusion transformers\n")
        for name, function in COMMANDS.items():
            say(f"  ditlab {name:12s} {(function.__doc__ or '').splitlines()[0]}")
        say("\n`ditlab COMMAND --help` says more.")
        raise SystemExit(0 if words else 2)
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"unknown command {words[0]!r}; {nearest(words[0], COMMANDS)}")
        COMMANDS[words[0]](words[1:])
    except UserError as error:
        who = f" [process {rank}]" if (rank := os.environ.get("RANK", "0")) != "0" else ""
        print(f"ditlab:{who} {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stop:
        (say if os.environ.get("RANK", "0") == "0" else _say_nothing)(str(stop))
    except KeyboardInterrupt:
        print(_stopped(words), file=sys.stderr)
        raise SystemExit(130) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for commands that fail early
            raise
        print(
            "ditlab: out of memory on the GPU; try a smaller --train.batch, or --batch when sampling", file=sys.stderr
        )
        raise SystemExit(2) from None


def run() -> None:
    """The program's entry: ``main``, after which Ctrl-C no longer matters.

    Python takes a while to end with torch in it, and an interrupt then would turn finished work into a failure.
    """

    def stop(*_: object) -> None:
        # Not an exception: raised inside torch's threads it aborts the process. What is written is whole at any moment.
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(2, f"{show_cursor}{_stopped(sys.argv[1:])}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
    try:
        main()
        if "ditlab.processes" in sys.modules:
            sys.modules["ditlab.processes"].leave()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stopped(words: Sequence[str]) -> str:
    lasting = words[:1] and words[0] in ("train", "autoencoder", "encode", "demo")
    return f"ditlab: stopped{'; the same command goes on from the last checkpoint' if lasting else ''}"
