"""The controls of what is deployed: a gate before the server, and a container with less to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import AttackError, InvalidReference, NotInRegistry
from labapp.inside.findings import TOOLS
from labapp.journey import transfer
from labapp.journey.deploy import read_deployment
from labapp.journey.transfer import with_tag
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.http import same_address

if TYPE_CHECKING:
    import pandas as pd

HARDENED = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user 10001"
"""How a server should run a container that needs nothing else."""

# Runs inside the container, and prints the answers as JSON: question, answer, open to an attacker.
_PROBE = r"""
import json, os, re, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
uid, capabilities = os.getuid(), bin(int(status["CapEff"], 16)).count("1")
gains = status.get("NoNewPrivs", "0").strip() == "0"
def writable(folder):
    path = os.path.join(folder, ".labapp-probe")
    try:
        open(path, "w").close()
        os.remove(path)
        return True
    except OSError:
        return False
places = [folder for folder in ("/", "/etc", "/usr/bin", sys.prefix) if writable(folder)]
rows = [
    ("Who am I?", "root (uid 0)" if uid == 0 else "uid %d" % uid, uid == 0),
    ("Which of the kernel's privileges?", "%d capabilities" % capabilities, capabilities > 0),
    ("Can a set-uid program give me more?",
     "yes" if gains else "no: no-new-privileges is set", gains),
    ("Where can I write?", ", ".join(places) or "nowhere that matters", bool(places)),
]
folders = [folder for folder in os.environ.get("PATH", "").split(":") if os.path.isdir(folder)]
programs = {name for folder in folders for name in os.listdir(folder)
            if os.access(os.path.join(folder, name), os.X_OK)}
for kind, pattern in json.loads(sys.argv[1]).items():
    names = sorted(name for name in programs if re.fullmatch(pattern, name))
    shown = ", ".join(names[:6]) + (" \u2026" if len(names) > 6 else "")
    rows.append(("Is there a %s?" % kind, shown or "none", bool(names)))
print(json.dumps(rows))
"""


@dataclass(frozen=True)
class Refusal:
    """Why one service of a deployment file, by its line, from 1, is refused."""

    service: str
    line: int
    image: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, service '{self.service}', image '{self.image}': {self.reason}"


def refusals(file: Path, *, allowed: Sequence[str], registry: Registry) -> list[Refusal]:
    """Return what a gate would refuse in a deployment file; empty when it may pass.

    Each image's registry and repository must fit one of the patterns that are allowed, if there are
    any. The registry is asked whether it has the digests that name it.
    """
    return [
        Refusal(service.name, service.line, service.image, reason)
        for service in read_deployment(file)
        if (reason := _reason(service.image, allowed, registry))
    ]


def gate(file: Path, *, allowed: Sequence[str], registry: Registry) -> bool:
    """Say whether a deployment file may pass, as :func:`refusals` tells, and why not."""
    found = refusals(file, allowed=allowed, registry=registry)
    verdict = f"refuses '{file.name}':" if found else f"lets '{file.name}' pass."
    feedback.say("\n  ".join([f"The gate {verdict}", *map(str, found)]))
    return not found


def _reason(image: str, allowed: Sequence[str], registry: Registry) -> str:
    try:
        reference = Reference.parse(image)
    except InvalidReference as error:
        return f"it is no reference: {error}"
    if reference.digest is None:
        named = f"the tag '{reference.tag}'" if reference.tag else "no tag, so 'latest'"
        return f"not pinned: it names {named}, which may be another image tomorrow"
    name = f"{reference.registry}/{reference.repository}"
    if allowed and not any(fnmatchcase(name, pattern) for pattern in allowed):
        return f"not allowed: only {', '.join(allowed)} may be deployed here"
    if same_address(reference.registry, registry.address):
        try:
            registry.manifest_bytes(reference.repository, reference.digest)
        except NotInRegistry:
            return "the registry has no such digest"
    return ""


def exposure(bench: Bench, reference: Reference | str, *, hardened: bool = False) -> pd.DataFrame:
    """Start a container of an image that has Python, and try from inside what it lets one do."""
    import pandas as pd

    reference = with_tag(reference)
    doing = f"looking into a container of '{reference}'"
    words = ["docker", "run", "--rm", "--network", "none", *(HARDENED.split() if hardened else ())]
    feedback.command([*words, str(reference)])
    if bench.engine.image(str(reference)) is None:
        transfer.pull(bench.engine, bench.server, reference)
    words += [f"--label={name}={value}" for name, value in bench.engine.labels.items()]
    words += ["--entrypoint", "python3", str(reference), "-c", _PROBE, json.dumps(TOOLS)]
    looked = subprocess.run(
        words, env=bench.engine.environment(), capture_output=True, text=True, errors="replace"
    )
    if looked.returncode != 0:
        raise AttackError(
            f"{doing}: the look inside ended with {looked.returncode}: {looked.stderr[-300:]}. "
            "Take an image that has Python."
        )
    rows = json.loads(looked.stdout.splitlines()[-1])
    return pd.DataFrame(rows, columns=["question", "answer", "open"])
