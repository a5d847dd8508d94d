"""The attacks themselves: each does its wrong thing to this lab's own objects, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labapp import images
from labapp.attacks import mirror
from labapp.attacks.catalogue import Attack, Happened, find_attack
from labapp.attacks.changes import alter_blob, copy_base, move_tag
from labapp.attacks.exposure import exposure
from labapp.attacks.forging import forge, startup_code
from labapp.attacks.journal import Change, Journal
from labapp.attacks.targets import own_path, own_tag
from labapp.attacks.wheels import doctored, wheel_to_swap
from labapp.bench import Bench
from labapp.errors import AttackError, NotInRegistry, RegistryError, RegistryUnreachable
from labapp.feedback import Feedback
from labapp.images import builds
from labapp.manifests import digest_of
from labapp.reference import Reference
from labapp.registry import Registry

SECRET = "DEPLOY_PASSWORD=harmless-9f2c41d7-not-a-real-one\n"
"""What the attack on the build leaves in a layer."""

Target = Reference | Path | str


@dataclass(frozen=True)
class _Scene:
    """What an attack is given: the arguments of :func:`start`."""

    bench: Bench
    attack: Attack
    target: Target | None
    registry: Registry | None
    feedback: Feedback

    def folder(self, default: str) -> Path:
        """Return the folder that is attacked, of this chapter."""
        return own_path(self.bench, Path(str(self.target or self.bench.work / default)))

    def tag(self) -> Reference:
        """Return the tag that is attacked, of this lab's registry."""
        if self.target is None:
            raise AttackError(
                f"attacking by '{self.attack.id}': which image? Name a tag of your own: "
                f"target='{self.bench.registry.address}/shop/web:1'."
            )
        target = str(self.target) if isinstance(self.target, Path) else self.target
        return own_tag(self.bench, target, registry=self.registry)


def start(
    bench: Bench,
    id: str,
    *,
    target: Target | None = None,
    registry: Registry | None = None,
    feedback: Feedback,
) -> Happened:
    """Do a wrong thing, and say loudly what it did.

    Args:
        bench: which lab.
        id: of the attack.
        target: what to attack. ``secret`` and ``dependency``: a folder of this chapter, by default
            ``leak`` (made for it) and ``app``. ``base``: a tag, by default ``team/base:1`` (a copy
            of the slim base that is made for it). All others: a tag in the lab's registry.
        registry: for ``push``: another registry of this lab, as somebody is logged in to it. Where
            that account has no right to push, ``refused`` has the registry's words.
        feedback: where it is told.

    Raises:
        AttackError: there is no such attack, or it is aimed at something that is not this lab's.
        LabError: what it needs is missing; the message says what.
    """
    attack = find_attack(id)
    if registry is not None and id != "push":
        raise AttackError(
            f"attacking by '{id}': only 'push' goes to another registry. Leave 'registry' out."
        )
    happened = _DO[id](_Scene(bench, attack, target, registry, feedback))
    feedback.say(happened.box)
    return happened


def swap_wheel(
    bench: Bench, attack: str, folder: Path, *, occasion: str = ""
) -> tuple[Path, str, str]:
    """Swap a wheel of an application for one of the same name and version.

    Args:
        bench: which lab.
        attack: the attack's id.
        folder: of the application, with ``requirements.txt`` and ``wheels``.
        occasion: goes into the wheel, so that its digest is that of this occasion only.

    Returns:
        The wheel, its digest before, and its digest now.

    Raises:
        AttackError: there is no such folder, or no wheel that can be swapped.
    """
    wheel = wheel_to_swap(folder / "requirements.txt", folder / "wheels")
    before = digest_of(wheel.read_bytes())
    words = f"code in '{wheel.name}'{f' for {occasion}' if occasion else ''}"
    code = startup_code(attack, words)
    content = doctored(wheel, code)
    Journal(bench.state).change_file(attack, wheel, content)
    return wheel, before, digest_of(content)


