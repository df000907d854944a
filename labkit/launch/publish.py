"""`make build FLAVOR=cuda IMAGE=registry/name:tag`: an image for other hosts, built on any host."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from labkit.errors import EngineError
from labkit.host.distribution import read_distribution
from labkit.host.engine import EngineFacts, probe_engine
from labkit.host.machine import read_machine
from labkit.host.torch_builds import CPU_BUILD, CUDA_BUILDS, TorchBuild, find_build
from labkit.launch import image
from labkit.launch.compose import list_overrides
from labkit.launch.plan import choose_runtime
from labkit.launch.progress import Steps
from labkit.launch.settings import Checkout, Settings, check_locks
from labkit.process import compose_environment, run_command


@dataclass(frozen=True)
class BuiltImage:
    """A built image: the engine's client, its name, its build, and the revision in its label."""

    client: str
    name: str
    build: TorchBuild
    revision: str | None


def choose_named_build(flavor: str, cuda: str) -> TorchBuild:
    """The build of a flavor by name, regardless of what this host can run.

    >>> choose_named_build("cuda", "auto").name
    'cu130'
    """
    if flavor != "cuda" and cuda == "auto":
        return CPU_BUILD
    return CUDA_BUILDS[0] if cuda == "auto" else find_build(cuda)


def find_engine(settings: Settings) -> str:
    """The engine to build with, docker or podman; it needs no GPU.

    Raises EngineError if no engine, or not the requested one, can build.
    """
    absent = EngineFacts("docker", client_found=False)
    names = [settings.runtime] if settings.runtime in ("docker", "podman") else ["docker", "podman"]
    # An engine on another machine can build too: a build mounts no folder of this machine.
    engines = {name: replace(probe_engine(name, run_command), endpoint=None) for name in names}
    chosen = choose_runtime(
        settings.runtime,
        engines.get("docker", absent),
        engines.get("podman", replace(absent, name="podman")),
        read_distribution(),
        read_machine().system,
    )
    if chosen.value == "local":
        raise EngineError(
            "no container engine here to build an image with",
            cause=chosen.reason,
            fix=(chosen.warning or "").removeprefix("to use the engine instead: ")
            or "make build RUNTIME=docker",
        )
    return chosen.value


def build_image(
    checkout: Checkout, settings: Settings, build: TorchBuild, name: str | None, steps: Steps
) -> BuiltImage:
    """Builds the lab's image with one build of torch; ``name`` defaults to the lab's name for it.

    Raises EngineError with the log's last lines.
    """
    check_locks(checkout, build.locks)
    client = find_engine(settings)
    name = name or name_image(build)
    digest = image.digest_inputs(checkout)
    variables = {
        **compose_environment(),
        **image.build_variables(checkout, digest),
        "LABKIT_IMAGE": name,
        "LABKIT_CUDA_BUILD": (build if build.cuda else CUDA_BUILDS[0]).name,
    }
    image.run_build(
        steps,
        f"building {name}",
        client,
        compose_build(checkout, client, build.flavor),
        variables,
        flavor=build.flavor,
        log_path=checkout.logs_folder / f"build-{build.name}.log",
        fix=f"make build {name_choice(build)}",
    )
    return BuiltImage(client, name, build, image.read_revision(checkout))


def name_image(build: TorchBuild) -> str:
    """The lab's name for the image of a build; LABKIT_IMAGE overrides it."""
    return os.environ.get("LABKIT_IMAGE") or f"labkit:{build.name}"


def compose_build(checkout: Checkout, client: str, service: str) -> list[str]:
    """The command that builds a service's image."""
    file = ["--file", str(checkout.root / "compose.yaml")]
    # Not the checkout's project name: it depends on the folder, and Compose labels the image
    # with it.
    folder = ["--project-directory", str(checkout.root), "--project-name", "labkit"]
    files = [*file, *list_overrides(checkout)]
    return [client, "compose", *folder, *files, "--profile", service, "build", service]


def describe_built(built: BuiltImage) -> list[str]:
    """The last lines of `make build`: what was built, and how to copy it to other hosts."""
    lines = [f"built {built.name}: torch {built.build.torch_version}, revision {built.revision}"]
    if "/" not in built.name:
        return lines
    changed = (built.revision or "-changed").endswith("-changed")
    warning = ["  warning: the checkout has changes that are not committed"] if changed else []
    return [
        *lines,
        *warning,
        f"push it:            {built.client} push {built.name}",
        f"on each host:       {built.client} pull {built.name}",
        f"  from a checkout of the same revision:  LABKIT_IMAGE={built.name} make up"
        f" {name_choice(built.build)}",
    ]


def name_choice(build: TorchBuild) -> str:
    """The arguments of `make` that select this build.

    >>> name_choice(CUDA_BUILDS[0])
    'CUDA=cu130'
    """
    return f"CUDA={build.name}" if build.cuda else "FLAVOR=cpu"
