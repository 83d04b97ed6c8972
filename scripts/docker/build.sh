#!/bin/sh
# Build tailcut's wheel from the source tree.
#   SOURCE  the source tree (default: where this script lies)     WHEELS  where the wheel goes (default: /wheels)
set -eu
SOURCE=${SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
WHEELS=${WHEELS:-/wheels}
PYTHON=${PYTHON:-python3}
mkdir -p "$WHEELS"
# pip builds in the tree it is given; a copy keeps build/ and *.egg-info out of the source
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
(cd "$SOURCE" && tar cf - pyproject.toml setup.py README.md LICENSE src compress export kernels bench) | tar xf - -C "$copy"
"$PYTHON" -m pip --disable-pip-version-check wheel --quiet --quiet --no-cache-dir --no-deps --wheel-dir "$WHEELS" "$copy"
# setup.py goes on without a compiler; an image must not
"$PYTHON" - "$WHEELS"/tailcut-*.whl <<'PYTHON'
import sys
import zipfile

kernels = "tailcut/kernels/libtailcut_cpu.so"
sys.exit(0 if kernels in zipfile.ZipFile(sys.argv[1]).namelist() else f"build: {kernels} was not compiled; install g++")
PYTHON
ls -l "$WHEELS"
