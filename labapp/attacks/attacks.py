"""The attacks: at each step of an image's journey the wrong thing, done for real, and its undo.

A change is noted in the journal before it is made. It is undone by what was changed, a file, a tag,
a blob, a container or an image, whoever did it; what was changed again since is left alone.
"""

# ruff: noqa: D101, D102 - the title of an attack says what its class is, and does.

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from labapp import feedback
from labapp.attacks import mirror
from labapp.attacks.controls import exposure
from labapp.attacks.forging import doctored, forge, marker, startup_code, wheel_to_swap
from labapp.attacks.journal import Change, Journal, own_container, own_path, own_tag, restore_file
from labapp.bench import Bench
from labapp.errors import AttackError, ImageError, LabError, NotInRegistry, RegistryError
from labapp.journey import build, transfer
from labapp.journey.bases import SLIM
from labapp.journey.run import discard, published_url
from labapp.reference import Reference
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.manifests import Descriptor, digest_of
from labapp.registry.server import CONTENT

SECRET = "DEPLOY_PASSWORD=harmless-9f2c41d7-not-a-real-one"
"""What the attack on the build leaves in a layer."""


@dataclass(frozen=True)
class Scene:
    """Where an attack happens: on a folder or a tag, or, without a target, on one of its own.

    The release is that of the delivery in which it happens, if it does. It goes into whatever is
    planted, so that no two deliveries leave the same digest.
    """

    bench: Bench
    target: str | None = None
    release: str = ""

    @property
    def journal(self) -> Journal:
        return Journal(self.bench.state)

    def folder(self, default: str) -> Path:
        return own_path(self.bench, Path(self.target or self.bench.work / default))

    def tag(self) -> Reference:
        if self.target is None:
            raise AttackError(
                "attacking a tag: which image? Name a tag of your own: "
                f"target='{self.bench.registry.address}/shop/web:1'."
            )
        return own_tag(self.bench, self.target)


class Attack:
    """One wrong thing at a step of an image's journey: what can get in, and what stops it."""

    id: ClassVar[str]
    step: ClassVar[str]
    title: ClassVar[str]
    wrong: ClassVar[str]
    control: ClassVar[str]

    def do(self, scene: Scene) -> Happened:
        """Do it, to this lab's own things only."""
        raise NotImplementedError


@dataclass(frozen=True)
class Happened:
    """What an attack did: to which target, and what is different now, in words.

    Attributes:
        evidence: what gives it away, by what it is: digests, paths, references.
        sign: by which it is known in an image, if it is: a text in a layer, or a layer's diff ID.
        address: of the mirror, for the attack in transit.
    """

    attack: Attack
    target: str
    changed: str
    evidence: Mapping[str, str] = field(default_factory=dict)
    sign: str = ""
    address: str = ""

    @property
    def box(self) -> str:
        """The announcement, as a box of text that no narrow window breaks."""
        lines = [f"ATTACK · {self.attack.step} · {self.attack.title}"]
        for text in (self.changed, "All of it is harmless."):
            lines += textwrap.wrap(text, 84, break_on_hyphens=False, break_long_words=False)
        lines += [f"  {name}: {value}" for name, value in self.evidence.items()]
        lines += ["Undo: lab.undo()"]
        return "\n".join(["╔" + "═" * 88, *(f"║ {line}" for line in lines), "╚" + "═" * 88])


