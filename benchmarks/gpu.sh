#!/usr/bin/env bash
# Every measurement that needs a GPU, most wanted first, each with its own time limit: bash benchmarks/gpu.sh FOLDER
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:?give a folder for the results}"
mkdir -p "$out"
export PYTHONPATH="$PWD"
run() { # run SECONDS NAME SCRIPT [FLAG ...]
  echo "== $2"
  timeout "$1" python "benchmarks/$3" --device cuda --json "$out/$2.json" "${@:4}" || echo "$2 ended with $?"
}
for model in XL/2 B/2 S/2 L/2; do
  run 75 "training-gpu-${model%/*}" training.py --models "$model" --quick
done
run 180 sampling-gpu sampling.py --quick
run 40 attention-gpu attention.py --quick
run 70 reading-gpu reading.py --quick
