# Sourced by the steps that reach the network: makes them trust the certificate that the build was
# given as the secret `ca` (LABKIT_CA_FILE), beside the ones that the system trusts already. What
# is made for it lies in memory and is removed at the step's end: no layer holds it.
given=/run/secrets/ca
if [ -s "$given" ]; then
    trusted=$(mktemp /dev/shm/labkit-trust.XXXXXX)
    trap 'rm -f "$trusted"' EXIT
    cat /etc/ssl/certs/ca-certificates.crt "$given" >"$trusted" 2>/dev/null || cat "$given" >"$trusted"
    export PIP_CERT="$trusted"
    apt_trust="-o Acquire::https::CaInfo=$trusted"
fi