class Secret(Attack):
    id = "secret"
    step = "source → build"
    title = "a secret in a layer"
    wrong = "a secret is copied in, and a later layer only hides it"
    control = ".dockerignore, build secrets, a scan of every layer"

    def do(self, scene: Scene) -> Happened:
        bench, folder = scene.bench, scene.folder("leak")
        file = folder / ".env"
        before = file.read_bytes() if file.exists() else b""
        scene.journal.change_file(self.id, file, before + f"{SECRET}\n".encode())
        if scene.release:
            told = f"There is a password in '{file}'."
            return Happened(self, str(file), told, {"file": str(file)}, SECRET)
        # Outside of a delivery, nobody else builds with it.
        base, name = bench.base(SLIM), _own(bench, "team/leak")
        dockerfile = (
            f"ARG BASE={SLIM}\nFROM ${{BASE}}\nCOPY .env /src/.env\n"
            "RUN test -s /src/.env\nRUN rm /src/.env\n"
        )
        scene.journal.change_file(self.id, folder / "Dockerfile", dockerfile.encode())
        scene.journal.note(Change(self.id, "image", str(name)))
        build.build(bench.engine, folder, tag=str(name), args={"BASE": str(base)})
        digest = transfer.push(bench.engine, bench.server, name).digest
        below = len(bench.registry.image(base).manifest.layers)
        layer = bench.registry.image(name).manifest.layers[below].digest
        return Happened(
            self,
            str(name),
            f"'{name}' was built from '{folder}' and pushed: its Dockerfile copies a password in, "
            "and deletes it in a later layer.",
            {"image": digest, "layer": layer, "file in it": "/src/.env"},
        )


class MovedTag(Attack):
    """An attack that lets a tag name a forged image; ``told`` says who did."""

    told: ClassVar[str]

    def do(self, scene: Scene) -> Happened:
        bench, tag = scene.bench, scene.tag()
        feedback.command(["docker", "push", str(tag)])
        forged = forge(bench, tag, self.id, occasion=scene.release)
        before = bench.registry.resolve(tag.repository, str(tag.tag))
        data = {"before": before, "after": forged.manifest.digest, "diff_id": forged.diff_id}
        scene.journal.note(Change(self.id, "tag", str(tag), data))
        forged.upload(bench.registry, str(tag.tag))
        evidence = {"digest before": before, "digest now": data["after"], "layer": forged.layer}
        return Happened(self, str(tag), self.told.format(tag=tag), evidence, forged.diff_id)


class Base(MovedTag):
    id = "base"
    step = "base image"
    title = "a base with a backdoor"
    wrong = "the base's tag is moved to an image with a backdoor"
    control = "FROM …@sha256:…, and a fresh base for the fixes"
    told = "'{tag}' names another image now: the same base, with a backdoor in it."

    def do(self, scene: Scene) -> Happened:
        tag = copy_base(scene.bench) if scene.target is None else scene.tag()
        happened = super().do(replace(scene, target=str(tag)))
        # As on a fresh build machine: the tag is asked for anew.
        transfer.remove(scene.bench.engine, tag)
        return happened


class Dependency(Attack):
    id = "dependency"
    step = "dependency"
    title = "a swapped wheel"
    wrong = "a wheel is swapped for another of the same name and version"
    control = "hashes in the requirements; fewer packages"

    def do(self, scene: Scene) -> Happened:
        folder = scene.folder("app")
        wheel = wheel_to_swap(folder / "requirements.txt", folder / "wheels")
        before = digest_of(wheel.read_bytes())
        words = f"code in '{wheel.name}'{f' for {scene.release}' if scene.release else ''}"
        content = doctored(wheel, startup_code(self.id, words))
        scene.journal.change_file(self.id, wheel, content)
        told = f"'{wheel}' was swapped: the same name, the same version, other code."
        evidence = {"wheel": wheel.name, "wheel before": before, "wheel now": digest_of(content)}
        return Happened(self, str(wheel), told, evidence, marker(self.id))


class Push(MovedTag):
    id = "push"
    step = "push"
    title = "a push over your tag"
    wrong = "somebody without the right pushes over your tag"
    control = "accounts and rights; servers may only pull"
    told = "Somebody who is not you has pushed another image over '{tag}'."


