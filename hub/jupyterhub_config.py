"""JupyterHub for a class: each learner gets a container of the lab; hub/compose.yaml sets it up.

The variables HUB_* are explained in docs/hub.md.
"""

import html
import os
import sys
from pathlib import Path

from dockerspawner import DockerSpawner

c = get_config()  # noqa: F821 - JupyterHub puts it here
SEEN = (
    "The instructor can see which exercises you have passed and when, and who runs the machine"
    " can read your files."
)


def read_profiles() -> dict[str, dict]:
    """What a learner can choose from, by title: the container's options of the engine.

    HUB_GPUS is a list such as "one GPU=0; MIG instance=MIG-5c8e...": a title and the GPU's index,
    UUID or MIG UUID.
    """
    profiles: dict[str, dict] = {"CPU": {}}
    for item in filter(str.strip, os.environ["HUB_GPUS"].split(";")):
        title, _, device = (word.strip() for word in item.partition("="))
        if not (title and device):
            sys.exit(f"error: HUB_GPUS={item.strip()!r} is not TITLE=DEVICE")
        request = {"Driver": "nvidia", "DeviceIDs": [device], "Capabilities": [["gpu"]]}
        profiles[title] = {"device_requests": [request]}
    return profiles


PROFILES = read_profiles()
MEMORY = os.environ["HUB_MEMORY"]
MEMORY = int(MEMORY) if MEMORY.isdecimal() else MEMORY
HARDENED = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "read_only": True,
    "pids_limit": int(os.environ["HUB_PIDS"]),
    "shm_size": "1g",
    # exec: torch.compile runs what it builds there.
    "tmpfs": {"/tmp": "exec,mode=1777,size=1g"},  # noqa: S108 - the container's own
    # Memory is not extended by swap: the learner who fills it is the one who is stopped.
    "memswap_limit": MEMORY,
}


class LabSpawner(DockerSpawner):
    """A learner's container, with the options of the profile that the learner chose."""

    def _options_form_default(self) -> str:
        rows = [
            f'<label><input type="radio" name="profile" value="{html.escape(title, quote=True)}"'
            f"{' checked' if not number else ''}> {html.escape(title)}</label><br>"
            for number, title in enumerate(PROFILES)
        ]
        return "".join(rows) if len(PROFILES) > 1 else ""

    def options_from_form(self, formdata: dict[str, list[str]]) -> dict[str, str]:
        """The chosen profile."""
        return {"profile": formdata.get("profile", [""])[0]}

    async def start(self):  # noqa: ANN201 - JupyterHub's own
        """Starts the container."""
        title = self.user_options.get("profile", "")
        chosen = PROFILES.get(title, PROFILES["CPU"])
        self.extra_host_config = {**HARDENED, **chosen}
        # Where nvidia is the engine's default runtime, the image would get every GPU.
        gpus = {} if chosen else {"NVIDIA_VISIBLE_DEVICES": "void"}
        others = {k: v for k, v in self.environment.items() if k != "NVIDIA_VISIBLE_DEVICES"}
        self.environment = {**others, **gpus}
        return await super().start()


c.JupyterHub.spawner_class = LabSpawner
c.JupyterHub.template_vars = {"announcement": SEEN}
c.JupyterHub.bind_url = "http://:8000"
c.JupyterHub.hub_bind_url = "http://0.0.0.0:8081"
c.JupyterHub.hub_connect_url = "http://hub:8081"
c.JupyterHub.db_url = "sqlite:////srv/hub/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = "/srv/hub/cookie_secret"  # noqa: S105 - a path
# A new hub takes over the running servers, and leaves them when it stops.
c.JupyterHub.cleanup_servers = False
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = "http://proxy:8001"
c.ConfigurableHTTPProxy.auth_token = Path("/run/secrets/proxy_token").read_text().strip()

c.DockerSpawner.image = os.environ["HUB_IMAGE"]
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.prefix = "labkit-learner"
c.DockerSpawner.network_name = "labkit-hub"
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.remove = True
c.DockerSpawner.volumes = {
    "labkit-learner-{username}-work": "/work",
    "labkit-learner-{username}-cache": "/cache",
}
c.DockerSpawner.cmd = ["labkit", "serve"]
c.DockerSpawner.args = [
    f"--MappingKernelManager.cull_idle_timeout={os.environ['HUB_KERNEL_IDLE']}",
    "--MappingKernelManager.cull_interval=60",
    "--MappingKernelManager.cull_connected=True",
]
c.DockerSpawner.default_url = "/lab"
c.DockerSpawner.mem_limit = MEMORY
c.DockerSpawner.cpu_limit = float(os.environ["HUB_CPUS"])
c.DockerSpawner.start_timeout = 120
c.DockerSpawner.http_timeout = 120

AUTHENTICATOR = os.environ["HUB_AUTHENTICATOR"]
# By sign-up that is approved, or by the institution, whoever can log in may use a server. At a
# public service, where everyone has an account, only who is named may.
ALLOWED = os.environ["HUB_ALLOWED"].split() or (
    ["*"] if AUTHENTICATOR in ("native", "generic-oauth") else []
)
c.JupyterHub.authenticator_class = AUTHENTICATOR
c.Authenticator.admin_users = set(os.environ["HUB_ADMIN"].split())
c.Authenticator.allow_all = "*" in ALLOWED
c.Authenticator.allowed_users = set(ALLOWED) - {"*"}
# OpenID Connect's own words, where the institution does not use others.
SCOPE = os.environ.get("OAUTH2_SCOPE") or "openid profile email"
c.GenericOAuthenticator.scope = SCOPE.split()
NAME_CLAIM = os.environ.get("OAUTH2_USERNAME_KEY") or "preferred_username"
c.GenericOAuthenticator.username_claim = NAME_CLAIM
c.NativeAuthenticator.open_signup = os.environ["HUB_SIGNUP"] == "open"
c.NativeAuthenticator.minimum_password_length = 10
c.NativeAuthenticator.allowed_failed_logins = 10

if os.environ["HUB_SERVER_IDLE"] != "0":
    c.JupyterHub.load_roles = [
        {
            "name": "culler",
            "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
            "services": ["culler"],
        }
    ]
    c.JupyterHub.services = [
        {
            "name": "culler",
            "command": [
                *(sys.executable, "-m", "jupyterhub_idle_culler"),
                f"--timeout={os.environ['HUB_SERVER_IDLE']}",
            ],
        }
    ]
