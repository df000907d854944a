"""`labkit status`: whether the lab runs and is well, asked of the lab itself first."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from labkit.launch.compose import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.server import probe_server, reachable_address
from labkit.launch.settings import Checkout, Flavor, Settings
from labkit.launch.state import LabState, read_state, read_token
from labkit.launch.workspace import find_first_notebook


@dataclass(frozen=True)
class LabStatus:
    """The lab as it is now; ``problem`` says what is wrong where it runs but is not well."""

    checkout: Checkout
    state: LabState | None = None
    running: bool = False
    healthy: bool = False
    problem: str | None = None
    url: str | None = None

    @classmethod
    def of(cls, checkout: Checkout, state: LabState, *, healthy: bool, token: str) -> LabStatus:
        """The status of a lab that answers."""
        return cls(checkout, state, True, healthy, None, make_url(checkout, state, token))

    @property
    def opens_to_others(self) -> bool:
        """True where the lab listens on more than loopback."""
        return self.state is not None and not ipaddress.ip_address(self.state.bind).is_loopback

    def describe(self) -> dict[str, object]:
        """The status as ``--json`` prints it; what is not known is null."""
        state = self.state
        return {
            "running": self.running,
            "healthy": self.healthy,
            "runtime": state.runtime if state else None,
            "flavor": state.flavor if state else None,
            "build": state.build if state else None,
            "gpus": state.gpus if state else None,
            "url": self.url,
            "port": state.port if state else None,
            "bind": state.bind if state else None,
            "started_at": state.started_at if state else None,
            "reason": state.reason if state else None,
            "workspace": str(self.checkout.workspace),
            "problem": self.problem,
        }


def make_url(checkout: Checkout, state: LabState, token: str) -> str:
    """Where to open the lab: on its first notebook, with the token."""
    address = reachable_address(state.bind)
    host = f"[{address}]" if ":" in address else address
    notebook = find_first_notebook(checkout)
    path = f"lab/tree/{notebook}" if notebook else "lab"
    return f"http://{host}:{state.port}/{path}?token={token}"


def open_lab(checkout: Checkout, state: LabState) -> ContainerLab | LocalLab:
    """The lab that ``state`` tells of."""
    settings = Settings(state.runtime, state.flavor, state.port, state.bind)
    gpus = tuple(state.gpus.split(",")) if state.gpus else ()
    flavor = Flavor(state.flavor, state.build, gpus, state.way)
    if state.runtime == "local":
        return LocalLab(checkout, settings, state.port, flavor)
    return ContainerLab(checkout, state.runtime, flavor, settings, state.port)


def list_differences(settings: Settings, state: LabState) -> list[str]:
    """What was asked for by name and the lab that runs is not, as it is typed after `make up`."""
    gpus = ",".join(settings.gpus) or "auto"
    return [
        f"{name}={asked}"
        for name, asked, has in (
            ("RUNTIME", settings.runtime, (state.runtime,)),
            ("FLAVOR", settings.flavor, (state.flavor,)),
            ("CUDA", settings.cuda, (state.build,)),
            ("GPUS", gpus, (state.gpus, state.gpus_asked)),
        )
        if asked not in ("auto", *has)
    ]


def read_status(checkout: Checkout) -> LabStatus:
    """Whether the lab runs and answers. Asks the engine only where the lab itself is silent."""
    state = read_state(checkout)
    if state is None:
        return LabStatus(checkout)
    token = read_token(checkout)
    answer = probe_server(state.port, token, reachable_address(state.bind))
    if answer == "healthy":
        return LabStatus.of(checkout, state, healthy=True, token=token)
    if not open_lab(checkout, state).is_alive(state.handle):
        kind = "process" if state.runtime == "local" else "container"
        return LabStatus(checkout, state, problem=f"its {kind} is gone: it was killed or crashed")
    if answer == "foreign" and not token:
        problem = f"its token is gone: {checkout.token_file}"
    elif answer == "foreign":
        problem = f"another program answers on port {state.port}"
    else:
        problem = f"it runs, but does not answer on port {state.port}"
    return LabStatus(checkout, state, running=True, problem=problem)
