#!/bin/sh
# The slim image's environment: what benches, generates and reports. No torch.
#   PREFIX  where the environment goes (default: /opt/tailcut)    WHEELS  where the wheel is (default: /wheels)
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
PREFIX=${PREFIX:-/opt/tailcut}
WHEELS=${WHEELS:-/wheels}
PYTHON=${PYTHON:-python3}
CONSTRAINTS=${CONSTRAINTS:-$HERE/../../constraints.txt}
"$PYTHON" -m venv "$PREFIX"
wheel=$(ls "$WHEELS"/tailcut-*.whl)
"$PREFIX/bin/python" -m pip --disable-pip-version-check install --quiet --quiet --no-cache-dir \
    --constraint "$CONSTRAINTS" "$wheel[report]"
# the image is slim because these are absent; say so now rather than when someone looks at its size
"$PREFIX/bin/python" - <<'PYTHON'
import importlib.util
import sys

heavy = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
sys.exit(f"runtime: {heavy} must not be in the runtime image" if heavy else 0)
PYTHON
"$PREFIX/bin/tailcut" --version
