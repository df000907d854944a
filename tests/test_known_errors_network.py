"""Known errors of names and networks: whether the name is wrong or the name server is silent."""

from __future__ import annotations

import pytest

from labkit.known_errors.match import explain_text

RESOLVE = "HTTPSConnectionPool(host='{0}', port=443): Max retries exceeded (Failed to resolve '{0}'"
NAMES = {
    "curl": ("curl: (6) Could not resolve host: gihtub.com", "github.com is meant"),
    "git": (
        "fatal: unable to access 'https://gitlab.exmple/a.git/': Could not resolve host: "
        "gitlab.exmple",
        "getent hosts gitlab.exmple;",
    ),
    "urllib3": (
        RESOLVE.format("hugingface.co") + " ([Errno -2] Name or service not known)",
        "huggingface.co is meant",
    ),
    "a subdomain": (
        "dial tcp: lookup registry-1.doker.io on 10.0.0.2:53: no such host",
        "registry-1.docker.io is meant",
    ),
    "wget": ("wget: unable to resolve host address 'pytroch.org'", "pytorch.org is meant"),
    "ping": ("ping: files.example: Name or service not known", "getent hosts files.example;"),
    "Node": ("Error: getaddrinfo ENOTFOUND api.example", "getent hosts api.example;"),
    "Windows": (
        r"PS C:\ai> " + RESOLVE.format("files.example") + " ([Errno 11001] getaddrinfo failed)",
        "nslookup files.example",
    ),
    "macOS": (
        "<urlopen error [Errno 8] nodename nor servname provided, or not known>",
        "nslookup <the name>",
    ),
    "a machine": ("ssh: Could not resolve hostname gpu-box: Name or service not known", "gpu-box"),
    "a service": (
        "worker-1  | redis.exceptions.ConnectionError: Error -2 connecting to redis:6379. Name or "
        "service not known.",
        "docker compose ps",
    ),
    "a service of a cluster": (
        "pod/worker-0\nError -2 connecting to redis:6379. Name or service not known.",
        "kubectl get svc -A | grep redis",
    ),
    "a registry that the node asks for": (
        'kubelet: Failed to pull image "reg/app": dial tcp: lookup reg on 1.1.1.1:53: no such host',
        "getent hosts reg",
    ),
    "a build": (
        "#7 [2/4] RUN curl -O https://files.example/x\n#7 0.3 curl: (6) Could not resolve host: "
        "files.example",
        "--network host",
    ),
    "no name": ("httpx.ConnectError: [Errno -2] Name or service not known", "getent hosts <the"),
}


@pytest.mark.parametrize(("text", "said"), NAMES.values(), ids=NAMES.keys())
def test_an_unknown_name_is_looked_at_before_the_name_server(text, said):
    found = explain_text(text)
    assert [each.error.name for each in found.found] == ["unknown-host-name"]
    shown = found.describe()["found"][0]
    assert said in f"{shown['cause']}\n{shown['fix']}"
    assert "restart docker" not in str(shown)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Errno -3] Temporary failure in name resolution", "no name server answers"),
        ("curl: (6) Could not resolve host: download.pytorch.org", "no name server answers"),
        (
            RESOLVE.format("huggingface.co") + " ([Errno -2] Name or service not known)",
            "no way out from here",
        ),
        ("dial tcp: lookup registry-1.docker.io: no such host", "no way out from here"),
        ("dial tcp: lookup registry.example on 10.0.0.2:53: server misbehaving", "no name server"),
        (
            "ssh: Could not resolve hostname gpu-box: Temporary failure in name resolution",
            "no name",
        ),
    ],
)
def test_a_public_name_or_a_passing_failure_is_the_name_servers(text, said):
    found = explain_text(text)
    assert [each.error.name for each in found.found] == ["no-name-server"]
    assert said in found.first.error.cause


def test_a_public_name_on_a_compute_node_is_downloaded_elsewhere():
    text = f"srun: job 7\n{RESOLVE.format('huggingface.co')} ([Errno -2] Name or service not known)"
    assert "HF_HUB_OFFLINE=1" in explain_text(text).describe()["found"][0]["fix"]


def test_a_proxys_unknown_name_is_its_own_error():
    found = explain_text(
        "fatal: unable to access 'https://github.com/a/': Could not resolve proxy: prx"
    )
    assert [each.error.name for each in found.found] == ["unknown-proxy-name"]
    assert "prx " in found.first.error.cause


SYSTEM = "RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:272, unhandled system error"
APART = {
    "containers": (
        f'Two docker containers on two nodes, init_method="tcp://10.30.112.212:10087"\n{SYSTEM}',
        "docker run --network host",
    ),
    "machines": (f"$ torchrun --nnodes=2 train.py\n{SYSTEM}", "NCCL_SOCKET_IFNAME=<the interface"),
    "one container": (f"docker: I run it in a container\n{SYSTEM}", "docker run --shm-size=8g"),
    "no interface": (
        "[0] include/socket.h:311 WARN Socket creation failed : Address family not supported by"
        f" protocol\n{SYSTEM}",
        "docker run --network host",
    ),
    "one machine": (f"$ torchrun --nnodes=1 train.py\n{SYSTEM}", "NCCL_DEBUG=INFO torchrun"),
}


@pytest.mark.parametrize(("text", "fix"), APART.values(), ids=APART.keys())
def test_processes_that_do_not_meet_are_joined_where_they_run(text, fix):
    assert explain_text(text).describe()["found"][0]["fix"].startswith(fix)


def test_a_driver_that_starts_slowly_is_kept_running():
    text = "nvidia-container-cli: initialization error: driver rpc error: timed out: unknown."
    assert "nvidia-persistenced" in explain_text(text).describe()["found"][0]["fix"]
