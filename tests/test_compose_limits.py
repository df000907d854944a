"""What keeps a lab's container from filling the host, in compose.yaml."""

from __future__ import annotations

import pytest

from tests.test_compose import SERVERS, SERVICES, TEXT


@pytest.mark.parametrize("name", SERVICES)
def test_its_log_is_rotated(name: str):
    logging = SERVICES[name]["logging"]
    # Without a driver's name, the options go to the engine's default one, which may refuse them.
    assert logging["driver"] == "json-file"
    assert logging["options"] == {"max-size": "10m", "max-file": "3"}


@pytest.mark.parametrize("name", SERVICES)
def test_its_memory_has_a_limit_that_can_be_set(name: str):
    assert "mem_limit: ${LABKIT_MEMORY:-0}" in TEXT
    assert SERVICES[name]["mem_limit"] == 0


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_knows_the_port_it_is_published_on(name: str):
    service = SERVICES[name]
    published = str(service["environment"]["LABKIT_PUBLISHED_PORT"])
    assert service["ports"] == [f"127.0.0.1:{published}:8888"]
