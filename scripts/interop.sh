#!/bin/sh
# Every client whose environment can be made here, their tests, and docs/interop.md from a new run of all of them.
#
#   VENV         the environment of tailcut (default: .venv)
#   MODEL        a Hugging Face directory (default: build/interop/model, SmolLM2-135M by `tailcut models get`)
#   CALIBRATION  a .jsonl or .txt file (default: the packaged prose)
#   OUT          where models and packages go (default: build/interop)
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
OUT=${OUT:-build/interop}
MODEL=${MODEL:-$OUT/model}
for client in web genai openvino-int8 deepsparse compressed-tensors transformers4 optimum sparseml; do
    "$VENV/bin/tailcut" engines install "$client" || echo "interop: $client cannot be installed here; its rows will say so"
done
"$VENV/bin/python" -m pytest -m interop -rs tests
mkdir -p "$OUT"
[ -f "$MODEL/config.json" ] || "$VENV/bin/tailcut" models get smollm2-135m -o "$MODEL"
"$VENV/bin/python" benchmarks/interop.py run "$MODEL" benchmarks/results/interop.json --fresh --out "$OUT" --calibration "${CALIBRATION:-demo}"
"$VENV/bin/python" benchmarks/tables.py
