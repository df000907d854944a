"""Signs of an engine that runs and was set up in a way that stands in the lab's way."""

from __future__ import annotations

from labkit.doctor.distribution import Fix, packages
from labkit.doctor.signs.sign import Sign

SETUP_SIGNS = (
    Sign(
        "no-buildx",
        (
            r"BuildKit is enabled but the buildx component is missing or broken",
            r"the --mount option requires BuildKit",
        ),
        "the lab's images are built by BuildKit, and this docker came without its buildx plugin",
        packages(
            "docker-buildx",
            "docker-buildx-plugin",
            "docker-buildx",
            "docker-buildx",
            "install buildx (docs.docker.com/build/install-buildx)",
        ),
    ),
    Sign(
        "credential-helper-gone",
        (r"error getting credentials.{0,80}docker-credential-",),
        "docker's settings name a program that keeps logins, left over from Docker Desktop",
        Fix("sed -i '/\"credsStore\"/d' ~/.docker/config.json   # then: docker login, if need be"),
        "likely",
        brings=("image-not-there",),
    ),
    Sign(
        "address-pools-used-up",
        (
            r"could not find an available, non-overlapping IPv4 address pool",
            r"all predefined address pools have been fully subnetted",
        ),
        "docker has no addresses left for another network",
        Fix("docker network prune   # removes networks that nothing uses"),
    ),
    Sign(
        "firewall-chain-gone",
        (r"iptables.{0,120}No chain/target/match by that name",),
        "a firewall was restarted and took docker's rules with it",
        Fix("sudo systemctl restart docker"),
        "likely",
    ),
    Sign(
        "name-in-use",
        (r"The container name .{1,80} is already in use by container",),
        "a container of that name is left from before",
        Fix("make down up"),
        "likely",
    ),
    Sign(
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
    Sign(
        "short-image-name",
        (r"did not resolve to an alias and no unqualified-search registries",),
        "podman does not know in which registry to look for a name without one",
        Fix(
            "echo 'unqualified-search-registries = [\"docker.io\"]' "
            "| sudo tee /etc/containers/registries.conf.d/labkit.conf"
        ),
        brings=("image-not-there",),
    ),
    Sign(
        "clock-wrong",
        (r"certificate has expired or is not yet valid", r"certificate is not yet valid"),
        "this machine's clock is off (or the certificate has really run out)",
        Fix("date && sudo timedatectl set-ntp true"),
        "likely",
        brings=("changed-certificate", "index-unreachable", "no-build"),
    ),
    Sign(
        "no-package-source",
        (
            r"Unable to locate package nvidia-(?:container-toolkit|driver|open)",
            r"Package '?nvidia-(?:container-toolkit|driver)\S*'? has no installation candidate",
            r"(?:No match for argument|Unable to find a match): nvidia-",
            r"No provider of 'nvidia-",
        ),
        "this system's package sources do not have NVIDIA's packages",
        Fix(
            "add NVIDIA's own source: docs.nvidia.com/datacenter/cloud-native/container-toolkit",
            debian="sudo sed -i '/^deb /s/ main.*/ main contrib non-free/;"
            "/^Components:/s/main.*/main contrib non-free/' /etc/apt/sources.list "
            "/etc/apt/sources.list.d/debian.sources; sudo apt-get update   "
            "# the driver; for the toolkit: nvidia.github.io/libnvidia-container",
            ubuntu="sudo add-apt-repository restricted && sudo apt-get update   "
            "# the driver; for the toolkit: nvidia.github.io/libnvidia-container",
        ),
    ),
)