def _secret(scene: _Scene) -> Happened:
    bench, id, folder = scene.bench, scene.attack.id, scene.folder("leak")
    base = bench.base("python:3.13-slim")
    dockerfile = (
        "ARG BASE=python:3.13-slim\nFROM ${BASE}\nCOPY .env /src/.env\n"
        "RUN test -s /src/.env\nRUN rm /src/.env\n"
    )
    journal = Journal(bench.state)
    journal.change_file(id, folder / ".env", SECRET.encode())
    journal.change_file(id, folder / "Dockerfile", dockerfile.encode())
    name = Reference(bench.registry.address, "team/leak", "1")
    journal.note(Change(id, "image", str(name)))
    builds.build(
        bench.engine,
        folder,
        tag=str(name),
        args={"BASE": str(base)},
        labels=bench.state.labels,
        feedback=scene.feedback,
    )
    digest = images.push(bench.engine, bench.server, name, feedback=scene.feedback).digest
    below = len(bench.registry.image(base).manifest.layers)
    layer = bench.registry.image(name).manifest.layers[below].digest
    return Happened(
        scene.attack,
        str(name),
        f"'{name}' was built from '{folder}' and pushed: its Dockerfile copies a password in, and "
        "deletes it in a later layer.",
        {"image": digest, "layer": layer, "file in it": "/src/.env"},
    )


def _base(scene: _Scene) -> Happened:
    bench = scene.bench
    target = copy_base(bench) if scene.target is None else scene.tag()
    happened = _moved_tag(
        scene, target, f"'{target}' names another image now: the same base, with a backdoor in it."
    )
    # As on a fresh build machine: one that has the name already would not ask the registry.
    images.remove(bench.engine, target)
    return happened


def _dependency(scene: _Scene) -> Happened:
    folder = scene.folder("app")
    wheel, before, after = swap_wheel(scene.bench, scene.attack.id, folder)
    return Happened(
        scene.attack,
        str(wheel),
        f"'{wheel}' was swapped: the same name, the same version, other code.",
        {"wheel before": before, "wheel now": after},
    )


def _push(scene: _Scene) -> Happened:
    target = scene.tag()
    try:
        return _moved_tag(
            scene, target, f"Somebody who is not you has pushed another image over '{target}'."
        )
    except (RegistryUnreachable, NotInRegistry):
        raise
    except RegistryError as error:
        if scene.registry is None:
            raise
        changed = f"Somebody who is not you tried to push over '{target}', and was refused."
        return Happened(scene.attack, str(target), changed, refused=str(error))


def _rest(scene: _Scene) -> Happened:
    target = scene.tag()
    change = alter_blob(scene.bench, scene.attack.id, target)
    return Happened(
        scene.attack,
        str(target),
        f"One byte of a layer of '{target}' was changed in the registry's storage. An engine that "
        "has that layer already does not notice: remove the image from it, then pull.",
        {"blob": change.data["digest"], "byte": change.data["place"]},
    )


def _transit(scene: _Scene) -> Happened:
    bench, target = scene.bench, scene.tag()
    forged = forge(bench, target, scene.attack.id)
    address = mirror.place(bench, scene.attack.id, forged)
    seen = Reference(address, target.repository, target.tag)
    return Happened(
        scene.attack,
        str(target),
        f"Between you and the registry stands a mirror, '{address}'. Whatever you ask it about "
        f"'{target.repository}', it answers with one and the same manifest.",
        {"pull through it": str(seen), "it hands out": forged.manifest.digest},
        address=address,
    )


def _moved(scene: _Scene) -> Happened:
    target = scene.tag()
    return _moved_tag(
        scene, target, f"A colleague has 'only fixed a little thing': '{target}' was pushed again."
    )


def _run(scene: _Scene) -> Happened:
    target = scene.tag()
    table = exposure(scene.bench, target, feedback=scene.feedback)
    found = {row["question"]: row["answer"] for row in table.to_dict("records") if row["open"]}
    return Happened(
        scene.attack,
        str(target),
        f"Somebody got into a container of '{target}' and looked around. Nothing was changed.",
        {str(question): str(answer) for question, answer in found.items()},
        table=table,
    )


def _moved_tag(scene: _Scene, target: Reference, changed: str) -> Happened:
    scene.feedback.command(["docker", "push", str(target)])
    _, evidence = move_tag(scene.bench, scene.attack.id, target, registry=scene.registry)
    return Happened(scene.attack, str(target), changed, evidence)


_DO: dict[str, Callable[[_Scene], Happened]] = {
    "secret": _secret,
    "base": _base,
    "dependency": _dependency,
    "push": _push,
    "rest": _rest,
    "transit": _transit,
    "moved": _moved,
    "run": _run,
}
