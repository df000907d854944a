"""Known errors of the container engine, and of a build, a pull or an installation."""

from __future__ import annotations

from labkit.host.packages import (
    ADD_NVIDIA_SOURCE,
    INSTALL_BUILDX,
    INSTALL_COMPOSE,
    INSTALL_VENV,
    START_DOCKER,
    Fix,
)
from labkit.known_errors.model import KnownError

ENGINE_ERRORS = (
    KnownError(
        "daemon-not-running",
        (
            r"Cannot connect to the Docker daemon",
            r"error during connect: .{0,200}docker",
            r"unable to connect to Podman socket",
            r"Cannot connect to Podman",
        ),
        "the engine's daemon is not running, or the client connects to another address",
        START_DOCKER,
        "likely",
        otherwise="docker context use default; unset DOCKER_HOST",
    ),
    KnownError(
        "daemon-refuses",
        (r"permission denied while trying to connect to the docker (?:daemon socket|API)",),
        "this user is not in the docker group",
        Fix("sudo usermod -aG docker $USER   # then log out and in again"),
    ),
    KnownError(
        "no-compose",
        (
            r"docker: 'compose' is not a docker command",
            r"unknown flag: --profile",
            r"unknown shorthand flag: 'd' in -d",
            r"looking up compose provider failed",
            r"docker-compose version 1\.",
            r"\bcompose 1\.x\b",
            r"docker compose: command not found",
        ),
        "Compose 2 is not installed",
        INSTALL_COMPOSE,
    ),
    KnownError(
        "compose-file-too-new",
        (
            r"Unsupported config option for services",
            r"The Compose file .{0,200} is invalid because",
        ),
        "Compose 1 cannot read this file",
        INSTALL_COMPOSE,
        "likely",
    ),
    KnownError(
        "port-taken",
        (
            r"port is already allocated",
            r"address already in use",
            r"ports are not available",
            r"The port \d+ is already in use",
        ),
        "another program already listens on this port",
        Fix("make up   # takes the next free port; or choose one: make up PORT=8890"),
        otherwise="ss -ltnp   # shows which program",
    ),
    KnownError(
        "token-rejected",
        (r"Invalid credentials", r"wrong password or token"),
        "another Jupyter server has this port, or the URL is an old one",
        Fix("make status   # prints the URL of this lab"),
        "possible",
    ),
    KnownError(
        "work-folder-refused",
        (
            r"PermissionError: \[Errno 13\] Permission denied: '?/?work\b",
            r"PermissionError: \[Errno 13\] Permission denied: '/(?:home|cache|workspace|opt)\b",
            r"Permission denied: .{0,100}\.ipynb",
        ),
        "the container's user does not own the folder (root owns new named volumes)",
        Fix('sudo chown -R "$(id -u):$(id -g)" work && make down up'),
        "likely",
    ),
    KnownError(
        "missing-bind-source",
        (r"bind source path does not exist", r"invalid mount config for type \"?bind"),
        "a folder to mount into the container does not exist",
        Fix("mkdir -p work && make up"),
    ),
    KnownError(
        "read-only",
        (r"\[Errno 30\] Read-only file system", r"EROFS: read-only file system"),
        "the lab can write only to work/, its caches and /tmp; the rest is read-only on purpose",
        Fix("write to /work, /cache or /tmp instead"),
        "likely",
    ),
    KnownError(
        "no-user-name",
        (r"getpwuid\(\): uid not found", r"I have no name!"),
        "the container's user id has no entry in /etc/passwd (torch before 2.13 asks for one)",
        Fix("export USER=lab HOME=/cache/home"),
    ),
    KnownError(
        "wrong-architecture",
        (r"exec format error", r"does not match the (?:detected host|specified) platform"),
        "the image was built for another processor architecture",
        Fix("make build   # builds it for this machine"),
    ),
    KnownError(
        "out-of-memory-killed",
        (
            r"killed by signal: Killed",
            r"OOMKilled.{0,5}true",
            r"Out of memory: Killed process",
            r"oom-kill:constraint=",
            r"exit(?:ed with)? (?:code|status):? 137\b",
            r"signal: killed",
            r"oom[-_ ]kill event",
            r"OOM Killed",
            r"Killed signal terminated program cc1plus",
        ),
        "the kernel ended a process because the memory was full",
        Fix("free -h   # then give the lab more (LABKIT_MEMORY=16g make down up), or load less"),
        "likely",
        brings=("daemon-not-running",),
    ),
    KnownError(
        "too-many-watches",
        (r"inotify watch limit reached", r"System limit for number of file watchers reached"),
        "this user has no file watches left",
        Fix("sudo sysctl fs.inotify.max_user_watches=524288"),
    ),
    KnownError(
        "no-buildx",
        (
            r"BuildKit is enabled but the buildx component is missing or broken",
            r"the --mount option requires BuildKit",
        ),
        "BuildKit builds the lab's images, and docker's buildx plugin is not installed",
        INSTALL_BUILDX,
    ),
    KnownError(
        "credential-helper-gone",
        (r"error getting credentials.{0,80}docker-credential-",),
        "docker's settings name a login helper that is not installed (left by Docker Desktop?)",
        Fix("sed -i '/\"credsStore\"/d' ~/.docker/config.json   # then, if needed: docker login"),
        "likely",
        brings=("image-not-there",),
    ),
    KnownError(
        "address-pools-used-up",
        (
            r"could not find an available, non-overlapping IPv4 address pool",
            r"all predefined address pools have been fully subnetted",
        ),
        "docker has no free address range for another network",
        Fix("docker network prune   # removes networks that nothing uses"),
    ),
    KnownError(
        "firewall-chain-gone",
        (r"iptables.{0,120}No chain/target/match by that name",),
        "a firewall restart deleted docker's rules",
        Fix("sudo systemctl restart docker"),
        "likely",
    ),
    KnownError(
        "name-in-use",
        (r"The container name .{1,80} is already in use by container",),
        "a container of that name is left from an earlier start",
        Fix("make down up"),
        "likely",
    ),
    KnownError(
        "no-subordinate-ids",
        (
            r"insufficient UIDs or GIDs available in user namespace",
            r"no subuid ranges found for user",
            r"cannot find UID/GID for user",
        ),
        "this user has no range of ids for a rootless engine's containers",
        Fix(
            'sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "$USER" '
            "&& podman system migrate"
        ),
    ),
    KnownError(
        "short-image-name",
        (r"did not resolve to an alias and no unqualified-search registries",),
        "podman does not know in which registry to look for a name without one",
        Fix(
            "echo 'unqualified-search-registries = [\"docker.io\"]' "
            "| sudo tee /etc/containers/registries.conf.d/labkit.conf"
        ),
        brings=("image-not-there",),
    ),
    KnownError(
        "clock-wrong",
        (r"certificate has expired or is not yet valid", r"certificate is not yet valid"),
        "this machine's clock is wrong (or the certificate has expired)",
        Fix("date && sudo timedatectl set-ntp true"),
        "likely",
        brings=("changed-certificate", "index-unreachable", "no-build"),
    ),
    KnownError(
        "no-package-source",
        (
            r"Unable to locate package nvidia-(?:container-toolkit|driver|open)",
            r"Package '?nvidia-(?:container-toolkit|driver)\S*'? has no installation candidate",
            r"No match for argument: nvidia-",
            r"Unable to find a match: nvidia-",
            r"No provider of 'nvidia-",
        ),
        "this system's package sources do not have NVIDIA's packages",
        ADD_NVIDIA_SOURCE,
    ),
)


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
