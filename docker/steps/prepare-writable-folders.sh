#!/bin/sh
# Makes the two folders that a running lab may write, for whatever uid it runs as, and lets what
# a learner installs with pip go into the caches and be found behind the locked packages.
set -eu
mkdir -p /cache /work
# Compose gives the container the host user's uid, which the image cannot know; a named volume
# takes these rights over from here.
chmod 1777 /cache
chmod 1777 /work
site=$(/opt/lab/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "/cache/packages/${site#/opt/lab/}" >"$site/labkit-learner-packages.pth"
# A shell in the lab names itself, although its uid has no entry in /etc/passwd.
echo "PS1='lab:\\w\\$ '" >>/etc/bash.bashrc
