"""The attacks: at each step of an image's journey the wrong thing, done for real.

Beside them stand a mirror that they need, and the controls of what is deployed: a gate before the
server, and a container with less to it.
"""

# ruff: noqa: D101, D102 - what an attack's class is, and does, stands in `wrong`.

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from labapp import feedback
from labapp.attacks import journal, middleman
from labapp.attacks.forging import Forged, doctored, forge, marker, startup_code, wheel_to_swap
from labapp.attacks.journal import Change, Journal, own_path, own_tag, write_byte
from labapp.bench import Bench
from labapp.errors import AttackError, InvalidReference
from labapp.inside.archive import opened
from labapp.inside.findings import TOOLS
from labapp.journey import build, transfer
from labapp.journey.bases import SLIM
from labapp.journey.deploy import read_deployment
from labapp.journey.run import wait_until_ready
from labapp.reference import DEFAULT_TAG, Reference
from labapp.registry import podman
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import Descriptor, digest_of
from labapp.registry.server import PORT_INSIDE
from labapp.state import ROLE_LABEL

if TYPE_CHECKING:
    import pandas as pd

SECRET = "DEPLOY_PASSWORD=harmless-9f2c41d7-not-a-real-one"
"""What the attack on the build leaves in a layer."""

HARDENED = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user 10001"
"""How a server should run a container that needs nothing else."""

LARGEST = 256 * 1024 * 1024
"""The longest layer that is looked into, in bytes; one with a compiler has about 70 MB."""

# Runs inside the container, and prints the answers as JSON: question, answer, open to an attacker.
_PROBE = r"""
import json, os, re, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
uid, capabilities = os.getuid(), bin(int(status["CapEff"], 16)).count("1")
gains = status.get("NoNewPrivs", "0").strip() == "0"
folders = ("/", "/etc", "/usr/bin", sys.prefix)
places = [folder for folder in folders if os.access(folder, os.W_OK)]
rows = [
    ("Who am I?", "root (uid 0)" if uid == 0 else "uid %d" % uid, uid == 0),
    ("Which of the kernel's privileges?", "%d capabilities" % capabilities, capabilities > 0),
    ("Can a set-uid program give me more?",
     "yes" if gains else "no: no-new-privileges is set", gains),
    ("Where can I write?", ", ".join(places) or "in no folder of programs", bool(places)),
]
brought, can = "/tmp/brought", False
try:
    with open(brought, "w") as file:
        file.write("#!%s\n" % sys.executable)
    os.chmod(brought, 0o755)
    can = os.spawnl(os.P_WAIT, brought, brought) == 0
except OSError:
    pass
rows.append(("Can I bring a program, and run it?", "yes, in /tmp" if can else "not in /tmp", can))
folders = [folder for folder in os.environ.get("PATH", "").split(":") if os.path.isdir(folder)]
programs = {name for folder in folders for name in os.listdir(folder)
            if os.access(os.path.join(folder, name), os.X_OK)}
for kind, pattern in json.loads(sys.argv[1]).items():
    names = sorted(name for name in programs if re.fullmatch(pattern, name))
    shown = ", ".join(names[:6]) + (" \u2026" if len(names) > 6 else "")
    rows.append(("Is there a %s?" % kind, shown or "none", bool(names)))
print(json.dumps(rows))
"""


class Attack:
    """One wrong thing at a step of an image's journey: what can get in, and what stops it."""

    id: ClassVar[str]
    step: ClassVar[str]
    wrong: ClassVar[str]
    control: ClassVar[str]

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        """Do it; a delivery's release goes into what is planted, so that no two are the same."""
        raise NotImplementedError


@dataclass(frozen=True)
class Happened:
    """What an attack did: by its sign, a text or a diff ID, it is known in an image."""

    attack: Attack
    changed: str
    evidence: Mapping[str, str] = field(default_factory=dict)
    sign: str = ""
    address: str = ""

    @property
    def box(self) -> str:
        """The announcement, as a box of text that no narrow window breaks."""
        lines = [f"ATTACK · {self.attack.step} · {self.attack.wrong}"]
        told = f"{self.changed} All of it is harmless."
        lines += textwrap.wrap(told, 84, break_on_hyphens=False, break_long_words=False)
        lines += [f"  {name}: {value}" for name, value in self.evidence.items()]
        lines += ["Undo: lab.undo()"]
        return "\n".join(["╔" + "═" * 88, *(f"║ {line}" for line in lines), "╚" + "═" * 88])


