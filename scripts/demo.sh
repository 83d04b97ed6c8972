#!/bin/sh
# The main street on a real model: get it, cut it, export it, bench it against dense, judge it.
# The gate's verdict is printed; this script fails only if the pipeline itself could not finish.
#
#   VENV  the environment (default: .venv)        OUT  where results go (default: demo-out)
#   ARGS  more flags for `tailcut run`
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
OUT=${OUT:-demo-out}
MODEL=models/smollm2-135m
export VENV
sh scripts/setup.sh
tailcut="$VENV/bin/tailcut"

if [ -f "$MODEL/manifest.json" ]; then
    echo "demo: $MODEL is there"
else
    "$tailcut" models get smollm2-135m --output "$MODEL"
fi

echo "demo: DeepSparse is licensed for evaluation only; its environment stays outside tailcut's"
if ! "$tailcut" engines install deepsparse; then
    echo "demo: going on without DeepSparse; the report will say 'not measured' for it"
fi

status=0
# shellcheck disable=SC2086  # ARGS is a list of words
"$tailcut" run "$MODEL" --sparsity 0.5 --allocator alpha --pruner sparsegpt \
    --engines tailcut,deepsparse,onnxruntime --min-speedup 1.1 --max-ppl-ratio 2 --output "$OUT" ${ARGS:-} || status=$?

case $status in
    0) echo "demo: the gate passed" ;;
    1) echo "demo: the gate failed (this is a verdict, not an error)" ;;
    3) echo "demo: the gate is inconclusive (this is a verdict, not an error)" ;;
    *) echo "demo: the pipeline stopped with exit code $status" >&2; exit "$status" ;;
esac
echo "demo: report in $OUT/report.html and $OUT/report.md"
