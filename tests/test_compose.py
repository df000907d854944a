"""compose.yaml with none of the launcher's variables set: safe by default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # comes with JupyterLab

from labkit.launch.compose import PROFILES, ContainerLab
from labkit.launch.settings import CPU, Identity, Settings
from tests.fakes.host import make_checkout

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")


def fill_in(text):
    """The file with each variable at its default, as Compose fills it in: the inner ones first."""
    filled = re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", text)
    return filled if filled == text else fill_in(filled)


COMPOSE = yaml.safe_load(fill_in(TEXT))
SERVICES = COMPOSE["services"]
# What a build takes without its Dockerfile declaring it.
PREDEFINED = {
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    "SOURCE_DATE_EPOCH",
}
SERVERS = [name for name in SERVICES if name != "test"]


def test_the_services():
    assert set(SERVICES) == set(PROFILES) == {"cpu", "cuda", "cuda-chosen", "test"}
    assert all(service["profiles"] == [name] for name, service in SERVICES.items())


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "privileged" not in service
    assert "cap_add" not in service
    assert service.get("user", "1000:1000").split(":")[0] != "0"


def test_all_share_one_hardened_block():
    shared = COMPOSE["x-hardened"]
    assert set(shared) >= {"cap_drop", "security_opt", "read_only", "shm_size", "mem_limit"}
    for service in SERVICES.values():
        assert {name: service[name] for name in shared} == shared


@pytest.mark.parametrize("name", SERVERS)
def test_it_is_published_on_loopback_alone(name):
    assert SERVICES[name]["ports"] == ["127.0.0.1:8888:8888"]


def test_the_tests_publish_nothing_and_have_no_workspace():
    assert {"ports", "volumes", "secrets", "restart"}.isdisjoint(SERVICES["test"])


@pytest.mark.parametrize("name", SERVERS)
def test_the_token_is_a_secret_and_no_variable(name):
    service = SERVICES[name]
    assert service["secrets"] == ["jupyter_token"]
    assert COMPOSE["secrets"]["jupyter_token"] == {"file": "./.labkit/token"}
    values = service["environment"]
    assert values["LABKIT_TOKEN_FILE"] == "/run/secrets/jupyter_token"
    assert [key for key in values if "TOKEN" in key] == ["LABKIT_TOKEN_FILE"]
    assert not any("TOKEN" in key for key in service["build"]["args"])


@pytest.mark.parametrize("name", SERVERS)
def test_only_workspace_caches_and_tmp_can_be_written(name):
    service = SERVICES[name]
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    assert set(mounts) == {"/work", "/cache"}
    assert (mounts["/work"]["type"], mounts["/work"]["source"]) == ("bind", "./work")
    assert mounts["/work"]["bind"]["create_host_path"] is False
    assert mounts["/cache"]["type"] == "volume"
    assert mounts["/cache"]["source"] in COMPOSE["volumes"]
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_torch_compile_builds_in_tmp_can_run(name):
    [tmp] = [mount for mount in SERVICES[name]["tmpfs"] if mount.startswith("/tmp:")]
    assert "exec" in tmp.partition(":")[2].split(",")


@pytest.mark.parametrize("name", SERVICES)
def test_resources_are_limited_by_variables(name):
    service = SERVICES[name]
    assert service["shm_size"] == "2g"
    assert service["pids_limit"] == 4096
    assert {"LABKIT_SHM_SIZE", "LABKIT_MEMORY", "LABKIT_CPUS", "LABKIT_PIDS"} <= find_variables()


@pytest.mark.parametrize("name", SERVERS)
def test_it_comes_back_unless_it_was_stopped(name):
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_a_target_of_its_dockerfile(name):
    build = SERVICES[name]["build"]
    dockerfile = (ROOT / build["dockerfile"]).read_text(encoding="utf-8")
    assert f" AS {build['target']}\n" in dockerfile
    assert build["args"]["BASE_IMAGE"] == "debian:bookworm-slim"
    declared = set(re.findall(r"^ARG (\w+)", dockerfile, flags=re.MULTILINE))
    assert set(build["args"]) - PREDEFINED <= declared


@pytest.mark.parametrize("name", SERVICES)
def test_a_proxys_address_is_handed_on_and_not_declared(name):
    """Engines keep these arguments out of an image's history, unless its Dockerfile names them."""
    arguments = SERVICES[name]["build"]["args"]
    assert {key: arguments[key] for key in PREDEFINED} == dict.fromkeys(PREDEFINED)
    dockerfile = (ROOT / SERVICES[name]["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert not any(f"ARG {key}" in dockerfile for key in PREDEFINED)


@pytest.mark.parametrize("name", SERVICES)
def test_a_certificate_is_a_secret_of_the_build(name):
    assert SERVICES[name]["build"]["secrets"] == ["ca"]
    assert COMPOSE["secrets"]["ca"] == {"file": "/dev/null"}


@pytest.mark.parametrize(
    ("service", "flavor", "build", "image"),
    [
        ("cpu", "cpu", None, "labkit:cpu"),
        ("cuda", "cuda", "cu130", "labkit:cu130"),
        ("test", "cpu", "cu130", "labkit:cpu-test"),
    ],
)
def test_which_stages_make_each_services_image(service, flavor, build, image):
    arguments = SERVICES[service]["build"]["args"]
    assert (arguments["FLAVOR"], arguments.get("CUDA_BUILD")) == (flavor, build)
    assert arguments.get("TOOLS", "none") == ("test" if service == "test" else "none")
    assert SERVICES[service]["image"] == image


def find_variables():
    """The variables that compose.yaml reads."""
    return set(re.findall(r"\$\{(\w+)", TEXT))


def test_every_variable_has_a_default():
    assert re.findall(r"\$\{\w+\}|\$\w+", TEXT) == []


def test_what_the_launcher_sets_is_what_compose_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.launch.compose.os.environ", {})
    lab = ContainerLab(
        make_checkout(tmp_path), "docker", CPU, Settings(), 8888, Identity(1000, 1000)
    )
    assert set(lab.environment()) <= find_variables()
