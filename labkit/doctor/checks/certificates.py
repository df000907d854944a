"""Are the proxy and certificate settings ones that can work?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host

# LABKIT_CA_FILE is what a build of the lab trusts besides the system's own.
FILES = ("LABKIT_CA_FILE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
PROXIES = ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class ProxyFacts:
    """The proxies set (variable and host) and the certificate files set, bad ones apart."""

    proxies: tuple[tuple[str, str | None], ...] = ()
    files: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    strange: tuple[tuple[str, str], ...] = ()


def probe(host: Host) -> ProxyFacts:
    """The environment's own words; of a proxy's address only its host, never its password."""
    named = {name: host.environment[name] for name in FILES if host.environment.get(name)}
    gone = [(name, path) for name, path in named.items() if not _is_there(host, path)]
    proxies = [(name, host.environment[name]) for name in PROXIES if host.environment.get(name)]
    return ProxyFacts(
        tuple((name, _read_host(address)) for name, address in proxies),
        tuple(named),
        tuple(gone),
        tuple(each for each in named.items() if each not in gone and not _is_pem(host, each[1])),
    )


def _is_pem(host: Host, path: str) -> bool:
    """False for a file that holds no certificate in text form, such as a .der or .p12 one."""
    text = host.read(path.lstrip("/")) if Path(path).is_absolute() else None
    return text is None or "-----BEGIN" in text


def _is_there(host: Host, path: str) -> bool:
    return host.exists(path.lstrip("/")) if Path(path).is_absolute() else os.path.lexists(path)


def _read_host(address: str) -> str | None:
    try:
        return urlsplit(address if "://" in address else f"http://{address}").hostname
    except ValueError:
        return None


def judge(facts: ProxyFacts, distribution: Distribution) -> Finding:
    """A certificate file that is not there fails everything that uses TLS."""
    if facts.missing:
        name, path = facts.missing[0]
        return failed(f"{name}={path} is not there", "every download will fail", f"unset {name}")
    if facts.strange:
        name, path = facts.strange[0]
        return failed(
            f"{name}={path} holds no certificate in PEM form",
            "it is another kind of file, or a certificate in binary form",
            f"openssl x509 -inform der -in {path} -out {path}.pem",
        )
    unreadable = [name for name, host in facts.proxies if host is None]
    if unreadable:
        return failed(
            f"{unreadable[0]} is not an address",
            "a proxy is written as http://host:port",
            f"unset {unreadable[0]}",
        )
    local = [name for name, host in facts.proxies if host in ("localhost", "127.0.0.1", "::1")]
    if local:
        return warning(
            f"{local[0]} names this machine itself",
            "inside a container that address is the container, so a build cannot use this proxy",
            f"export {local[0]}=http://<this host's address>:<port>",
        )
    words = [*dict.fromkeys(name for name, _ in facts.proxies), *facts.files]
    return ok(f"set: {', '.join(words)}" if words else "no proxy and no certificate of its own set")


CHECK = Check("certificates", "proxies and certificates", probe, judge)
