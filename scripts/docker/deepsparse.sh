#!/bin/sh
# Only when asked for with WITH_DEEPSPARSE=1: DeepSparse's evaluation environment. Its licence allows evaluation in
# development and testing only; an image with it must not be used or passed on for anything else.
#   PREFIX  the environment (default: /opt/tailcut)    TAILCUT_ENGINES  where engines live (default: /opt/engines)
set -eu
PREFIX=${PREFIX:-/opt/tailcut}
TAILCUT_ENGINES=${TAILCUT_ENGINES:-/opt/engines}
export TAILCUT_ENGINES
mkdir -p "$TAILCUT_ENGINES"
case ${WITH_DEEPSPARSE:-0} in
    0) echo "deepsparse: not asked for (WITH_DEEPSPARSE=0)" ;;
    1) "$PREFIX/bin/tailcut" engines install deepsparse ;;
    *) echo "deepsparse: WITH_DEEPSPARSE must be 0 or 1, got $WITH_DEEPSPARSE" >&2; exit 2 ;;
esac
