"""The lab's registry: CNCF Distribution in a container of the lab, its storage in a volume.

Source: the paths in the volume are those of CNCF Distribution 2 and 3, registry/storage/paths.go.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import docker.errors
from docker.models.containers import Container
from docker.types import LogConfig

from labapp import feedback
from labapp.errors import RegistryError, RegistryUnreachable
from labapp.machine.engine import OWNER_LABEL, START, Engine, owner, tar_of
from labapp.machine.ports import LOOPBACK, free_port, wait_until
from labapp.registry.client import Registry
from labapp.registry.manifests import Platform, digest_of
from labapp.state import ROLE_LABEL, State

CONFIG = Path(__file__).parents[2] / "dockerfiles" / "registry" / "config.yml"
CONFIG_INSIDE = "/etc/labapp/registry.yml"
PORT_INSIDE = "5000/tcp"
MADE_OF_LABEL = "labapp.registry.made-of"

STORAGE = "/var/lib/registry"
"""Where the registry has its files, in its container."""

CONTENT = f"{STORAGE}/docker/registry/v2"

_TAKEN = re.compile(
    "address already in use|port is already allocated|ports are not available|"
    "only one usage of each socket address",
    re.IGNORECASE,
)
"""What engines say of a port that they should publish and another program has."""

_DIGEST = re.compile(r"\bsha\d+:[0-9a-f]{64,128}\b")

_SURVEY = f"""
cd {CONTENT} 2>/dev/null || exit 0
find repositories -path '*/_uploads/*' -type f -mmin -1 -exec echo busy {{}} ';'
find repositories -path '*/_uploads/*/data' -exec stat -c 'upload %s %n' {{}} +
find blobs -name data -exec stat -c 'blob %s %n' {{}} +
find repositories -path '*/_manifests/*' -name link | while read -r link; do
  read -r digest < "$link"
  case $link in
    */tags/*/current/link) echo "tag $digest" ;;
    */revisions/*) echo "at $digest ${{link%/link}}"; cat blobs/*/*/"${{digest#*:}}/data"; echo ;;
  esac
done 2>/dev/null
true
"""
"""Prints uploads, those of the last minute first, blobs, tags, manifests' links with its bytes."""


def blob_folder(digest: str) -> str:
    """Return the folder in which the registry's container has a blob's bytes, in ``data``."""
    algorithm, _, value = digest.partition(":")
    return f"{CONTENT}/blobs/{algorithm}/{value[:2]}/{value}"


@dataclass(frozen=True)
class Garbage:
    """What of a registry's files nothing needs: bytes by digest, or by path of a cut-off upload.

    ``links`` are the folders of these uploads, and those that make manifests of some blobs;
    ``busy`` is whether somebody pushes.
    """

    links: list[str]
    blobs: dict[str, int]
    busy: bool

    @classmethod
    def of(cls, survey: str, keep: Collection[str]) -> Garbage:
        """Read what the survey printed: needed is what a tag names, a digest to keep, or one such.

        A digest anywhere in a manifest is one that it names. A signature or an attestation that
        names its subject is needed with that.
        """
        sizes, texts, wanted = dict[str, int](), dict[str, str](), {*keep}
        links, uploads, busy, digest = dict[str, list[str]](), list[str](), False, ""
        for line in survey.splitlines():
            match line.split(" "):
                case ["busy", _]:
                    busy = True
                case ["upload", size, path]:
                    sizes[path] = int(size)
                    uploads.append(path.rpartition("/")[0])
                case ["blob", size, path]:
                    sizes[":".join(path.split("/")[1:4:2])] = int(size)
                case ["tag", named_by_it]:
                    wanted.add(named_by_it)
                case ["at", digest, path]:
                    links.setdefault(digest, []).append(path)
                    texts[digest] = ""
                case _ if digest:
                    texts[digest] += line
        named = {each: {*_DIGEST.findall(text)} for each, text in texts.items()}
        needed: set[str] = set()
        while more := (wanted & named.keys()) - needed:
            needed |= more
            wanted = {name for each in needed for name in named[each]}
            wanted |= {d for d, text in texts.items() if '"subject"' in text and named[d] & needed}
        gone = sizes.keys() - needed - {name for each in needed for name in named[each]}
        away = [path for each in named.keys() - needed for path in links[each]]
        return cls(away + uploads, {each: sizes[each] for each in gone}, busy)