class Rest(Attack):
    id = "rest"
    step = "at rest"
    title = "an altered blob"
    wrong = "a blob is altered in the registry's storage"
    control = "content addressing: the pull refuses it"

    def do(self, scene: Scene) -> Happened:
        bench, tag = scene.bench, scene.tag()
        own = own_layers(bench, bench.registry.image(tag))
        if not own:
            raise AttackError(
                f"altering a layer of '{tag}': all of them are in the lab's base images, which "
                "stay as they are. Take an image that adds a layer of its own."
            )
        layer = max(own, key=lambda layer: layer.size)
        blob = bench.registry.read_blob(tag.repository, layer.digest, limit=layer.size)
        place = layer.size // 2
        data = {"digest": layer.digest, "place": str(place)}
        data |= {"before": f"{blob[place]:03o}", "after": f"{blob[place] ^ 0xFF:03o}"}
        change = scene.journal.note(Change(self.id, "blob", layer.digest, data))
        _write_byte(bench, change, "after")
        return Happened(
            self,
            str(tag),
            f"One byte of a layer of '{tag}' was changed in the registry's storage. An engine that "
            "has that layer already does not notice: remove the image from it, then pull.",
            {"blob": layer.digest, "byte": str(place)},
        )


class Transit(Attack):
    id = "transit"
    step = "in transit"
    title = "a dishonest mirror"
    wrong = "a proxy in between answers with another manifest"
    control = "TLS; and the digest, which catches it even without"

    def do(self, scene: Scene) -> Happened:
        tag = scene.tag()
        forged = forge(scene.bench, tag, self.id, occasion=scene.release)
        address = mirror.place(scene.bench, self.id, forged)
        evidence = {
            "pull through it": str(Reference(address, tag.repository, tag.tag)),
            "digest handed out": forged.manifest.digest,
            "layer": forged.layer,
        }
        return Happened(
            self,
            str(tag),
            f"Between you and the registry stands a mirror, '{address}'. Whatever you ask it about "
            f"'{tag.repository}', it answers with one and the same manifest.",
            evidence,
            forged.diff_id,
            address=address,
        )


class Moved(MovedTag):
    id = "moved"
    step = "pull → run"
    title = "a tag that moved"
    wrong = "the tag moved between test and deployment"
    control = "pin by digest; a gate that refuses unpinned references"
    told = "A colleague has 'only fixed a little thing': '{tag}' was pushed again."


class Run(Attack):
    id = "run"
    step = "run"
    title = "root with tools at hand"
    wrong = "root in the container, a shell and a compiler at hand"
    control = "non-root, slim, a read-only file system"

    def do(self, scene: Scene) -> Happened:
        tag = scene.tag()
        table = exposure(scene.bench, tag)
        found = {row["question"]: row["answer"] for row in table.to_dict("records") if row["open"]}
        return Happened(
            self,
            str(tag),
            f"Somebody got into a container of '{tag}' and looked around. Nothing was changed.",
            {str(question): str(answer) for question, answer in found.items()},
        )


_JOURNEY = (Secret, Base, Dependency, Push, Rest, Transit, Moved, Run)
ATTACKS: tuple[Attack, ...] = tuple(attack() for attack in _JOURNEY)
"""All attacks, in the order of the journey."""


def find_attack(id: str) -> Attack:
    """Return the attack with an id."""
    for attack in ATTACKS:
        if attack.id == id:
            return attack
    known = ", ".join(attack.id for attack in ATTACKS)
    raise AttackError(f"looking up the attack {id!r}: there is none. There are: {known}.")


def start(bench: Bench, id: str, *, target: Path | Reference | str | None = None) -> Happened:
    """Do a wrong thing to a target, by default one of the attack's own, and say loudly what."""
    happened = find_attack(id).do(Scene(bench, str(target) if target else None))
    feedback.say(happened.box)
    return happened


def undo(bench: Bench) -> None:
    """Put everything back that attacks changed, the last change first.

    It does no harm where nothing was attacked, and goes on where an earlier undo was cut off. What
    can't be put back stays in the journal, and is told when all else was.
    """
    journal, failed = Journal(bench.state), []
    for change in reversed(journal.changes()):
        try:
            feedback.say(f"Undone: {_undo(bench, change)}.")
        except LabError as error:
            failed.append(f"  - {change}: {error}")
        else:
            journal.drop(change)
    if failed:
        listed = "\n".join(failed)
        raise AttackError(
            f"undoing the attacks: this could not be put back:\n{listed}\n"
            "Mend the cause, then undo again. 'python3 -m labapp reset' makes everything new."
        )


