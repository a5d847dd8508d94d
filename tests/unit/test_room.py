"""What of a room needs no engine; and Kubernetes: KubeSpawner's pod is one server's pair."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes_asyncio.client import ApiClient
from kubespawner import KubeSpawner
from recorded import engine_that_said
from ruamel.yaml import YAML
from traitlets.config import Config

from labapp.errors import LabError
from labapp.room import SETTINGS, start
from labapp.state import REPOSITORY, State

FOLDER = REPOSITORY / "dockerfiles" / "room"
sys.path.insert(0, str(FOLDER))

from pair import LAB_RIGHTS, Pair, engine_rights  # noqa: E402

VALUES: dict[str, Any] = YAML(typ="safe").load((FOLDER / "values.yaml").read_text("utf-8"))
LAB = VALUES["singleuser"]

KEYS = """
cull: enabled every timeout
hub: activeServerLimit concurrentSpawnLimit config
hub.config: Authenticator JupyterHub KubeSpawner NativeAuthenticator
prePuller: continuous extraImages hook
prePuller.continuous: enabled
prePuller.extraImages.engine: name tag
prePuller.hook: enabled
scheduling: podPriority userPlaceholder userScheduler
scheduling.podPriority: enabled
scheduling.userPlaceholder: enabled replicas
scheduling.userScheduler: enabled
singleuser: allowPrivilegeEscalation cmd cpu defaultUrl extraContainers extraPodConfig fsGid image
    memory startTimeout storage uid
