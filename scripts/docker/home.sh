#!/bin/sh
# A home and a work directory for the image's user, who has a number but no password entry and owns nothing else.
#   HOME_DIR  (default: /home/tailcut)    WORK_DIR  (default: /work)    OWNER  (default: 10001:10001)
set -eu
HOME_DIR=${HOME_DIR:-/home/tailcut}
WORK_DIR=${WORK_DIR:-/work}
OWNER=${OWNER:-10001:10001}
mkdir -p "$HOME_DIR" "$WORK_DIR"
chown "$OWNER" "$HOME_DIR" "$WORK_DIR"
