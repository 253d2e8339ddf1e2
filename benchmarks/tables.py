"""Writes the tables of benchmarks/README.md from the files in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"
RESULTS = {  # file: the command that writes it
    "training-cpu": "python benchmarks/training.py --official DIT --json benchmarks/results/training-cpu.json",
    "sampling-cpu": "python benchmarks/sampling.py --json benchmarks/results/sampling-cpu.json",
    "attention-cpu": "python benchmarks/attention.py --json benchmarks/results/attention-cpu.json",
    "reading-cpu": "python benchmarks/reading.py --json benchmarks/results/reading-cpu.json",
    "evaluating-cpu": "python benchmarks/evaluating.py --json benchmarks/results/evaluating-cpu.json",
    "versions-cpu": "python benchmarks/versions.py OTHER --quick --json benchmarks/results/versions-cpu.json",
    "memory-cpu": "python benchmarks/memory.py --json benchmarks/results/memory-cpu.json",
    "text-cpu": "python benchmarks/text.py --json benchmarks/results/text-cpu.json",
    "training-gpu-XL": "bash benchmarks/gpu.sh benchmarks/results",
    "training-gpu-L": "bash benchmarks/gpu.sh benchmarks/results",
    "training-gpu-B": "bash benchmarks/gpu.sh benchmarks/results",
    "training-gpu-S": "bash benchmarks/gpu.sh benchmarks/results",
    "attention-gpu": "bash benchmarks/gpu.sh benchmarks/results",
    "sampling-gpu": "bash benchmarks/gpu.sh benchmarks/results",
    "reading-gpu": "bash benchmarks/gpu.sh benchmarks/results",
}


def table(name: str, command: str) -> list[str]:
    """One result file as Markdown."""
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        return [f"## {name}", "", f"`{command}`: not measured.", ""]
    record = json.loads(path.read_text())
    rows = record["rows"]
    lines = [f"## {name}: {record['title'].lower()}", "", f"`{command}`", ""]
    lines += [f"{rows[0]['device']}; torch {record['torch']}; {record['date']}.", ""]
    lines += ["| | against | precision | ditlab | peer | unit | ratio | spread |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        theirs = "not measured" if row["theirs"] is None else f"{row['theirs']:,.4g}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        spread = "" if row["spread"] is None else "{:.2f} to {:.2f}".format(*row["spread"])
        columns = (
            row["name"],
            row["peer"] or "-",
            row["precision"],
            f"{row['ours']:,.4g}",
            theirs,
            row["unit"],
            ratio,
            spread,
        )
        lines.append(f"| {' | '.join(columns)} |")
    lines += [""]
    for row in rows:
        if row["more"]:
            more = ", ".join(f"{key} {value}" for key, value in row["more"].items())
            lines += [f"{row['name']}, {row['precision']}: {more}.", ""]
    return lines


def main() -> None:
    """Write the tables."""
    page = HERE / "README.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    lines = [line for name, command in RESULTS.items() for line in table(name, command)]
    page.write_text("\n".join([before + BEGIN, "", *lines, END + after.rstrip(), ""]))


if __name__ == "__main__":
    main()
