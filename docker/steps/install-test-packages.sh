#!/bin/sh
# Adds what the tests need to the lab: their tools, and the browser that they drive.
set -eu
export DEBIAN_FRONTEND=noninteractive
steps=$(dirname "$0")
apt-get update -qq
apt-get install -y --no-install-recommends \
    chromium chromium-driver fonts-dejavu-core make shellcheck
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
"$steps/install-python-packages.sh" test
