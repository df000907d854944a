#!/bin/sh
# Runs a step that reaches the network: with trust in the certificate that the build was given as
# the secret `ca` (LABKIT_CA_FILE), beside those that the system trusts already, and with APT_MIRROR
# in place of the distribution's own hosts. What is made for it lies in memory and is gone at the
# step's end: no layer holds it.
# Usage: reach-network.sh STEP [ARGUMENT...]
set -eu
given=/run/secrets/ca
mirror=${APT_MIRROR:-}
[ -s "$given" ] || [ -n "$mirror" ] || exec "$@"
folder=$(mktemp -d /dev/shm/labkit-network.XXXXXX)
trap 'rm -rf "$folder"' EXIT
export APT_CONFIG="$folder/apt.conf"
: >"$APT_CONFIG"
if [ -s "$given" ]; then
    cat /etc/ssl/certs/ca-certificates.crt "$given" >"$folder/ca.pem" 2>/dev/null ||
        cat "$given" >"$folder/ca.pem"
    export PIP_CERT="$folder/ca.pem"
    echo "Acquire::https::CaInfo \"$PIP_CERT\";" >>"$APT_CONFIG"
fi
if [ -n "$mirror" ]; then
    mkdir "$folder/parts"
    touch "$folder/sources.list"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        [ ! -f "$file" ] || case $file in
            *.d/*) sed "s|https*://[^/ ]*|${mirror%/}|" "$file" >"$folder/parts/${file##*/}" ;;
            *) sed "s|https*://[^/ ]*|${mirror%/}|" "$file" >"$folder/sources.list" ;;
        esac
    done
    echo "Dir::Etc::SourceList \"$folder/sources.list\";" >>"$APT_CONFIG"
    echo "Dir::Etc::SourceParts \"$folder/parts\";" >>"$APT_CONFIG"
fi
# apt checks an archive's signatures as another user, who must be able to read this.
chmod -R a+rX "$folder"
"$@"
