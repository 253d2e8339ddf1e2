#!/usr/bin/env bash
# Every measurement that needs a GPU, in ten minutes, most important first, each with its own time limit:
#   bash benchmarks/gpu.sh FOLDER [DEVICE]      DEVICE cpu rehearses the commands; there training exceeds its limits
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:?give a folder for the results}"
device="${2:-cuda}"
mkdir -p "$out"
export PYTHONPATH="$PWD"
run() { # run SECONDS NAME SCRIPT [FLAG ...]
  echo "== $2"
  timeout "$1" python "benchmarks/$3" --device "$device" --json "$out/$2.json" "${@:4}" || echo "$2 ended with $?"
}
run 180 training-gpu-XL training.py --models XL/2 --quick
run 40 attention-gpu attention.py --quick
run 60 training-gpu-B training.py --models B/2 --quick
run 50 training-gpu-S training.py --models S/2 --quick
run 70 training-gpu-L training.py --models L/2 --quick
run 140 sampling-gpu sampling.py --quick
run 50 reading-gpu reading.py --quick
