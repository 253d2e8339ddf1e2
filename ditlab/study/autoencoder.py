"""Autoencoder downsampling factor and channels against reconstruction and generation (DiT, section 2; W.A.L.T)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.encoders import AutoencoderConfig
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, group_by, mean, mean_and_std, mean_distance, metric_columns, metric_header
from ditlab.study.study_run import Result, StudyRun

CHANNELS = (2, 4, 8)
WIDTHS = {2: (32, 64), 4: (32, 64, 64)}  # of the autoencoder, by downsampling factor


def runs(preset: StudyPreset, seeds: int) -> list[StudyRun]:
    """Pixels, and latents of each factor and number of channels, all at the default number of tokens."""
    planned, base = [], preset.recipe
    train = replace(base.autoencoder_train, images=max(64_000, base.train.images // 2))
    for seed in range(seeds):
        recipe = replace(base, model=preset.default_dit)
        planned.append(preset.run(f"pixels-seed{seed}", {"factor": 1, "channels": 0, "seed": seed}, recipe))
        for factor, widths in WIDTHS.items():
            model = replace(preset.default_dit, patch=max(1, preset.patch // factor))
            for channels in CHANNELS:
                autoencoder = AutoencoderConfig(kind="kl", latent_channels=channels, widths=widths, layers=1)
                recipe = replace(base, model=model, autoencoder=autoencoder, autoencoder_train=train)
                values = {"factor": factor, "channels": channels, "seed": seed}
                planned.append(preset.run(f"f{factor}c{channels}-seed{seed}", values, recipe))
    return planned


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Reconstruction and generation, one row per autoencoder."""
    metric, rows, points = results[0].metric, [], {}
    for (factor, channels), seeds in group_by(results, "factor", "channels").items():
        psnr = [result.more["psnr"] for result in seeds if "psnr" in result.more]
        rows.append(
            [
                "pixels" if factor == 1 else f"factor {factor}, {channels} channels",
                f"{seeds[0].network['tokens']:g}",
                f"{seeds[0].network['gmacs']:.3g}",
                mean_and_std(psnr) if psnr else "exact",
                *metric_columns(seeds),
            ]
        )
        if psnr:
            point = (mean(psnr), mean_distance(seeds), f"{channels} channels")
            points.setdefault(f"factor {factor}", []).append(point)
    series = [Series(name, *zip(*sorted(group), strict=True)) for name, group in points.items()]  # type: ignore[arg-type]
    draw(folder / "autoencoder.png", series, "reconstruction PSNR, dB", f"{metric} of samples (lower is better)")
    header = ["latents", "tokens", "GMACs", "PSNR, dB ↑", *metric_header(metric)]
    return [*markdown_table(header, rows), "![reconstruction against generation](autoencoder.png)", ""]


STUDY = Study(
    "The autoencoder",
    "How do the autoencoder's downsampling factor and channels affect reconstruction and the generated samples?",
    runs,
    report,
)