class Secret(Attack):
    id = "secret"
    step = "source → build"
    wrong = "a secret is copied in, and a later layer only hides it"
    control = ".dockerignore, build secrets, a scan of every layer"

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        folder, noted = own_path(bench, target or bench.work / "leak"), Journal(bench.state)
        file = folder / ".env"
        before = file.read_bytes() if file.exists() else b""
        noted.change_file(self.id, file, before + f"{SECRET}\n".encode())
        if release:
            return Happened(self, f"A password is in '{file}'.", {"file": str(file)}, SECRET)
        # Outside of a delivery, nobody else builds with it.
        base, name = bench.base(SLIM), Reference(bench.registry.address, "team/leak", "1")
        dockerfile = (
            f"ARG BASE={SLIM}\nFROM ${{BASE}}\nCOPY .env /src/.env\n"
            "RUN test -s /src/.env\nRUN rm /src/.env\n"
        )
        noted.change_file(self.id, folder / "Dockerfile", dockerfile.encode())
        noted.note(Change(self.id, "image", str(name)))
        build.build(bench.engine, folder, tag=str(name), args={"BASE": str(base)})
        transfer.push(bench.engine, bench.server, name)
        held = bench.registry.image(name)
        layer, *_ = own_layers(bench, held)
        told = (
            f"'{name}' was built from '{folder}' and pushed: its Dockerfile copies a password in, "
            "and deletes it in a later layer."
        )
        evidence = {"image": held.digest, "layer": layer.digest, "file in it": "/src/.env"}
        return Happened(self, told, evidence)


class MovedTag(Attack):
    """An attack that lets a tag name a forged image."""

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        tag = own_tag(bench, target)
        feedback.command(["docker", "push", str(tag)])
        forged = forge(bench, tag, self.id, occasion=release)
        before = bench.registry.digest(tag)
        data = {"before": before, "after": forged.manifest.digest, "diff_id": forged.diff_id}
        Journal(bench.state).note(Change(self.id, "tag", str(tag), data))
        forged.upload(bench.registry, str(tag.tag))
        evidence = {"digest before": before, "digest now": data["after"], "layer": forged.layer}
        told = f"'{tag}' names another image now: what it named, and a backdoor on top."
        return Happened(self, told, evidence, forged.diff_id)


class Base(MovedTag):
    id = "base"
    step = "base image"
    wrong = "the base's tag is moved to an image with a backdoor"
    control = "FROM …@sha256:…, and a fresh base for the fixes"

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        target = target or str(copy_base(bench))
        happened = super().do(bench, target, release)
        # As on a fresh build machine: the tag is asked for anew.
        transfer.remove(bench.engine, target)
        return happened


class Dependency(Attack):
    id = "dependency"
    step = "dependency"
    wrong = "a wheel is swapped for another of the same name and version"
    control = "hashes in the requirements; fewer packages"

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        folder = own_path(bench, target or bench.work / "app")
        wheel = wheel_to_swap(folder / "requirements.txt", folder / "wheels")
        before = digest_of(wheel.read_bytes())
        words = f"code in '{wheel.name}'{f' for {release}' if release else ''}"
        content = doctored(wheel, startup_code(self.id, words))
        Journal(bench.state).change_file(self.id, wheel, content)
        told = f"'{wheel}' was swapped: the same name, the same version, other code."
        evidence = {"wheel": wheel.name, "wheel before": before, "wheel now": digest_of(content)}
        return Happened(self, told, evidence, marker(self.id))


class Push(MovedTag):
    id = "push"
    step = "push"
    wrong = "somebody without the right pushes over your tag"
    control = "accounts and rights; servers may only pull"


class Rest(Attack):
    id = "rest"
    step = "at rest"
    wrong = "a blob is altered in the registry's storage"
    control = "content addressing: the pull refuses it"

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        tag = own_tag(bench, target)
        own = own_layers(bench, bench.registry.image(tag))
        if not own:
            raise AttackError(
                f"altering '{tag}': all its layers are those of a base. Take one that adds its own."
            )
        layer = max(own, key=lambda layer: layer.size)
        blob = bench.registry.read_blob(tag.repository, layer.digest, limit=layer.size)
        place = layer.size // 2
        data = {"digest": layer.digest, "place": str(place)}
        data |= {"before": f"{blob[place]:03o}", "after": f"{blob[place] ^ 0xFF:03o}"}
        change = Change(self.id, "blob", layer.digest, data)
        Journal(bench.state).note(change)
        write_byte(bench, change, "after")
        told = (
            f"One byte of a layer of '{tag}' was changed in the registry's storage. An engine that "
            "has that layer already does not notice: remove the image from it, then pull."
        )
        return Happened(self, told, {"blob": layer.digest, "byte": str(place)})


