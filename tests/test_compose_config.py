"""compose.yaml and the file of GPUs beside it, as the real Compose reads the two together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.launch.compose import PROFILES, ContainerLab
from labkit.launch.settings import CPU, Flavor, Settings
from labkit.process import run_command
from tests.fakes.host import make_checkout

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.root / "compose.yaml").write_bytes((ROOT / "compose.yaml").read_bytes())
    checkout.token_file.write_text("abc\n")
    return checkout


def read_config(lab, start="run"):
    """The services as Compose understands them, with the files that ``start`` is given."""
    command = [*lab.compose_command([start])[:-1], "config", "--format", "json"]
    answer = run_command(command, timeout_seconds=30, environment=lab.environment())
    assert answer.ok, answer.stderr
    return json.loads(answer.stdout)["services"]


def list_requests(service):
    return service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid_by_hand(checkout, profile):
    command = ["docker", "compose", "--profile", profile, "config", "--services"]
    answer = run_command(command, timeout_seconds=30, folder=checkout.root)
    assert answer.ok, answer.stderr
    assert answer.stdout.split() == [profile]
    assert answer.stderr == ""


def test_by_hand_the_cuda_service_has_every_gpu(checkout):
    services = read_config(ContainerLab(checkout, "docker", CPU, Settings()))
    assert list_requests(services["cuda"]) == [
        {"capabilities": ["gpu"], "driver": "nvidia", "count": -1}
    ]
    for name in ("cpu", "cuda-chosen", "test"):
        assert list_requests(services[name]) == []


@pytest.mark.parametrize(
    ("gpus", "way", "wanted"),
    [
        (("all",), "reservation", {"count": -1}),
        (("0", "MIG-1111"), "reservation", {"device_ids": ["0", "MIG-1111"]}),
        (("all",), "cdi", {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}),
        (("0",), "cdi", {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0"]}),
    ],
)
def test_the_lab_that_is_started_and_the_tests_get_the_chosen_gpus(checkout, gpus, way, wanted):
    flavor = Flavor("cuda", "cu126", gpus, way)
    services = read_config(ContainerLab(checkout, "docker", flavor, Settings()))
    for name, image in (("cuda-chosen", "labkit:cu126"), ("test", "labkit:cu126-test")):
        assert list_requests(services[name]) == [{"capabilities": ["gpu"], **wanted}]
        assert services[name]["image"] == image
        assert services[name]["build"]["args"]["FLAVOR"] == "cuda"
        assert services[name]["build"]["args"]["CUDA_BUILD"] == "cu126"
        assert services[name]["read_only"] is True


def test_podmans_devices_are_a_list_that_compose_takes(checkout):
    flavor = Flavor("cuda", "cu130", ("0", "1"), "cdi")
    lab = ContainerLab(checkout, "podman", flavor, Settings())
    command = ["docker", *lab.compose_command(["run"])[1:-1], "config", "--format", "json"]
    answer = run_command(command, timeout_seconds=30, environment=lab.environment())
    devices = json.loads(answer.stdout)["services"]["cuda-chosen"]["devices"]
    assert [str(device.get("source", device)) for device in devices] == [
        "nvidia.com/gpu=0",
        "nvidia.com/gpu=1",
    ]


def test_the_flavors_differ_in_image_and_gpus_alone(checkout):
    services = read_config(ContainerLab(checkout, "docker", CPU, Settings()))
    apart = {"profiles", "image", "build", "deploy"}
    cpu, cuda, chosen = (
        {key: value for key, value in services[name].items() if key not in apart}
        for name in ("cpu", "cuda", "cuda-chosen")
    )
    assert cpu == cuda == chosen


@pytest.mark.parametrize(
    "name", ["x$(touch pwned)y", "x`touch pwned` y", 'a"$HOME', "a #; b", "a'b"]
)
def test_a_folders_name_reaches_compose_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.setenv("COMPOSE_FILE", "/no/such/file")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "another")
    checkout = make_checkout(tmp_path / name)
    (checkout.root / "compose.yaml").write_bytes((ROOT / "compose.yaml").read_bytes())
    checkout.token_file.write_text("abc\n")
    service = read_config(ContainerLab(checkout, "docker", CPU, Settings(), port=8888))["cpu"]
    # Compose writes "$$" for "$" in its output.
    sources = {volume["source"].replace("$$", "$") for volume in service["volumes"]}
    assert str(checkout.workspace) in sources
    assert not list(tmp_path.rglob("pwned"))
