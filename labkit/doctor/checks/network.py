"""Checks of the network that a build needs: proxies, certificates, names, the package index."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labkit.doctor.check import Check, Finding, Host, failed, ok, warning
from labkit.doctor.checks.driver import read_capabilities
from labkit.doctor.checks.torch import find_fitting_build
from labkit.host.distribution import Distribution
from labkit.host.gpu import read_module_version
from labkit.host.torch_builds import BUILDS, CPU_BUILD
from labkit.known_errors.match import explain_text


@dataclass(frozen=True)
class NameFacts:
    """The index's host name, why it does not resolve, and whether a proxy resolves names."""

    name: str | None = None
    problem: str | None = None
    proxied: bool = False


def probe_dns(host: Host) -> NameFacts:
    """Resolves the host of the index that a build uses."""
    names = [urlsplit(index).hostname for index in list_indexes(host)]
    name = next((name for name in names if name), None)
    proxied = any(host.environment.get(key) for key in ("https_proxy", "HTTPS_PROXY"))
    if name is None or proxied:
        return NameFacts(name, proxied=proxied)
    try:
        host.resolve(name)
    except OSError as error:
        return NameFacts(name, str(error.strerror or error))
    return NameFacts(name)


def judge_dns(facts: NameFacts, distribution: Distribution) -> Finding:
    """A warning only: an existing image needs no names."""
    if facts.name is None:
        return ok("no index is set, so no name is needed", skip_reason="no index is set")
    if facts.proxied:
        return ok("the proxy resolves names")
    if facts.problem:
        return warning(
            f"{facts.name} does not resolve ({facts.problem})",
            "no name server answers, or it does not know the name: a build would fail",
            "resolvectl status || cat /etc/resolv.conf",
            skip_reason=f"{facts.name} does not resolve",
        )
    return ok(f"{facts.name} resolves")


DNS_CHECK = Check("dns", "names resolve", probe_dns, judge_dns, network=True, limit_seconds=6.0)


@dataclass(frozen=True)
class IndexFacts:
    """Each index, and why it cannot be reached (None: it can)."""

    answers: tuple[tuple[str, str | None], ...] = ()


def probe_index(host: Host) -> IndexFacts:
    """Requests the head of each index, through the proxies set, with a short limit."""
    return IndexFacts(tuple((hide_login(each), _reach(host, each)) for each in list_indexes(host)))


def list_indexes(host: Host) -> tuple[str, ...]:
    """The indexes that a build uses: those set, and PyTorch's own.

    The build for CUDA 13 comes from the default index, which is checked only if it is set.
    """
    if not host.builds_torch:
        return host.indexes
    capabilities = read_capabilities(host)
    driver = read_module_version(host.root)
    name = None
    if driver or capabilities:
        name = find_fitting_build(driver, capabilities, host.machine.architecture)
    own = BUILDS[name or CPU_BUILD.name].torch_index
    return (*([own] if own else []), *host.indexes)


def _reach(host: Host, index: str) -> str | None:
    try:
        host.reach(index)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def hide_login(index: str) -> str:
    """The index's address without a user and a password."""
    return re.sub(r"//[^/@]*@", "//", index)


def judge_index(facts: IndexFacts, distribution: Distribution) -> Finding:
    """A warning only: an existing image needs no index."""
    for index, problem in facts.answers:
        if problem and "certificate has expired" in problem:
            return warning(
                f"{index} cannot be reached ({problem})",
                "this machine's clock is ahead, or the server's certificate has run out",
                "date -u   # if it is wrong: sudo timedatectl set-ntp true",
            )
        if problem:
            found = explain_text(problem, signs={"lab"}).first
            return warning(
                f"{index} cannot be reached ({problem})",
                found.error.cause
                if found
                else "a firewall, a proxy that is not set, or no network",
                found.error.fix.on(distribution) if found else f"curl -sSI {index}",
            )
    if not facts.answers:
        return ok("no index is set: torch's build for this GPU comes from the default index")
    return ok(f"{', '.join(index for index, _ in facts.answers)} answers")


INDEX_CHECK = Check(
    "index", "the package index answers", probe_index, judge_index, ("dns",), network=True
)


# A build of the lab trusts LABKIT_CA_FILE in addition to the system's certificates.
FILES = ("LABKIT_CA_FILE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
PROXIES = ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class ProxyFacts:
    """The proxies (variable, host) and certificate files set; missing and invalid files."""

    proxies: tuple[tuple[str, str | None], ...] = ()
    files: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    invalid: tuple[tuple[str, str], ...] = ()


def probe_certificates(host: Host) -> ProxyFacts:
    """The variables of the environment; of a proxy only its host, never its password."""
    named = {name: host.environment[name] for name in FILES if host.environment.get(name)}
    missing = [(name, path) for name, path in named.items() if not _exists(host, path)]
    proxies = [(name, host.environment[name]) for name in PROXIES if host.environment.get(name)]
    return ProxyFacts(
        tuple((name, _read_host(address)) for name, address in proxies),
        tuple(named),
        tuple(missing),
        tuple(each for each in named.items() if each not in missing and not _is_pem(host, each[1])),
    )


def _is_pem(host: Host, path: str) -> bool:
    """False for a file without a certificate in text form, such as a .der or .p12 file."""
    text = host.read(path.lstrip("/")) if Path(path).is_absolute() else None
    return text is None or "-----BEGIN" in text


def _exists(host: Host, path: str) -> bool:
    return host.exists(path.lstrip("/")) if Path(path).is_absolute() else os.path.lexists(path)


def _read_host(address: str) -> str | None:
    try:
        return urlsplit(address if "://" in address else f"http://{address}").hostname
    except ValueError:
        return None


def judge_certificates(facts: ProxyFacts, distribution: Distribution) -> Finding:
    """A missing certificate file makes every TLS connection fail."""
    if facts.missing:
        name, path = facts.missing[0]
        return failed(f"{name}={path} does not exist", "every download will fail", f"unset {name}")
    if facts.invalid:
        name, path = facts.invalid[0]
        return failed(
            f"{name}={path} contains no certificate in PEM form",
            "it is another kind of file, or a binary certificate",
            f"openssl x509 -inform der -in {path} -out {path}.pem",
        )
    unreadable = [name for name, host in facts.proxies if host is None]
    if unreadable:
        return failed(
            f"{unreadable[0]} is not an address",
            "the form of a proxy is http://host:port",
            f"unset {unreadable[0]}",
        )
    local = [name for name, host in facts.proxies if host in ("localhost", "127.0.0.1", "::1")]
    if local:
        return warning(
            f"{local[0]} names this machine itself",
            "in a container this address is the container itself, so a build cannot use the proxy",
            f"export {local[0]}=http://<this host's address>:<port>",
        )
    words = [*dict.fromkeys(name for name, _ in facts.proxies), *facts.files]
    return ok(f"set: {', '.join(words)}" if words else "no proxy and no certificate file is set")


CERTIFICATES_CHECK = Check(
    "certificates", "proxies and certificates", probe_certificates, judge_certificates
)
