"""What somebody who got into a running container can do there, tried out from the inside."""

from __future__ import annotations

import json
import uuid
from typing import Any

import docker.errors
import pandas as pd

from labapp.attacks.journal import Change, Journal
from labapp.bench import Bench
from labapp.contents.tools import KINDS
from labapp.errors import AttackError
from labapp.feedback import Feedback
from labapp.images import pull
from labapp.images.running import discard
from labapp.images.transfer import with_tag
from labapp.reference import Reference
from labapp.state import ROLE_LABEL

HARDENED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "user": "10001",
}
"""How a server should run a container that needs nothing else."""

OPTIONS = [
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--user", "10001"),
]
"""The same for the command line."""

_PROBE = r"""
import json, os, re, sys
kinds = json.loads(sys.argv[1])
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
def writable(folder):
    path = os.path.join(folder, ".labapp-probe")
    try:
        open(path, "w").close()
        os.remove(path)
        return True
    except OSError:
        return False
names = {kind: set() for kind in kinds}
for folder in os.environ.get("PATH", "").split(":"):
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        for kind, pattern in kinds.items():
            if re.fullmatch(pattern, name) and os.access(os.path.join(folder, name), os.X_OK):
                names[kind].add(name)
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": bin(int(status["CapEff"], 16)).count("1"),
    "can gain": status.get("NoNewPrivs", "0").strip() == "0",
    "writable": [d for d in ("/", "/etc", "/usr/bin", sys.prefix) if writable(d)],
    "tools": {kind: sorted(found) for kind, found in names.items()},
}))
"""


def exposure(
    bench: Bench, reference: Reference | str, *, hardened: bool = False, feedback: Feedback
) -> pd.DataFrame:
    """Start a container of an image that has Python, and try from inside what it lets one do.

    Args:
        bench: which lab.
        reference: the image.
        hardened: start it without root, with a read-only file system and without capabilities,
            instead of as the image says.
        feedback: where the command is told.

    Returns:
        Columns ``question``, ``answer`` (in words) and ``open`` (whether it helps an attacker).

    Raises:
        PullError: the image is neither on the engine nor in its registry.
        AttackError: it does not run, or has no Python to try things with.
    """
    reference = with_tag(reference)
    doing = f"looking into a container of '{reference}'"
    feedback.command(["docker", "run", "-d", *(OPTIONS if hardened else ()), str(reference)])
    with bench.engine.doing(doing, AttackError):
        try:
            bench.engine.client.images.get(str(reference))
        except docker.errors.ImageNotFound:
            pull(bench.engine, bench.server, reference, feedback=feedback)
        name = f"labapp-exposed-{uuid.uuid4().hex[:8]}"
        journal = Journal(bench.state)
        change = journal.note(Change("run", "container", name))
        container = bench.engine.client.containers.create(
            str(reference),
            name=name,
            # It only has to be there: what the service itself does is no question here.
            entrypoint=["python3", "-c", "import time; time.sleep(600)"],
            command=[],
            labels={**bench.state.labels, ROLE_LABEL: "attack"},
            network_mode="none",
            **(HARDENED if hardened else {}),
        )
        try:
            container.start()
            looked = container.exec_run(["python3", "-c", _PROBE, json.dumps(KINDS)], stderr=False)
            assert isinstance(looked.output, bytes)
            printed = looked.output.decode("utf-8", "replace").strip()
            if looked.exit_code != 0:
                raise AttackError(
                    f"{doing}: the look inside ended with {looked.exit_code}: {printed[-300:]}"
                )
            found = json.loads(printed.splitlines()[-1])
        finally:
            discard(container)
            journal.drop(change)
    return _table(found)


def _table(found: dict[str, Any]) -> pd.DataFrame:
    uid, capabilities = found["uid"], found["capabilities"]
    writable, tools = found["writable"], found["tools"]
    rows = [
        ("Who am I?", "root (uid 0)" if uid == 0 else f"uid {uid}", uid == 0),
        ("Which of the kernel's privileges?", f"{capabilities} capabilities", capabilities > 0),
        (
            "Can a set-uid program give me more?",
            "yes" if found["can gain"] else "no: no-new-privileges is set",
            found["can gain"],
        ),
        ("Where can I write?", ", ".join(writable) or "nowhere that matters", bool(writable)),
    ]
    for kind, names in tools.items():
        shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
        rows.append((f"Is there a {kind}?", shown or "none", bool(names)))
    return pd.DataFrame(rows, columns=["question", "answer", "open"])