class RegistryServer:
    """A registry of one lab on one engine; ``name`` is that of its container and its volume.

    ``kind`` is part of its name and its role, and names its record; its port is opened on
    ``host``; ``advice`` says in errors how to start it.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        state: State,
        kind: str = "registry",
        host: str = "localhost",
        client: Callable[[str], Registry] | None = None,
        advice: str = "'python3 -m labapp start' starts it.",
    ) -> None:
        self.name = f"labapp-{kind}-{state.lab_id}"
        self._engine, self._state, self._kind = engine, state, kind
        own = functools.partial(Registry, platform=Platform.parse(engine.platform))
        self._host, self._client, self._advice = host, client or own, advice
        self._bound = LOOPBACK if host == "localhost" else host
        self._labels = {**state.labels, ROLE_LABEL: kind}

    @property
    def address(self) -> str:
        """Host and port; RegistryUnreachable if it has never been started."""
        return f"{self._host}:{self._recorded('port')}"

    @property
    def image(self) -> str:
        """The engine's name of the image that it runs; RegistryUnreachable if it never did."""
        return self._recorded("image")

    def is_running(self) -> bool:
        """Tell whether the registry's container runs."""
        container = self._engine.container(self.name)
        return container is not None and container.status == "running"

    def registry(self) -> Registry:
        """Return the client of the running registry; RegistryUnreachable if it does not run."""
        if not self.is_running():
            raise RegistryUnreachable(
                f"finding the registry '{self.address}': '{self.name}' does not run. {self._advice}"
            )
        return self._client(self.address)

    def start(
        self, *, image: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> Registry:
        """Make the registry run and answer, whatever state it was left in; one that does is left.

        ``image`` is the engine's name of an image of CNCF Distribution, by default as last time;
        ``files`` go into the container, which is made anew when they change.
        """
        image = image or self.image
        files = files or {CONFIG_INSIDE: CONFIG.read_bytes()}
        doing = self._engine.doing(f"starting the registry '{self.name}'", RegistryError)
        with self._state.lock(self._kind), doing:
            made_of = b"".join([self._id_of(image).encode(), *files.values()])
            labels = {**self._labels, MADE_OF_LABEL: digest_of(made_of)}
            port = self._state.read(self._kind).get("port") or free_port(host=self._bound)
            container = self._engine.container(self.name)
            is_as_wanted = container is not None and labels.items() <= container.labels.items()
            if not (is_as_wanted and self.is_running() and self._answers(port)):
                port = self._run(image, files, labels, [port, free_port(host=self._bound)])
                feedback.say(f"The registry runs at {self._host}:{port}.")
            self._state.write(self._kind, {"port": port, "image": image})
            return self._client(self.address)

    def stop(self) -> None:
        """Stop the registry and keep its content, and its log until the next start."""
        container = self._engine.container(self.name)
        if container is not None and container.status != "exited":
            feedback.command(["docker", "stop", self.name])
            with self._engine.doing(f"stopping the registry '{self.name}'"):
                container.stop(timeout=5)

    def remove(self) -> None:
        """Remove the registry's container and its content."""
        doing = self._engine.doing(f"removing the registry '{self.name}'")
        with self._state.lock(self._kind), doing:
            self._discard()
            with contextlib.suppress(docker.errors.NotFound):
                self._engine.client.api.remove_volume(self.name)

    def logs(self, *, tail: int | Literal["all"] = "all") -> bytes:
        """Return what the registry's container has logged, or only the last lines of it."""
        doing = self._engine.doing(f"reading the log of '{self.name}'")
        with doing, contextlib.suppress(docker.errors.NotFound):
            said: bytes = self._engine.client.api.logs(self.name, tail=tail)
            return said
        return b""

    def storage(
        self, argv: Sequence[str], *, folder: str | None = None, files: Mapping[str, bytes] = {}
    ) -> str:
        """Run a command over the registry's files, or a folder of the engine's machine.

        It runs as root in a short-lived container of the registry's image, which has busybox, with
        those files at ``STORAGE``, and further ``files`` by their paths. Returns what it printed;
        RegistryError if it fails.
        """
        place = folder or self.name
        doing = f"working on the files of '{place}' with '{shlex.join(argv)[:80]}'"
        with self._engine.doing(doing, RegistryError):
            container = self._engine.client.containers.create(
                self._id_of(self.image),
                entrypoint=[argv[0]],
                command=list(argv[1:]),
                labels={**self._state.labels, ROLE_LABEL: "oneshot", OWNER_LABEL: owner()},
                volumes={place: {"bind": STORAGE, "mode": "rw"}},
                network_mode="none",
                # Else SELinux keeps a container out of the machine's own folders.
                security_opt=["label=disable"] if folder else [],
            )
            try:
                if files:
                    container.put_archive("/", tar_of(files))
                container.start()
                status = container.wait()["StatusCode"]
                printed = container.logs(stdout=True, stderr=status != 0).decode("utf-8", "replace")
            finally:
                container.remove(force=True, v=True)
        if status != 0:
            raise RegistryError(f"{doing}: it ended with {status}: {printed.strip()[-400:]}")
        return printed

    def write_on_machine(self, folder: str, name: str, text: str) -> None:
        """Write a file below a folder of the engine's machine; without a text, it is removed."""
        write = 'mkdir -p "${1%/*}" && printf %s "$2" > "$1"'
        leave = '{ rmdir "${1%/*}" 2>/dev/null || true; }'
        script = f'cd {STORAGE} && rm -f "$1" && {write if text else leave}'
        self.storage(["sh", "-c", script, "sh", f"./{name}", text], folder=folder)

    def discard_blobs(self, digests: Iterable[str]) -> None:
        """Remove the bytes of damaged blobs: a push never writes over one that is there."""
        if paths := [blob_folder(digest) for digest in digests if digest]:
            self.storage(["rm", "-rf", *paths])

    def used_bytes(self) -> int | None:
        """Return what its files take on the disk; None where it does not run."""
        said = self._within(["du", "-sk", STORAGE]).split()
        return int(said[0]) * 1024 if said else None

    def garbage(self, keep: Collection[str]) -> Garbage:
        """Return what neither a tag nor a digest to keep needs; an index needs its images."""
        survey = ["sh", "-c", _SURVEY]
        return Garbage.of(self._within(survey) or self.storage(survey), keep)

    def _within(self, argv: list[str]) -> str:
        """Return what a command prints in the running registry; that works on a full disk too."""
        container = self._engine.container(self.name)
        if container is None or container.status != "running":
            return ""
        with self._engine.doing(f"looking at the files of '{self.name}'", RegistryError):
            ran = container.exec_run(argv, stderr=False)
        output = ran.output if isinstance(ran.output, bytes) else b""
        return output.decode("utf-8", "replace") if ran.exit_code == 0 else ""

    def collect_garbage(self, keep: Collection[str]) -> int:
        """Free what :meth:`garbage` tells, and return the bytes; RegistryError while one pushes.

        The registry's own collection frees the blobs that no manifest names. Which manifests go is
        decided here: its ``--delete-untagged`` would take the digests to keep as well, and, of
        version 2, the images of an index (distribution/distribution, issue 3178). The registry
        stands still meanwhile, for a blob that came in would be lost, and would be remembered.
        """
        doing = f"collecting the garbage of '{self.name}'"
        with self._state.lock(self._kind), self._engine.doing(doing, RegistryError):
            if self.garbage(keep).busy:
                raise RegistryError(
                    f"{doing}: somebody pushes, or has within the last minute. Try again later."
                )
            container, was_running = self._engine.container(self.name), self.is_running()
            self.stop()
            try:
                found = self.garbage(keep)
                if found.links:
                    self.storage(["rm", "-rf", *(f"{CONTENT}/{link}" for link in found.links)])
                if found.blobs:  # An empty registry it takes for a damaged one.
                    image = self._engine.client.images.get(self.image)
                    collect = ["garbage-collect", CONFIG_INSIDE]
                    volumes = (f"{self.name}:{STORAGE}", f"{CONFIG}:{CONFIG_INSIDE}")
                    shown = [f"--volume={each}" for each in volumes]
                    feedback.command(["docker", "run", "--rm", *shown, self.image, *collect])
                    config = {CONFIG_INSIDE: CONFIG.read_bytes()}
                    self.storage([*image.attrs["Config"]["Entrypoint"], *collect], files=config)
                left = self.garbage(keep).blobs
            finally:
                if container is not None and was_running:
                    feedback.command(["docker", "start", self.name])
                    container.start()
                    self._await(container, int(self._recorded("port")))
        return sum(found.blobs.values()) - sum(left.values())

    def _recorded(self, name: str) -> str:
        found = self._state.read(self._kind).get(name)
        if found is None:
            raise RegistryUnreachable(
                f"finding the registry '{self.name}': it has never been started. {self._advice}"
            )
        return str(found)

    def _id_of(self, image: str) -> str:
        held = self._engine.image(image)
        if held is None:
            raise RegistryError(f"running '{image}': the engine has no such image. Run {START}.")
        return str(held.id)

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(RegistryError):
            self._client(f"{self._host}:{port}").ping()
            return True
        return False

    def _discard(self) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            self._engine.client.api.remove_container(self.name, force=True, v=True)

    def _run(
        self, image: str, files: Mapping[str, bytes], labels: dict[str, str], ports: list[int]
    ) -> int:
        """Make the container anew and start it at the first of the ports that is not taken."""
        self._discard()
        port, *others = ports
        self._engine.client.volumes.create(self.name, labels=self._labels)
        container = self._engine.client.containers.create(
            image,
            command=["serve", CONFIG_INSIDE],
            name=self.name,
            labels=labels,
            ports={PORT_INSIDE: (self._bound, port)},
            volumes={self.name: {"bind": STORAGE, "mode": "rw"}},
            log_config=LogConfig(type="json-file", config={"max-size": "20m", "max-file": "2"}),
        )
        container.put_archive("/", tar_of(files))
        try:
            container.start()
        except docker.errors.APIError as error:
            if not others or not _TAKEN.search(str(error.explanation)):
                raise
            feedback.say(
                f"Another program has taken port {port}: the registry is now at "
                f"{self._host}:{others[0]}. Images named by the old address have to be tagged anew."
            )
            return self._run(image, files, labels, others)
        self._await(container, port)
        return port

    def _await(self, container: Container, port: int) -> None:
        def settled() -> bool:
            container.reload()
            return container.status != "running" or self._answers(port)

        wait_until(settled, seconds=30, every=0.05)
        if not self._answers(port):
            log = container.logs(tail=12).decode("utf-8", "replace").strip()
            raise RegistryError(
                f"starting the registry '{self.name}': it does not answer. Its log ends with:\n"
                f"{log}\n'docker logs {self.name}' shows all of it."
            )
