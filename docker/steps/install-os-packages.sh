#!/bin/sh
# Installs what every flavor's image runs on, and takes out of it what no lab needs.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# g++ and Python's headers: torch.compile writes C++ (and Triton C) that is built in the lab.
# tini: reaps the kernels' children.  git and the rest: what a terminal in JupyterLab is opened for.
apt-get install -y --no-install-recommends \
    ca-certificates g++ libpython3-dev procps python3 python3-venv tini \
    curl git less nano openssh-client unzip
# Measured, 150 MB that no compile of torch's opens: link-time optimisers, sanitizers,
# and the static copies of Python.
gcc=$(dirname "$(g++ -print-prog-name=cc1plus)")
rm -f "$gcc"/lto1 "$gcc"/lto-wrapper "$gcc"/*san*.a /usr/bin/*-lto-dump-* /usr/bin/lto-dump* \
    /usr/lib/*/lib[atl]san.so.* /usr/lib/*/libubsan.so.* \
    /usr/lib/python3*/config-*/libpython*.a
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/doc/* /usr/share/man/* \
    /usr/share/locale/* /usr/share/lintian /usr/share/perl/*/pod
