#!/bin/sh
# Runs the image's command with caches that can be written: in /cache; where that is read-only, as
# under Apptainer, in the user's home; where there is none either, in memory.
# A command that begins with an option is JupyterLab's arguments.
set -eu
case ${1:-} in -*) set -- labkit serve "$@" ;; esac
if [ ! -w /cache ]; then
    caches=$HOME/.cache/labkit
    if { mkdir -p "$caches" && [ -w "$caches" ]; } 2>/dev/null; then
        echo "labkit: /cache cannot be written: the caches are in $caches" >&2
    # A name of its own: under Apptainer, /tmp is the host's, with other users in it.
    elif caches=$(mktemp -d /tmp/labkit-caches.XXXXXX 2>/dev/null); then
        echo "labkit: /cache cannot be written: the caches are in $caches until the lab stops" >&2
    elif caches=$(mktemp -d /dev/shm/labkit-caches.XXXXXX 2>/dev/null); then
        echo "labkit: /cache cannot be written: the caches are in memory until the lab stops," \
            "and torch.compile needs --tmpfs /tmp:exec" >&2
    else
        echo "error: uid $(id -u) can write neither /cache, $HOME, /tmp nor /dev/shm" >&2
        echo "  try: docker run --tmpfs /tmp:exec ...   # or a volume on /cache" >&2
        exit 5
    fi
    for name in HOME XDG_CACHE_HOME PIP_PREFIX TORCHINDUCTOR_CACHE_DIR LABKIT_STATE JUPYTER_PATH; do
        value=
        eval "value=\${$name:-}"
        case $value in /cache*) export "$name=$caches${value#/cache}" ;; esac
    done
    export JUPYTER_CONFIG_PATH="/etc/labkit/jupyter:$PIP_PREFIX/etc/jupyter"
    export PATH="$PATH:$PIP_PREFIX/bin"
fi
exec "$@"
