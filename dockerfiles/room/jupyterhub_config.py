"""The hub of a room, which 'python3 -m labapp room start' runs in a container of its own.

What differs from room to room is in 'room.json'; all else is here, to be read and changed. Options
are those of JupyterHub and DockerSpawner: https://jupyterhub.readthedocs.io
"""

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

from labapp.state import State

HERE, ROOM = Path(__file__).parent, Path("/srv/room")
VIEW = "http://hub:10101"
sys.path.insert(0, str(HERE))

from learners import Learners, account  # noqa: E402
from pair import Pair  # noqa: E402

room = json.loads((ROOM / "room.json").read_text(encoding="utf-8"))
c = get_config()  # noqa: F821 (JupyterHub reads this file, and brings the name)


def class_repository(spawner: Pair) -> str:
    """Return where a learner may push, and by the same name and password log in."""
    return f"{told('registry')}/class/{spawner.escaped_name}"


def class_trust() -> dict[str, str]:
    """Return what an engine needs to trust the registry of the class."""
    return {"REGISTRY": told("registry"), "AUTHORITY": told("authority")}


def told(name: str) -> str:
    """Return what the room's file has by now; empty if nothing."""
    return str(json.loads((ROOM / "room.json").read_text(encoding="utf-8")).get(name, ""))


# Where it is: inside its container, on the room's own network, as "hub".
c.JupyterHub.bind_url = "http://:8000"
c.JupyterHub.hub_ip = ""
c.JupyterHub.hub_connect_ip = "hub"
c.JupyterHub.public_url = room["address"]
c.JupyterHub.db_url = f"sqlite:///{ROOM / 'hub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(ROOM / "cookie_secret")
# After a kill, the number of the proxy that ended with this container may be the hub's own.
proxy = Path("/tmp/proxy.pid")
proxy.unlink(missing_ok=True)
c.ConfigurableHTTPProxy.pid_file = str(proxy)
c.ConfigurableHTTPProxy.auth_token = room["token"]
if room["certificate"]:
    c.JupyterHub.ssl_cert = str(ROOM / "certificate.pem")
    c.JupyterHub.ssl_key = str(ROOM / "certificate.key")
# A hub that is started anew finds the servers that run.
c.JupyterHub.cleanup_servers = False

# Who comes in.
c.JupyterHub.authenticator_class = Learners
c.Learners.state = State.open(ROOM)
c.Learners.class_password = "" if room["list_only"] else room["class_password"]
c.Learners.allow_all = True
if c.Learners.class_password:
    c.JupyterHub.template_vars = {
        "announcement_login": "The first time: choose a name and a password, and type the password "
        "of the class as well. From then on, your own two are enough."
    }
c.Learners.admin_users = {room["teacher"]}
c.JupyterHub.admin_access = True

# What each gets: a pair of containers, within limits.
c.JupyterHub.spawner_class = Pair
c.Pair.prefix = room["name"]
c.Pair.escape = account
c.Pair.image = room["images"]["lab"]
c.Pair.engine_image = room["images"]["engine"]
c.Pair.pull_policy = "never"
c.Pair.remove = True
c.Pair.network_name = room["name"]
c.Pair.use_internal_ip = True
c.Pair.labels = room["labels"]
c.Pair.trust = room["trust"]
c.Pair.mem_limit = room["memory"]
c.Pair.engine_memory = room["engine_memory"]
c.Pair.cpu_limit = c.Pair.engine_cpus = room["cpus"]
c.Pair.disk = "" if room["disk"] == "none" else room["disk"]
c.Pair.default_url = "/lab/tree/00_start_here.ipynb"
# The registry of the class is opened after the hub, which lets its learners in there. The class's
# page is asked directly: the proxy's certificate, if it has one, is for the name on the board.
beside = f"hub,localhost,127.0.0.1,{urlsplit(room['realm']).hostname}"
c.Pair.environment = {
    "LABAPP_CLASS_REPOSITORY": class_repository,
    "LABAPP_CLASS": f"{VIEW}/services/class",
    "NO_PROXY": beside,
    "no_proxy": beside,
}
c.Pair.engine_environment = class_trust
# Not all start at once, when a class comes within a minute; who waits is not sent away.
c.Pair.at_once = room["spawns"]
c.JupyterHub.concurrent_spawn_limit = 0
c.Pair.http_timeout = 180
c.Pair.start_timeout = 1200
c.JupyterHub.active_server_limit = room["learners"] + 1  # and the teacher

# Who has left: after so many minutes without a sign, the pair is removed; its volumes stay.
idle = ["--timeout", str(room["idle_minutes"] * 60), "--cull-every", "60"]
c.JupyterHub.services = [
    {"name": "idle", "command": [sys.executable, "-m", "jupyterhub_idle_culler", *idle]},
    {"name": "room", "api_token": room["token"]},
    {"name": "tokens", "command": [sys.executable, str(HERE / "tokens.py")]},
    # The live view of the class: who is where, and who asks for help.
    {
        "name": "class",
        "url": VIEW,
        "command": [sys.executable, str(HERE / "class_view.py")],
        "environment": {"LABAPP_CLASS_FOLDER": str(ROOM / "class")},
        "oauth_no_confirm": True,
    },
]
c.JupyterHub.load_groups = {"teachers": {"users": [room["teacher"]]}}
c.JupyterHub.load_roles = [
    {
        "name": "idle",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["idle"],
    },
    # What 'labapp room status' asks by.
    {"name": "room", "scopes": ["admin:users", "admin:servers"], "services": ["room"]},
    # More teachers are added in the hub's admin page, to this group.
    {"name": "teacher", "scopes": ["access:services!service=class"], "groups": ["teachers"]},
]
