"""report.md: the settings and results of a run on one page, with the loss curve and the last pictures."""

from __future__ import annotations

import io
from pathlib import Path

import torch

import ditlab
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table
from ditlab.train.meter import read_metrics


def write_report(folder: Path, title: str, command: str, facts: dict[str, str], device: torch.device) -> Path:
    """Write ``report.md`` and ``loss.png`` from the run's metrics and samples; ``facts`` are lines of the table.

    ``device`` is the one that the run was trained on.
    """
    rows = read_metrics(folder)
    losses = [row for row in rows if row.get("loss") is not None]
    facts = dict(facts)
    if losses:
        last = losses[-1]
        speed = sorted(row["images_per_second"] for row in losses)[len(losses) // 2]
        recent = [row["loss"] for row in losses[-10:]]
        machine = f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else machine
        facts["images trained on"] = f"{last['images']:,}"
        facts[f"loss, last {len(recent)} rows"] = f"{sum(recent) / len(recent):.4f}"
        facts["images/s, median"] = f"{speed:,.0f} on {machine}"
        if "mfu" in last:
            mfu = sorted(row.get("mfu", 0.0) for row in losses)[len(losses) // 2]
            facts["MFU, median"] = f"{mfu:.1%} of {last['mfu_of_tflops']:.4g} TFLOP/s, the measured matrix product rate"
    for key, name, form in (("held_out_loss", "held-out loss, last", "{:.4f}"), ("psnr", "PSNR, last", "{:.2f} dB")):
        if found := [row[key] for row in rows if key in row]:
            facts[name] = form.format(found[-1])
    facts["ditlab, torch"] = f"{ditlab.__version__}, {torch.__version__}"
    lines = [f"# {title}", "", f"`{command}`", "", *markdown_table(("", ""), facts.items())]
    if losses:
        files.write_file(folder / "loss.png", loss_figure(losses))
        lines += ["![loss and speed over images](loss.png)", ""]
    for picture in sorted((folder / "samples").glob("[0-9]*.png"))[-1:]:
        lines += [f"![samples after {int(picture.stem):,} images](samples/{picture.name})", ""]
    if (folder / "samples" / "plane.png").exists():
        lines += ["![the plane of an image's two numbers](samples/plane.png)", ""]
    path = folder / "report.md"
    files.write_file(path, "\n".join(lines))
    return path


def loss_figure(rows: list[dict]) -> bytes:
    """Rows of metrics with a loss as a PNG: over images the loss, the held-out loss, the loss by time, and the speed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # not pyplot, which keeps global state and is not thread-safe
    from matplotlib.ticker import EngFormatter

    images, timed = [row["images"] for row in rows], "loss_by_time" in rows[-1]
    width = 15 if timed else 11  # inches
    figure = Figure(figsize=(width, 4))  # a constrained layout would draw everything twice
    figure.subplots_adjust(left=0.85 / width, right=1 - 0.2 / width, bottom=0.14, top=0.91, wspace=0.2)
    axes = list(figure.subplots(1, 3 if timed else 2))
    held_out = [(row["images"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    axes[0].plot(images, [row["loss"] for row in rows])
    axes[0].plot(*zip(*held_out, strict=True), "o-", markersize=3) if held_out else None
    axes[0].legend(["training", "held out"][: len(axes[0].lines)])
    axes[0].set(title="loss", yscale="log")
    if timed:
        bins = range(len(rows[-1]["loss_by_time"]))
        for index in bins:
            values = [float("nan") if (v := row["loss_by_time"][index]) is None else v for row in rows]
            axes[1].plot(images, values, color=colormaps["viridis"](index / 9))
        axes[1].set(title="loss by time t (1 is noise)", yscale="log")
        axes[1].legend([f"t {index / 10:.1f}-{(index + 1) / 10:.1f}" for index in bins], fontsize=7, ncols=2)
    axes[-1].plot(images, [row["images_per_second"] for row in rows])
    axes[-1].set(title="images/s")
    axes[-1].set_ylim(bottom=0)
    for axis in axes:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_xlabel("images")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
