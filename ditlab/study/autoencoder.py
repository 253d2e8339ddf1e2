"""Autoencoder downsampling factor and channels against reconstruction and generation (DiT, section 2; W.A.L.T)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.encoders import AutoencoderConfig
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

CHANNELS = (2, 4, 8)
WIDTHS = {2: (32, 64), 4: (32, 64, 64)}  # of the autoencoder, by downsampling factor


def runs(preset: StudyPreset) -> list[StudyRun]:
    """Pixels, and latents of each factor and number of channels, all at the default number of tokens."""
    base = replace(preset.recipe, model=preset.default_dit)
    train = replace(base.autoencoder_train, images=max(64_000, base.train.images // 2))
    planned = [preset.run("pixels", {"factor": 1, "channels": 0}, base)]
    for factor, widths in WIDTHS.items():
        model = replace(preset.default_dit, patch=max(1, preset.patch // factor))
        for channels in CHANNELS:
            autoencoder = AutoencoderConfig(kind="kl", latent_channels=channels, widths=widths, layers=1)
            recipe = replace(base, model=model, autoencoder=autoencoder, autoencoder_train=train)
            planned.append(preset.run(f"f{factor}c{channels}", {"factor": factor, "channels": channels}, recipe))
    return planned


def _psnr(seeds: Sequence[Result]) -> list[float]:
    return [result.more["psnr"] for result in seeds if "psnr" in result.more]


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Reconstruction and generation, one row per autoencoder."""
    metric, settings, points = results[0].metric, {}, {}
    for (factor, channels), seeds in study.group_by(results, "factor", "channels").items():
        settings["pixels" if factor == 1 else f"factor {factor}, {channels} channels"] = seeds
        if psnr := _psnr(seeds):
            point = (study.mean(psnr), study.mean_distance(seeds), f"{channels} channels")
            points.setdefault(f"factor {factor}", []).append(point)
    columns: dict[str, study.Column] = {
        "tokens": study.COLUMNS["tokens"],
        "GMACs": study.COLUMNS["GMACs"],
        "PSNR, dB ↑": lambda seeds: study.mean_and_std(psnr) if (psnr := _psnr(seeds)) else "exact",
        **study.columns(metric),
    }
    series = [Series(name, sorted(group)) for name, group in points.items()]
    title, xlabel = "reconstruction against generation", "reconstruction PSNR, dB"
    figure = draw(folder / "autoencoder.png", title, series, xlabel, f"{metric} of samples (lower is better)")
    return [*study.results_table("latents", settings, columns), *figure]


STUDY = study.Study(
    "The autoencoder",
    "How do the autoencoder's downsampling factor and channels affect reconstruction and the generated samples?",
    runs,
    report,
)
