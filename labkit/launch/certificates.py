"""What a build needs to reach the internet from this network: proxies and their certificate."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from labkit.errors import UsageError
from labkit.launch.settings import Checkout

MARK = "-----BEGIN CERTIFICATE-----"
# Where the system's certificates are, on the distributions and macOS.
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


def read_certificate(environment: Mapping[str, str] = os.environ) -> tuple[Path, bytes] | None:
    """The file that LABKIT_CA_FILE names, with its content; None where it is not set.

    Raises UsageError where the file cannot be read or holds no certificate in PEM.
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
            cause=f"the text form (PEM) is needed, which begins with {MARK}",
            fix=f"openssl x509 -inform der -in '{path}' -out ca.pem   # from the binary form",
        )
    return path, content


def keep_fingerprint(environment: Mapping[str, str] = os.environ) -> str:
    """The certificate's fingerprint where the image shall keep it (LABKIT_CA_KEEP), else "".

    Another certificate thus makes another image. Raises UsageError where there is none to keep.
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
    """The variables with which compose.yaml's build finds the certificate."""
    found = read_certificate(environment)
    file = {"LABKIT_CA_FILE": str(found[0])} if found else {}
    return {**file, "LABKIT_KEPT_CA": keep_fingerprint(environment)}


def build_proxies(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The proxy variables in both cases: apt reads only the lower one, some tools only the upper.

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
    """The variable that makes pip on this machine trust the certificate too; empty without one.

    pip takes one file. The one written here also has what pip trusts by default, since the proxy
    may pass some hosts through.
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
    """The certificates that this machine trusts, in PEM; empty where none are found."""
    own = ssl.get_default_verify_paths().cafile
    for name in (environment.get("PIP_CERT"), environment.get("SSL_CERT_FILE"), own):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    for name in SYSTEM_BUNDLES:
        if Path(name).is_file():
            return Path(name).read_bytes()
    return b""