singleuser.cpu: guarantee limit
singleuser.image: name tag
singleuser.memory: guarantee limit
singleuser.storage: capacity extraVolumeMounts extraVolumes homeMountPath type
"""
"""What the chart has of these keys (values.schema.yaml, 2026-07-24, commit 48ea50e3)."""


@pytest.mark.parametrize(("name", "change"), [("podman-5", {}), ("docker-26", {"rootless": True})])
def test_an_engine_that_can_run_no_other_is_refused(
    name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    with engine_that_said(name, tmp_path) as engine:
        bench: Any = SimpleNamespace(engine=replace(engine, **change), state=State.open(tmp_path))
        with pytest.raises(LabError, match="DOCKER_HOST"):
            start(bench)


def known() -> dict[str, set[str]]:
    joined = re.sub(r"\n +", " ", KEYS)
    lines = [line.partition(": ") for line in joined.split("\n") if line]
    return {place: set(names.split()) for place, _, names in lines}


def test_the_chart_knows_each_key() -> None:
    assert {*VALUES} <= {"cull", "hub", "prePuller", "scheduling", "singleuser"}
    for place, names in known().items():
        found: Any = VALUES
        for name in place.split("."):
            found = found[name]
        assert {*found} <= names, place
    for place in ("hub", "prePuller", "scheduling", "singleuser"):
        for name, below in VALUES[place].items():
            free = {"extraPodConfig", "extraContainers", "cmd"}  # as Kubernetes has it
            if isinstance(below, dict) and name not in free and f"{place}.{name}" not in known():
                assert name in {"extraImages"}, f"{place}.{name} was not looked at"


async def manifest(config: Config) -> Any:
    made = await KubeSpawner(config=config, _mock=True).get_pod_manifest()
    async with ApiClient() as client:
        return client.sanitize_for_serialization(made)


@pytest.fixture(scope="module")
def pod() -> Any:
    """The pod, by the way in which the chart hands these values to KubeSpawner."""
    storage = LAB["storage"]
    home = {"name": "home", "persistentVolumeClaim": {"claimName": "claim-{user_server}"}}
    config = Config()
    config.KubeSpawner = Config(
        image=f"{LAB['image']['name']}:{LAB['image']['tag']}",
        cmd=LAB["cmd"],
        uid=LAB["uid"],
        fs_gid=LAB["fsGid"],
        allow_privilege_escalation=LAB["allowPrivilegeEscalation"],
        mem_limit=LAB["memory"]["limit"],
        mem_guarantee=LAB["memory"]["guarantee"],
        cpu_limit=LAB["cpu"]["limit"],
        cpu_guarantee=LAB["cpu"]["guarantee"],
        volumes=[home, *storage["extraVolumes"]],
        volume_mounts=[
            {"name": "home", "mountPath": storage["homeMountPath"]},
            *storage["extraVolumeMounts"],
        ],
        extra_containers=LAB["extraContainers"],
        extra_pod_config=LAB["extraPodConfig"] or {},
    )
    with pytest.MonkeyPatch.context() as patch:
        # It talks to no cluster: only the pod is made.
        patch.setattr("kubespawner.spawner.load_config", lambda **_: None)
        return asyncio.run(manifest(config))


def test_the_pod_is_the_pair(pod: Any) -> None:
    lab, engine = pod["spec"]["containers"]
    assert engine["name"] == "engine" and lab["args"][0] == "/opt/lab/dockerfiles/room/start.sh"
    # Volumes: a home that stays, the engine's data, and a socket that both have.
    mounted = {each["name"]: each["mountPath"] for each in lab["volumeMounts"]}
    beside = {each["name"]: each["mountPath"] for each in engine["volumeMounts"]}
    assert mounted == {"home": "/home/learner", "socket": "/run/lab"}
    assert beside == {"engine": "/engine", "socket": "/run/lab"}
    stays = [each["name"] for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each]
    assert stays == ["home"]
    # Limits: as the pair has them by default.
    gigabyte = 1024**3
    assert int(lab["resources"]["limits"]["memory"]) == gigabyte and SETTINGS["memory"] == "1G"
    assert float(lab["resources"]["limits"]["cpu"]) == SETTINGS["cpus"]
    limits = engine["resources"]["limits"]
    assert limits["memory"] == f"{SETTINGS['engine_memory']}i"
    assert SETTINGS["engine_memory"] == Pair.engine_memory.default_value
    assert float(limits["cpu"]) == SETTINGS["cpus"] == Pair.engine_cpus.default_value
    assert limits["ephemeral-storage"] == f"{SETTINGS['disk']}i"
    # Rights: the lab has none, the engine what its trust level says.
    told = lab["securityContext"]
    assert told["runAsUser"] == 1000 and told["allowPrivilegeEscalation"] is False
    assert not told.get("privileged") and LAB_RIGHTS["security_opt"] == ["no-new-privileges"]
    assert engine["securityContext"] == engine_rights("privileged")
    assert pod["spec"]["securityContext"]["fsGroup"] == 1000
    # Both images are on each node before a learner comes.
    pulled = VALUES["prePuller"]["extraImages"]["engine"]
    assert engine["image"] == f"{pulled['name']}:{pulled['tag']}"


def test_a_runtime_takes_the_place_of_rights() -> None:
    assert engine_rights("sysbox-runc") == {"runtime": "sysbox-runc"}
    assert "privileged" not in engine_rights("capabilities")


def test_the_list_of_a_class(tmp_path: Path) -> None:
    from learners import account, add

    from labapp.private.accounts import Accounts
    from labapp.state import State

    state, names = State.open(tmp_path / "room"), tmp_path / "names.csv"
    names.write_text("Name,Password\nAda Lovelace,\nMüller Zoë,wort-1\n\n", encoding="utf-8-sig")
    found = dict(add(state, names))
    assert [*found] == ["ada lovelace", "müller zoë"] and found["müller zoë"] == "wort-1"
    accounts = Accounts(state)
    assert all(accounts.verify(account(name), word) for name, word in found.items())
    for text, line in (("ada\nADA\n", 2), ("ada\n../x\n", 2), ("ada,abc\n", 1), ("x" * 81, 1)):
        names.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"line {line}: "):
            add(state, names)
    assert len(accounts.names()) == 2
