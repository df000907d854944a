#!/bin/sh
# Installs one lock into the lab's environment, every file checked against its hash.
# Usage: install-python-packages.sh LOCK [pip options]
set -eu
lock=$1
shift
[ -x /opt/lab/bin/python ] || python3 -m venv /opt/lab
# PIP_NO_DEPS: a lock is complete, and a package outside it would come without a hash.
PIP_NO_DEPS=1 /opt/lab/bin/pip install --disable-pip-version-check --progress-bar off \
    --require-hashes --only-binary :all: "$@" -r "$lock"