class Transit(Attack):
    id = "transit"
    step = "in transit"
    wrong = "a proxy in between answers with another manifest"
    control = "TLS; and the digest, which catches it even without"

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        tag = own_tag(bench, target)
        forged = forge(bench, tag, self.id, occasion=release)
        address = place_mirror(bench, forged)
        evidence = {
            "pull through it": str(Reference(address, tag.repository, tag.tag)),
            "digest handed out": forged.manifest.digest,
            "layer": forged.layer,
        }
        told = (
            f"Between you and the registry stands a mirror, '{address}'. Whatever you ask it about "
            f"'{tag.repository}', it answers with one and the same manifest."
        )
        return Happened(self, told, evidence, forged.diff_id, address)


class Moved(MovedTag):
    id = "moved"
    step = "pull → run"
    wrong = "the tag moved between test and deployment"
    control = "pin by digest; a gate that refuses unpinned references"


class Run(Attack):
    id = "run"
    step = "run"
    wrong = "root in the container, a shell and a compiler at hand"
    control = "non-root, slim, a read-only file system"

    def do(self, bench: Bench, target: str | None, release: str = "") -> Happened:
        tag = own_tag(bench, target)
        table = exposure(bench, tag)
        seen = table[table["open"]]
        found = dict(zip(seen["question"], seen["answer"], strict=True))
        told = f"Somebody got into a container of '{tag}' and looked around. Nothing was changed."
        return Happened(self, told, found)


ATTACKS: Mapping[str, Attack] = {
    attack.id: attack
    for attack in (Secret(), Base(), Dependency(), Push(), Rest(), Transit(), Moved(), Run())
}
"""All attacks by their ids, in the order of the journey."""


def start(bench: Bench, id: str, *, target: Path | Reference | str | None = None) -> Happened:
    """Do a wrong thing to a target, by default one of the attack's own, and say loudly what."""
    if id not in ATTACKS:
        raise AttackError(
            f"finding the attack {id!r}: there is none. There are: {', '.join(ATTACKS)}."
        )
    happened = ATTACKS[id].do(bench, str(target) if target else None)
    feedback.say(happened.box)
    return happened


def place_mirror(bench: Bench, forged: Forged | None = None) -> str:
    """Start a mirror and return its address; without a forged image to hand out, it is honest."""
    name = journal.container_name(bench, "mirror")
    doing = f"starting the mirror '{name}'"
    if bench.engine.container(name):
        raise AttackError(f"{doing}: one runs already. Undo the attacks first.")
    network, upstream = _registry_inside(bench)
    repository, instead = (forged.repository, forged.manifest.digest) if forged else ("", "")
    data = {"repository": repository, "after": instead}
    Journal(bench.state).note(Change("transit", "container", name, data))
    if forged:
        forged.upload(bench.registry, instead)
    program = Path(middleman.__file__).read_text(encoding="utf-8")
    with bench.engine.doing(doing, AttackError):
        container = bench.engine.client.containers.run(
            str(bench.base(SLIM)),
            ["python3", "-u", "-c", program],
            name=name,
            environment={"UPSTREAM": upstream, "REPOSITORY": repository, "INSTEAD": instead},
            network=network,
            ports={f"{middleman.PORT}/tcp": ("127.0.0.1", podman.mirror_port(bench.state))},
            labels={**bench.engine.labels, ROLE_LABEL: "attack"},
            detach=True,
        )
        url = wait_until_ready(container, middleman.PORT, "/v2/", doing=doing) or ""
    return url.replace("http://127.0.0.1", "localhost")


def mirror_log(bench: Bench) -> str:
    """Return what the mirror has logged; empty when there is none."""
    name = journal.container_name(bench, "mirror")
    container = bench.engine.container(name)
    with bench.engine.doing(f"reading the log of '{name}'", AttackError):
        return container.logs().decode("utf-8", "replace") if container else ""


