#!/bin/sh
# Installs one lock into the lab's environment, every file checked against its hash, and takes out
# what no lab needs of it.
# Usage: install-python-packages.sh LOCK   ("lab", "torch-cpu", "cuda-cu130", ...)
set -eu
name=$1
lock=/etc/labkit/locks/$name.txt
steps=$(dirname "$0")
set --
# A torch with a local version (+cpu, +cu126) is on PyTorch's own index alone. No other step knows
# that index: one that does not answer costs seconds of retries for every package that might come
# from it.
if grep -q '^torch==.*+' "$lock"; then
    set -- --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/${name#torch-}}" --retries 1
elif [ -n "${PYPI_INDEX:-}" ]; then
    set -- --index-url "$PYPI_INDEX"
fi
# One of the hub's packages is published as source alone: its hash is checked, and the lab's own
# setuptools builds it.
[ "$name" != hub ] || set -- "$@" --no-binary onetimepass --no-build-isolation
[ -x /opt/lab/bin/python ] || python3 -m venv /opt/lab
# PIP_NO_DEPS: a lock is complete, and a package outside it would come without a hash.
PIP_NO_DEPS=1 /opt/lab/bin/pip install --disable-pip-version-check --progress-bar off \
    --require-hashes --only-binary :all: "$@" -r "$lock"
"$steps/trim-python-packages.sh"
