"""What latents are worth: factor and channels against reconstruction and generation (DiT, section 2; W.A.L.T's channels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.encoders import AutoencoderConfig
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, cell, grouped, mean_and_spread, quality, quality_header
from ditlab.study.study_run import Result, StudyRun

CHANNELS = (2, 4, 8)
WIDTHS = {2: (32, 64), 4: (32, 64, 64)}  # of the autoencoder of each factor


def cells(form: StudyPreset, seeds: int) -> list[StudyRun]:
    """Pixels, and latents of each factor and number of channels, at the usual number of tokens."""
    made = []
    for seed in range(seeds):
        made.append(
            cell(
                form,
                f"pixels-seed{seed}",
                {"factor": 1, "channels": 0, "seed": seed},
                replace(form.recipe, model=form.usual),
            )
        )
        for factor, widths in WIDTHS.items():
            for channels in CHANNELS:
                autoencoder = AutoencoderConfig(kind="kl", latent_channels=channels, widths=widths, layers=1)
                train = replace(form.recipe.autoencoder_train, images=max(64_000, form.recipe.train.images // 2))
                recipe = replace(
                    form.recipe,
                    model=replace(form.usual, patch=max(1, form.patch // factor)),
                    autoencoder=autoencoder,
                    autoencoder_train=train,
                )
                values = {"factor": factor, "channels": channels, "seed": seed}
                made.append(cell(form, f"f{factor}c{channels}-seed{seed}", values, recipe))
    return made


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Reconstruction and generation, a row an autoencoder."""
    metric, rows, points = results[0].metric, [], {}
    for (factor, channels), same in grouped(results, "factor", "channels").items():
        psnr = [result.more["psnr"] for result in same if "psnr" in result.more]
        distance = [result.distance for result in same]
        rows.append(
            [
                "pixels" if factor == 1 else f"factor {factor}, {channels} channels",
                f"{same[0].network['tokens']:g}",
                f"{same[0].network['gmacs']:.3g}",
                mean_and_spread(psnr) if psnr else "exact",
                *quality(same),
            ]
        )
        if psnr:
            point = (sum(psnr) / len(psnr), sum(distance) / len(distance), f"{channels} channels")
            points.setdefault(f"factor {factor}", []).append(point)
    series = [Series(name, *zip(*sorted(found), strict=True)) for name, found in points.items()]  # type: ignore[arg-type]
    draw(folder / "autoencoder.png", series, "reconstruction, PSNR in dB", f"{metric} of samples (lower is better)")
    header = ["latents", "tokens", "GMACs", "PSNR, dB ↑", *quality_header(metric)]
    return [*markdown_table(header, rows), "![reconstruction against generation](autoencoder.png)", ""]


STUDY = Study(
    "The autoencoder",
    "How far may an autoencoder compress: factor and channels against reconstruction and against what is generated?",
    cells,
    report,
)