def _registry_inside(bench: Bench) -> tuple[str, str]:
    """Return a network of the registry's container, and its host and port there."""
    container = bench.engine.container(bench.server.name)
    networks = container.attrs["NetworkSettings"].get("Networks") if container else None
    for network, place in (networks or {}).items():
        if address := place.get("IPAddress"):
            return network, f"{address}:{PORT_INSIDE.partition('/')[0]}"
    raise AttackError(
        f"looking for the network of '{bench.server.name}': there is none that another container "
        "reaches, as with rootless Podman. This attack needs an engine that has one, as Docker has."
    )


def copy_base(bench: Bench) -> Reference:
    """Give the lab's slim base image a second name in the registry, for attacks to work on."""
    copy = Reference(bench.registry.address, "team/base", "1")
    bench.registry.copy(bench.registry, bench.registry.image(bench.base(SLIM)), to=copy)
    return copy


def base_layers(bench: Bench) -> set[str]:
    """Return the diff IDs of the layers of all the lab's base images."""
    bases = [bench.registry.image(base.reference).config for base in bench.bases]
    return {diff_id for base in bases for diff_id in base.diff_ids}


def own_layers(bench: Bench, held: RegistryImage) -> dict[Descriptor, str]:
    """Return the layers of an image that none of the lab's base images has, with their diff IDs."""
    # An engine may pack a layer anew when it pushes: only the diff ID stays.
    shared, diff_ids = base_layers(bench), held.config.diff_ids
    layers = zip(held.manifest.layers, diff_ids, strict=False)
    return {layer: diff_id for layer, diff_id in layers if diff_id not in shared}


def unpacked_layers(bench: Bench, held: RegistryImage) -> Iterator[tuple[str, bytes]]:
    """Yield the digest and the unpacked bytes of each of an image's own layers, lowest first."""
    for layer, diff_id in own_layers(bench, held).items():
        blob = bench.registry.open_blob(held.reference.repository, layer.digest)
        doing = f"looking into the layer '{layer.digest}' of '{held.reference}'"
        with opened(blob, diff_id=diff_id, doing=doing) as stream:
            yield layer.digest, stream.read(LARGEST)


def refusals(file: Path, *, allowed: Sequence[str]) -> list[str]:
    """Return what a gate would refuse in a deployment file, and why; empty when it may pass."""
    found = []
    for service in read_deployment(file):
        reason = ""
        try:
            reference = Reference.parse(service.image)
        except InvalidReference as error:
            reason = str(error)
        else:
            name = f"{reference.registry}/{reference.repository}"
            if reference.digest is None:
                tag = f"the tag '{reference.tag or DEFAULT_TAG}'"
                reason = f"not pinned: it names {tag}, which may be another image tomorrow"
            elif allowed and not any(fnmatchcase(name, pattern) for pattern in allowed):
                reason = f"not allowed: only {', '.join(allowed)} may be deployed here"
        if reason:
            where = f"line {service.line}, service '{service.name}', image '{service.image}'"
            found.append(f"{where}: {reason}")
    return found


def gate(file: Path, *, allowed: Sequence[str]) -> bool:
    """Say whether a deployment file may pass, as :func:`refusals` tells, and why not."""
    found = refusals(file, allowed=allowed)
    verdict = f"refuses '{file.name}':" if found else f"lets '{file.name}' pass."
    feedback.say("\n  ".join([f"The gate {verdict}", *found]))
    return not found


def exposure(bench: Bench, reference: Reference | str, *, hardened: bool = False) -> pd.DataFrame:
    """Start a container of an image that has Python, and try from inside what it lets one do."""
    import pandas as pd

    reference = transfer.with_tag(reference)
    words = [feedback.program(), "run", "--rm", "--network", "none"]
    words += HARDENED.split() if hardened else ()
    feedback.command([*words, str(reference)])
    words += [f"--label={name}={value}" for name, value in bench.engine.labels.items()]
    words += ["--entrypoint", "python3", str(reference), "-c", _PROBE, json.dumps(TOOLS)]
    looked = subprocess.run(words, env=bench.engine.environment(), capture_output=True)
    if looked.returncode:
        said = looked.stderr[-300:].decode("utf-8", "replace")
        raise AttackError(
            f"looking into a container of '{reference}': {said}. Is it there, and has it Python?"
        )
    rows = json.loads(looked.stdout.splitlines()[-1])
    return pd.DataFrame(rows, columns=["question", "answer", "open"])
