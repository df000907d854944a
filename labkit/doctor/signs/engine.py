"""Signs of the container engine: its daemon, Compose, ports, disks and owners."""

from __future__ import annotations

from labkit.doctor.distribution import INSTALL_COMPOSE, Fix
from labkit.doctor.signs.sign import Sign

ENGINE_SIGNS = (
    Sign(
        "daemon-not-running",
        (
            r"Cannot connect to the Docker daemon",
            r"error during connect: .{0,200}docker",
            r"unable to connect to Podman socket",
            r"Cannot connect to Podman",
        ),
        "the engine's daemon does not run, or the client looks for it in another place",
        Fix(
            "sudo systemctl enable --now docker",
            alpine="sudo rc-update add docker && sudo service docker start",
        ),
        "likely",
        otherwise="docker context use default; unset DOCKER_HOST",
    ),
    Sign(
        "daemon-refuses",
        (r"permission denied while trying to connect to the docker (?:daemon socket|API)",),
        "this user is not in the docker group",
        Fix("sudo usermod -aG docker $USER   # then log out and in again"),
    ),
    Sign(
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
    Sign(
        "compose-file-too-new",
        (
            r"Unsupported config option for services",
            r"The Compose file .{0,200} is invalid because",
        ),
        "Compose 1 reads this file and does not understand it",
        INSTALL_COMPOSE,
        "likely",
    ),
    Sign(
        "port-taken",
        (
            r"port is already allocated",
            r"address already in use",
            r"ports are not available",
            r"The port \d+ is already in use",
        ),
        "another program listens on this port already",
        Fix("make up   # takes the next free port; or choose one: make up PORT=8890"),
        otherwise="ss -ltnp   # shows who has it",
    ),
    Sign(
        "token-rejected",
        (r"Invalid credentials", r"403 (?:GET|PUT|POST) .{0,200}token", r"wrong password or token"),
        "the page is another Jupyter's, which was on this port first, or the URL is an old one",
        Fix("make status   # prints the URL of this lab"),
        "possible",
    ),
    Sign(
        "work-folder-refused",
        (
            r"PermissionError: \[Errno 13\] Permission denied: '?/?work\b",
            r"PermissionError: \[Errno 13\] Permission denied: '/(?:home|cache|workspace|opt)\b",
            r"Permission denied: .{0,100}\.ipynb",
        ),
        "the container's user does not own the folder (named volumes arrive owned by root)",
        Fix('sudo chown -R "$(id -u):$(id -g)" work && make down up'),
        "likely",
    ),
    Sign(
        "missing-bind-source",
        (r"bind source path does not exist", r"invalid mount config for type \"?bind"),
        "a folder that the container is to see is not there",
        Fix("mkdir -p work && make up"),
    ),
    Sign(
        "read-only",
        (r"\[Errno 30\] Read-only file system", r"EROFS: read-only file system"),
        "the lab writes only to work/, its caches and /tmp; all else is read-only on purpose",
        Fix("write to /work, /cache or /tmp instead"),
        "likely",
    ),
    Sign(
        "no-user-name",
        (r"getpwuid\(\): uid not found", r"I have no name!"),
        "the container's user id has no entry in /etc/passwd (torch before 2.13 asks for one)",
        Fix("export USER=lab HOME=/cache/home"),
    ),
    Sign(
        "wrong-architecture",
        (r"exec format error", r"does not match the (?:detected host|specified) platform"),
        "the image was built for another processor architecture",
        Fix("make build   # builds it for this machine"),
    ),
    Sign(
        "out-of-memory-killed",
        (
            r"killed by signal: Killed",
            r"OOMKilled.{0,5}true",
            r"Out of memory: Killed process",
            r"oom-kill:constraint=",
            r"exit(?:ed with)? (?:code|status):? 137\b",
            r"signal: killed",
            r"Killed signal terminated program cc1plus",
        ),
        "the kernel ended a process because the memory was used up",
        Fix("free -h   # then give the lab more (LABKIT_MEMORY=16g make down up), or load less"),
        "likely",
        brings=("daemon-not-running",),
    ),
    Sign(
        "too-many-watches",
        (r"inotify watch limit reached", r"System limit for number of file watchers reached"),
        "this user has no file watches left",
        Fix("sudo sysctl fs.inotify.max_user_watches=524288"),
    ),
)
