"""The proxies of this network and their certificate, which a build needs for the internet."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from labkit.errors import UsageError
from labkit.launch.settings import Checkout

MARK = "-----BEGIN CERTIFICATE-----"
# The system's certificate bundle: Debian and Ubuntu, Fedora and RHEL, macOS.
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


def read_certificate(environment: Mapping[str, str] = os.environ) -> tuple[Path, bytes] | None:
    """The path in LABKIT_CA_FILE and the content of that file; None if it is not set.

    Raises UsageError if the file cannot be read or has no PEM certificate.
    """
    named = environment.get("LABKIT_CA_FILE")
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"LABKIT_CA_FILE={named} cannot be read: {error.strerror}",
            cause="it is the path of the proxy's certificate, as text (PEM), on this machine",
            fix=f"ls -l '{path}'",
        ) from error
    if MARK.encode() not in content:
        raise UsageError(
            f"LABKIT_CA_FILE={named} holds no certificate",
            cause=f"the file must be in PEM form (text), which begins with {MARK}",
            fix=f"openssl x509 -inform der -in '{path}' -out ca.pem   # from the binary form",
        )
    return path, content


def keep_fingerprint(environment: Mapping[str, str] = os.environ) -> str:
    """The certificate's fingerprint if the image keeps it (LABKIT_CA_KEEP is set), else "".

    So a new certificate causes a new image. Raises UsageError if no certificate is given.
    """
    if environment.get("LABKIT_CA_KEEP", "0") in ("", "0"):
        return ""
    found = read_certificate(environment)
    if found is None:
        raise UsageError(
            "LABKIT_CA_KEEP is set, and LABKIT_CA_FILE is not",
            cause="LABKIT_CA_FILE names the certificate",
            fix="LABKIT_CA_FILE=/path/to/ca.pem LABKIT_CA_KEEP=1 make up",
        )
    return hashlib.sha256(found[1]).hexdigest()[:16]


def build_certificate(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that give compose.yaml's build the certificate."""
    found = read_certificate(environment)
    file = {"LABKIT_CA_FILE": str(found[0])} if found else {}
    return {**file, "LABKIT_KEPT_CA": keep_fingerprint(environment)}


def build_proxies(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The proxy variables in both cases: apt reads lower case only, some tools upper case only.

    >>> build_proxies({"HTTPS_PROXY": "http://proxy:3128"})
    {'HTTPS_PROXY': 'http://proxy:3128', 'https_proxy': 'http://proxy:3128'}
    """
    both = {}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        value = environment.get(name) or environment.get(name.lower())
        if value:
            both[name] = environment.get(name) or value
            both[name.lower()] = environment.get(name.lower()) or value
    return both


def trust_in_pip(checkout: Checkout, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable that makes pip on this machine trust the certificate; empty without one.

    pip reads one bundle file. The bundle written here also has pip's default certificates, since
    the proxy may pass some connections through unchanged.
    """
    found = read_certificate(environment)
    if found is None:
        return {}
    trusted = _read_trusted(environment)
    bundle = checkout.state_folder / "trusted.pem"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes(trusted + b"\n" + found[1])
    return {"PIP_CERT": str(bundle)}


def _read_trusted(environment: Mapping[str, str]) -> bytes:
    """The certificates that this machine trusts, in PEM; empty if none are found."""
    own = ssl.get_default_verify_paths().cafile
    for name in (environment.get("PIP_CERT"), environment.get("SSL_CERT_FILE"), own):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    for name in SYSTEM_BUNDLES:
        if Path(name).is_file():
            return Path(name).read_bytes()
    return b""
