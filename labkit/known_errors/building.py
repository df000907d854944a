"""Known errors of a build, a pull or an installation."""

from __future__ import annotations

from labkit.host.packages import INSTALL_VENV, Fix
from labkit.known_errors.model import KnownError

BUILD_ERRORS = (
    KnownError(
        "disk-full",
        (r"no space left on device",),
        "the disk is full",
        Fix("df -h && docker system prune"),
        brings=("hashes-differ", "no-build", "daemon-not-running", "unreadable-archive"),
        # Shared memory (/dev/shm) is full, not a disk.
        unless=r"/dev/shm|</?torch_|shared memory",  # noqa: S108
    ),
    KnownError(
        "no-name-server",
        (
            r"temporary failure in name resolution",
            r"could not resolve (?:host|proxy|['\"])",
            r"no such host",
            r"server misbehaving",
            r"Name or service not known",
            r"Temporary failure resolving",
        ),
        "no name server answers",
        Fix("resolvectl status   # check DNS and the proxy settings"),
        otherwise='if only containers fail: set "dns" in /etc/docker/daemon.json',
        brings=("no-build", "index-unreachable"),
    ),
    KnownError(
        "changed-certificate",
        (
            r"certificate verify failed",
            r"CERTIFICATE_VERIFY_FAILED",
            r"x509: certificate signed by unknown authority",
            r"self.signed certificate in certificate chain",
            r"unable to get local issuer certificate",
        ),
        "a proxy on the way to the package index replaces certificates (a company proxy?)",
        Fix("LABKIT_CA_FILE=/path/to/that-proxy.pem make up   # a build then trusts it too"),
        otherwise="ask the proxy's administrator for its certificate, or export it from a browser",
        brings=("no-build", "index-unreachable"),
    ),
    KnownError(
        "proxy-refuses",
        (r"407 Proxy Authentication Required", r"Cannot connect to proxy", r"ProxyError"),
        "the proxy refuses the connection, or does not answer",
        Fix("env | grep -i proxy   # check address, user and password"),
        brings=("no-build", "index-unreachable"),
    ),
    KnownError(
        "index-unreachable",
        (
            r"Network is unreachable",
            r"ReadTimeoutError",
            r"ConnectTimeoutError",
            r"TLS handshake timeout",
            r"net/http: request canceled",
            r"Connection to \S+ timed out",
            r"i/o timeout",
            r"context deadline exceeded",
            r"Failed to establish a new connection",
        ),
        "the package index or registry cannot be reached",
        Fix("labkit doctor   # checks names, proxy and index"),
        "likely",
        brings=("no-build",),
    ),
    KnownError(
        "hashes-differ",
        (r"do not match the hashes",),
        "a downloaded package differs from the locked one",
        # Not `make lock`: that would accept whatever was downloaded.
        Fix("make build   # downloads an incomplete file again"),
        otherwise="ask the administrator of the package index or proxy what it serves instead",
    ),
    KnownError(
        "no-build",
        (r"no matching distribution found", r"could not find a version that satisfies"),
        "the package index has no build of a locked package for this Python and machine",
        Fix("use Python 3.10 to 3.14 on x86-64 or ARM64, or a container engine"),
        "likely",
    ),
    KnownError(
        "no-venv",
        (r"ensurepip is not available", r"No module named '?ensurepip"),
        "this Python was installed without the files of its venv module",
        INSTALL_VENV,
    ),
    KnownError(
        "pull-limit",
        (r"toomanyrequests", r"reached your (?:unauthenticated )?pull rate limit"),
        "the registry's limit of anonymous pulls is reached",
        Fix("docker login   # or wait; BASE_IMAGE= names a base from another registry"),
    ),
    KnownError(
        "image-not-there",
        (
            r"pull access denied for",
            r"manifest (?:for \S+ not found|unknown)",
            r"repository does not exist or may require",
        ),
        "the registry has no such image, or requires a login for it",
        Fix("make build   # makes the image here"),
        "likely",
    ),
    KnownError(
        "unreadable-archive",
        (r"unexpected EOF(?! while)", r"BadZipFile", r"unexpected end of (?:file|archive)"),
        "a download was interrupted, or a cache contains an incomplete file",
        Fix("docker builder prune && make build"),
        "possible",
    ),
    KnownError(
        "externally-managed",
        (r"error: externally-managed-environment",),
        "this Python belongs to the distribution, which lets pip install nothing into it",
        Fix("make up RUNTIME=local   # uses a .venv of its own"),
    ),
    KnownError(
        "old-libc",
        (r"version `?GLIBC(?:XX)?_[\d.]+'? not found",),
        "a package was built for a newer system than this one",
        Fix("make up RUNTIME=docker   # the image has its own libraries"),
        "likely",
    ),
)
