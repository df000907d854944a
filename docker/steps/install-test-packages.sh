#!/bin/sh
# Adds what the tests need to the lab: their tools, and the browser that they drive.
set -eu
export DEBIAN_FRONTEND=noninteractive
steps=$(dirname "$0")
. "$steps/trust.sh"
# shellcheck disable=SC2086  # one option or none
apt-get ${apt_trust-} update -qq
# shellcheck disable=SC2086
apt-get ${apt_trust-} install -y --no-install-recommends \
    chromium chromium-driver fonts-dejavu-core make shellcheck
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
PIP_PREFIX=/opt/lab "$steps/install-python-packages.sh" test
