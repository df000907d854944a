#!/bin/sh
# Runs a step that reaches the network with trust in the certificate that the build was given as
# the secret `ca` (LABKIT_CA_FILE), beside those that the system trusts already. What is made for
# it lies in memory and is gone at the step's end: no layer holds it.
# Usage: trust-certificate.sh STEP [ARGUMENT...]
set -eu
given=/run/secrets/ca
[ -s "$given" ] || exec "$@"
folder=$(mktemp -d /dev/shm/labkit-trust.XXXXXX)
trap 'rm -rf "$folder"' EXIT
cat /etc/ssl/certs/ca-certificates.crt "$given" >"$folder/ca.pem" 2>/dev/null ||
    cat "$given" >"$folder/ca.pem"
echo "Acquire::https::CaInfo \"$folder/ca.pem\";" >"$folder/apt.conf"
# apt checks an archive's signatures as another user, who must be able to read this.
chmod -R a+rX "$folder"
PIP_CERT="$folder/ca.pem" APT_CONFIG="$folder/apt.conf" "$@"
