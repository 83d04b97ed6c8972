#!/bin/sh
# Every client whose environment can be made here, their tests, and docs/interop.md from a new run of all of them.
#
#   VENV         the environment of tailcut (default: .venv)
#   MODEL        a Hugging Face directory (default: build/interop/model, SmolLM2-135M by `tailcut models get`)
#   CALIBRATION  a .jsonl or .txt file (default: the packaged prose)
#   OUT          where models and packages go (default: build/interop)
#   RESULT       the table's data (default: benchmarks/results/interop.json, and then docs/interop.md is made from it)
#   TESTS        which tests run first (default: interop and not slow; empty: none)
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
OUT=${OUT:-build/interop}
MODEL=${MODEL:-$OUT/model}
RESULT=${RESULT:-benchmarks/results/interop.json}
TESTS=${TESTS-interop and not slow}
for client in web genai openvino-int8 deepsparse compressed-tensors transformers4 optimum sparseml vllm; do
    "$VENV/bin/tailcut" engines install "$client" || echo "interop: $client cannot be installed here; its rows will say so"
done
failed=0
[ -z "$TESTS" ] || "$VENV/bin/python" -m pytest -m "$TESTS" -rs tests || failed=1 # the table is made all the same
mkdir -p "$OUT"
[ -f "$MODEL/config.json" ] || "$VENV/bin/tailcut" models get smollm2-135m -o "$MODEL"
"$VENV/bin/python" benchmarks/interop.py run "$MODEL" "$RESULT" --fresh --out "$OUT" --calibration "${CALIBRATION:-demo}"
[ "$RESULT" != benchmarks/results/interop.json ] || "$VENV/bin/python" benchmarks/tables.py
exit $failed
