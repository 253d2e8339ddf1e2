"""``ditlab sample``: images of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from ditlab.cli.flags import parse
from ditlab.cli.sampling import SamplingOptions
from ditlab.runtime.console import log

T = TypeVar("T", bound=Sized)


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SamplingOptions):
    """Make images with a trained model."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, a model.safetensors, or a model that ships: fashion."""
    labels: str = ""
    """Classes by name or number, between commas, given out in turn; all where empty."""
    count: int = 64
    """How many images."""
    out: str = "samples.png"
    """A .png is a grid, an .npz an archive in ADM's layout, a folder one PNG an image."""
    filmstrip: bool = True
    """Draw the denoising of the first images too, from noise to image, beside OUT as NAME-filmstrip.png."""


def sample(arguments: list[str]) -> None:
    """Make images with a trained model."""
    options = parse(SampleOptions, arguments, "sample")
    from ditlab.interop.find import find_model
    from ditlab.pipelines import check_ending, filmstrip, gather, generate, label_indices, write, write_png
    from ditlab.runtime.console import progress_bar
    from ditlab.runtime.device import default_device
    from ditlab.runtime.distributed import join

    out = Path(options.out)
    check_ending(out)
    processes = join()
    model = find_model(options.run).to(default_device(processes))
    if options.compile:
        model.compile()
    config = options.config(model)
    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    indices = label_indices(model, labels, options.count)
    with progress_bar(shown=processes.is_main) as bar:
        task = bar.add_task("sampling", total=options.count, rate="")
        made = generate(model, labels, options.seed, options.count, config, options.batch, processes)
        images = gather(_told(made, lambda count: bar.update(task, advance=count * processes.size)), processes)
    if not processes.is_main:
        return
    settings = {"model": options.run, "labels": labels, "seed": options.seed, **asdict(config)}
    write(images, indices.numpy(), model.names, out, settings)
    log(f"{options.count} image{'s' * (options.count != 1)}: {out}")
    if options.filmstrip:
        strip = out.with_name(f"{out.stem}-filmstrip.png")
        write_png(filmstrip(model, labels, options.seed, min(options.count, 4), config), strip, settings)
        log(f"filmstrip: {strip}")


def _told(batches: Iterable[T], tell: Callable[[int], None]) -> Iterator[T]:
    """Batches as they come, their sizes told."""
    for batch in batches:
        tell(len(batch))
        yield batch
