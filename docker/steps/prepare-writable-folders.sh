#!/bin/sh
# Makes the two folders that a running lab may write, for whatever uid it runs as, and lets what
# a learner installs with pip go into the caches and be found behind the locked packages.
set -eu
# Compose gives the container the host user's uid, which the image cannot know; a named volume
# takes these rights over from here.
mkdir -p /cache/home /work
chmod 1777 /cache /cache/home /work
# Dev containers give this user the uid of the host's user; ssh asks for an entry too.
getent passwd 1000 >/dev/null || {
    groupadd --gid 1000 lab
    useradd --uid 1000 --gid 1000 --no-log-init --no-create-home --home-dir /cache/home \
        --shell /bin/bash lab
}
# A line that runs code: the caches may lie elsewhere (find-caches.sh), and the folder that pip
# makes in them is not there yet when the first kernel starts.
site=$(/opt/lab/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat >"$site/labkit-learner-packages.pth" <<EOF
import os, site, sys; _ = os.environ.get("PIP_PREFIX", "/cache/packages") + "${site#/opt/lab}"; _ in sys.path or site.addsitedir(_)
EOF
# A shell in the lab names itself, although its uid may have no entry in /etc/passwd.
echo "PS1='lab:\\w\\$ '" >>/etc/bash.bashrc
