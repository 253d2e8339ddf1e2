"""``ditlab sample``: images from a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ditlab.cli.flags import parse
from ditlab.cli.sampling import SamplingOptions, choose_threads, help_defaults
from ditlab.errors import UserError
from ditlab.runtime.console import log

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SamplingOptions):
    """Generate images with a trained model."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, a model.safetensors, a diffusers pipeline, a hub id, or the shipped model: fashion."""
    labels: str = ""
    """Classes by name, by one of a name's comma-separated synonyms, or by number, separated by commas and used in turn; empty:
    all classes."""
    prompt: tuple[str, ...] = ()
    """One prompt or several, used in turn; empty: the model's own examples. To a model of labels, texts that name one class
    each, or lists of classes separated by commas."""
    prompts: str = ""
    """A text file of prompts, one a line."""
    negative: str = ""
    """A text, or a class, to guide away from."""
    count: int = 64
    """Number of images."""
    label_order: Literal["turn", "random"] = "turn"
    """turn: every class equally often; random: each label drawn with the seed, as DiT's and ADM's scripts do."""
    out: str = "samples.png"
    """A .png is written as one grid, of clips as strips of frames; clips play in a .webp, .gif or .apng; an .npz is an archive
    in ADM's layout, anything else a folder of PNGs. Archives and folders are written batch by batch; the same command resumes
    an interrupted one."""
    fps: float = 8.0
    """Frames a second of a clip that plays."""
    filmstrip: bool = True
    """Also draw the sampling steps of the first images, from noise to image, as NAME-filmstrip.png next to OUT."""


def _prompts(options: SampleOptions) -> list[str]:
    """The prompts of the flags; UserError for a file that cannot be read."""
    if options.prompt and options.prompts:
        raise UserError("--prompt and --prompts exclude each other")
    prompts = list(options.prompt)
    if options.prompts:
        try:
            lines = Path(options.prompts).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"--prompts {options.prompts} cannot be read ({error}); give a text file in UTF-8"
            ) from error
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"--prompts {options.prompts} has no prompts; expected one a line")
    return prompts


def sample(arguments: list[str]) -> None:
    """Generate images with a trained model."""
    shown = help_defaults(arguments)
    options = parse(SampleOptions, arguments, "sample", SampleOptions(run=arguments[0], **shown) if shown else None)
    from ditlab import pipelines
    from ditlab.interop.find import find_model
    from ditlab.pipelines.labels import split_labels
    from ditlab.runtime.console import progress_bar
    from ditlab.runtime.device import select_device
    from ditlab.runtime.distributed import join

    out, seed, count = Path(options.out), options.seed, options.count
    if out.suffix not in (".png", ".npz", "", *pipelines.ANIMATED):
        raise UserError(
            f"cannot write samples as {out.suffix!r}: --out takes a .png (grid), an .npz (archive) or a folder, of clips also "
            f"{', '.join(pipelines.ANIMATED)}"
        )
    if not options.fps > 0:
        raise UserError(f"--fps {options.fps:g} must be above 0")
    processes = join()
    model = find_model(options.run).to(select_device(options.device, processes))
    if model.clips and out.suffix not in (".png", *pipelines.ANIMATED):
        raise UserError(
            f"clips are written as .png (strips of frames) or {', '.join(pipelines.ANIMATED)}, not {out.suffix!r}"
        )
    if not model.clips and out.suffix in pipelines.ANIMATED:
        raise UserError(
            f"this model makes images, which do not play: --out takes a .png, an .npz or a folder, not {out}"
        )
    config = replace(options.config(model), negative=options.negative)
    model.prepare(config, options.compile)
    prompts = _prompts(options)
    given = model.given(split_labels(options.labels, model.names) or None, prompts or None)
    labels: Sequence[str | int] = [] if given is None else list(given)  # type: ignore[arg-type]
    settings = {"model": options.run, "seed": seed, **asdict(config)}
    if model.text is None:
        settings |= {"labels": labels, "label_order": options.label_order}
    else:
        settings |= {"prompts": labels}
    for note in model.notes(prompts, count, config) if processes.is_main else ():
        log(note)
    if options.label_order == "random":
        labels = model.random_labels(labels, count, seed)
    indices, names = model.descriptions(labels, count)

    model.check(config)
    if not options.compile:
        choose_threads(model, config, count, processes)
    with progress_bar(shown=processes.is_main) as bar:
        task = bar.add_task("sampling", total=count, rate="")

        def advance(step: pipelines.Step) -> None:
            bar.update(task, advance=len(step.x) / step.steps * processes.size)

        def make(starts: Sequence[int] | None = None) -> Iterator[np.ndarray]:
            yield from model.batches(
                labels, seed, count, config, options.batch, processes, starts=starts, callback=advance
            )

        def resumed(found: int) -> None:
            bar.update(task, completed=found)
            if found and processes.is_main:
                log(f"resumed: {found:,} of {count:,} images are already on disk")

        if out.suffix == ".png" or model.clips:
            images = pipelines.gather(make(), processes)
            if processes.is_main:
                columns = min(count, max(1, round(count**0.5)))
                captions = model.captions(labels, count)
                if out.suffix == ".png":
                    pipelines.write_png(pipelines.grid(images, columns, captions=captions), out, settings)
                else:
                    pipelines.write_animation(images, columns, out, settings, captions, options.fps)
        else:
            pipelines.write_samples(
                out, make, (count, *model.size, model.pixels[0]), options.batch, indices.numpy(), names,
                settings | {"weights": pipelines.weights_digest(model)}, processes, resumed,
            )  # fmt: skip
    if not processes.is_main:
        return
    log(f"{count} {'clip' if model.clips else 'image'}{'s' * (count != 1)}: {out}")
    if options.filmstrip and not model.clips:
        strip = out.with_name(f"{out.stem}-filmstrip.png")
        pipelines.write_png(pipelines.filmstrip(model, labels, seed, min(count, 4), config), strip, settings)
        log(f"filmstrip: {strip}")