def copy_base(bench: Bench) -> Reference:
    """Give the lab's slim base image a second name in the registry, for attacks to work on."""
    copy, held = _own(bench, "team/base"), bench.registry.image(bench.base(SLIM))
    bench.registry.copy(bench.registry, held, to=copy)
    return copy


def _own(bench: Bench, repository: str) -> Reference:
    return Reference(bench.registry.address, repository, "1")


def remove_names(bench: Bench, beginning: str, *, of: str | None = None) -> None:
    """Take the names with a certain beginning from the engine's images, and all those of one.

    An image that is in use stays.
    """
    with bench.engine.doing(f"removing the images '{beginning}…'", AttackError):
        images = bench.engine.client.api.images()
    for image in images:
        for name in [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]:
            if name.startswith(beginning) or image["Id"] == of:
                with contextlib.suppress(ImageError):
                    transfer.remove(bench.engine, name)


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


def _undo(bench: Bench, change: Change) -> str:
    match change.kind:
        case "file":
            return restore_file(change)
        case "tag":
            return _restore_tag(bench, change)
        case "blob":
            # One that was stored anew has that byte already.
            _write_byte(bench, change, "before")
            return f"blob {change.data['digest']} is as it was"
        case "container":
            return _remove_container(bench, change)
        case "image":
            return _remove_image(bench, change)


def _restore_tag(bench: Bench, change: Change) -> str:
    """Let a tag name again what it named before, unless it was moved again since."""
    registry, reference = bench.registry, Reference.parse(change.what)
    repository, tag = reference.repository, str(reference.tag)
    before, after = change.data["before"], change.data["after"]
    done = f"left '{reference}' alone: the tag has been moved since, or had not been moved yet"
    with contextlib.suppress(NotInRegistry):
        if registry.resolve(repository, tag) == after:
            raw, media_type = registry.manifest_bytes(repository, before)
            registry.put_manifest(repository, tag, raw, media_type or "")
            done = f"'{reference}' names {before} again"
    with bench.engine.doing(f"looking for the image '{reference}'", AttackError):
        held = bench.engine.image(str(reference))
    if held and change.data["diff_id"] in (held.attrs.get("RootFS") or {}).get("Layers", ()):
        # The engine has pulled the forged one. A container may still use it.
        with contextlib.suppress(ImageError):
            transfer.remove(bench.engine, reference)
    _discard_manifest(registry, repository, after)
    return done


def _discard_manifest(registry: Registry, repository: str, digest: str) -> None:
    """Delete a forged manifest where no tag names it; one that may not be deleted does no harm."""
    with contextlib.suppress(RegistryError):
        tags = registry.tags(repository)
        if digest not in {registry.resolve(repository, tag) for tag in tags}:
            registry.delete_manifest(repository, digest)


def _remove_container(bench: Bench, change: Change) -> str:
    if container := own_container(bench, change.what):
        with bench.engine.doing(f"removing the container '{change.what}'", AttackError):
            discard(container)
        if url := published_url(container):
            # Nothing answers any more at the names that came through a mirror.
            remove_names(bench, f"localhost:{url.rpartition(':')[2]}/")
    if after := change.data.get("after"):
        _discard_manifest(bench.registry, change.data["repository"], after)
    return f"removed the container '{change.what}'"


def _remove_image(bench: Bench, change: Change) -> str:
    reference = Reference.parse(change.what)
    transfer.remove(bench.engine, reference)
    with contextlib.suppress(NotInRegistry):
        digest = bench.registry.resolve(reference.repository, str(reference.tag))
        bench.registry.delete_manifest(reference.repository, digest)
    return f"removed the image '{reference}'"


def _write_byte(bench: Bench, change: Change, which: str) -> None:
    """Write one byte of a blob; dd would make the file of one that is gone by now."""
    script = '[ ! -f "$1" ] || printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null'
    algorithm, _, value = change.data["digest"].partition(":")
    file = f"{CONTENT}/blobs/{algorithm}/{value[:2]}/{value}/data"
    place, byte = change.data["place"], f"\\{change.data[which]}"
    bench.server.storage(["sh", "-c", script, "write", file, place, byte])
