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
(cd "$SOURCE" && tar cf - pyproject.toml README.md LICENSE $(test ! -f setup.py || echo setup.py) \
    src compress export kernels bench) | tar xf - -C "$copy"
"$PYTHON" -m pip --disable-pip-version-check wheel --quiet --quiet --no-cache-dir --no-deps --wheel-dir "$WHEELS" "$copy"
ls -l "$WHEELS"
