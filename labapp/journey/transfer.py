"""An image on its way: named, pushed, pulled, and taken off the engine again.

The engine does the work. Its API answers 200 at once and tells of failures in a stream of events,
so every event is read. A registry on this machine is looked at first, over HTTP: docker never
writes over a blob that is damaged there, and says that all went well; and it tries for over a
minute to fetch one that is missing or cut short.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import docker.errors

from labapp import feedback
from labapp.errors import (
    FULL,
    PUSH_AGAIN,
    DamagedContent,
    ImageError,
    NotInRegistry,
    PullError,
    PushError,
    RegistryError,
    RegistryFailed,
    RegistryUnreachable,
    on_a_full_disk,
)
from labapp.feedback import amount
from labapp.machine.engine import Engine
from labapp.reference import DEFAULT_TAG, Reference
from labapp.registry import log
from labapp.registry.client import BlobDamage, Registry
from labapp.registry.http import FEWER, RATE_LIMIT, Credentials, is_loopback, same_address
from labapp.registry.manifests import Index, Manifest, Platform
from labapp.registry.server import CONTENT, RegistryServer

if TYPE_CHECKING:
    import pandas as pd

SENT, THERE, FETCHED, HERE = "sent", "already there", "fetched", "already here"

_OUTCOMES = {
    "Pushed": SENT,
    "Layer already exists": THERE,
    "Mounted from": "mounted",
    "Download complete": FETCHED,
    "Pull complete": FETCHED,
    "Already exists": HERE,
}
"""What the beginning of a layer's status says of its way."""

_START = "'python3 -m labapp status' tells whether it runs, 'python3 -m labapp start' starts it."

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ALTERED = re.compile(
    r"(?:verification failed for digest |unexpected commit digest \S+ expected |"
    r"Digest did not match, expected )"
    r"(sha256:[0-9a-f]{64})"
)

_ADVICE = {
    RATE_LIMIT.pattern: f"{FEWER}.",
    r"no space left": FULL,
    r"no such host|connection refused": "Is the registry's name right, and its port? "
    "The lab's own registry is started by 'python3 -m labapp start'.",
    r"certificate|IP SANs|not valid for any names": "Does the engine trust the authority that "
    "signed the registry's certificate? If you know whose it is, put it into the engine's folder "
    "'certs.d'. Else look at the registry's name and at the clock of the engine's machine.",
    r"access to the resource is denied|insufficient_scope|no basic auth|nauthorized": "The account "
    "that is logged in has no right to that, or nobody is logged in. Log in with 'docker login' as "
    "one that has it, or ask the repository's owner for the right.",
    r"layers from manifest don't match|wrong diff ?id|match config's diffid": "The layers are "
    "not those that the image's config promises: it was put together wrongly. Build and push it "
    "again.",
    r"(?:tag|image) does not exist|image not known": "The engine has no image of that name. Build "
    "it under that name, or give it to an image with 'docker tag'.",
}
"""What to do about what engines say."""

_refused_blobs: set[str] = set()
"""Blobs that an engine refused though their length is right: only of these there is a reason to
doubt the bytes, so they are read the next time."""


@dataclass(frozen=True)
class Transfer:
    """What a push or a pull did.

    ``layers`` has a row a layer, lowest first: ``digest``, ``bytes`` (compressed), ``outcome``, as
    the lab's registry tells; for a registry that is not the lab's, only what the engine tells.
    """

    reference: Reference
    digest: str
    layers: pd.DataFrame = field(repr=False, compare=False)
    seconds: float

    @property
    def moved_bytes(self) -> int:
        """Compressed bytes of the layers that were sent or fetched."""
        return int(self.layers[self.layers["outcome"].isin([SENT, FETCHED])]["bytes"].sum())


@dataclass(frozen=True)
class Login:
    """An account at a registry, or nobody; ``config`` is the folder that keeps the login.

    ``token`` is for an engine that can't ask the token service for one itself.
    """

    registry: Registry
    config: Path
    credentials: Credentials | None = None
    token: str = ""

    def command(self, *words: str) -> list[str]:
        """Return a docker command line that uses the login."""
        return ["docker", "--config", str(self.config), *words]

    @property
    def auth_config(self) -> dict[str, str]:
        """The login as the Docker SDK takes it; nothing of what it finds elsewhere is added."""
        if self.token:
            return {"registrytoken": self.token}
        if self.credentials is None:
            return {}
        return {"username": self.credentials.username, "password": self.credentials.password}


def with_tag(reference: Reference | str) -> Reference:
    """Read a reference; one without tag and digest means ``latest``, as for docker."""
    found = Reference.parse(reference) if isinstance(reference, str) else reference
    return found if found.tag or found.digest else found.with_tag(DEFAULT_TAG)


def tag(engine: Engine, source: Reference | str, target: Reference | str) -> None:
    """Give an image on the engine one more name; whatever had it before loses it."""
    source, target = with_tag(source), with_tag(target)
    doing = f"tagging '{source}' as '{target}'"
    if target.digest is not None:
        raise ImageError(f"{doing}: a digest can't be given, only a tag. Leave the digest out.")
    feedback.command(["docker", "tag", str(source), str(target)])
    with engine.doing(doing, ImageError):
        engine.client.api.tag(str(source), target.name, target.tag)


def push(
    engine: Engine,
    server: RegistryServer | None,
    reference: Reference | str,
    *,
    login: Login | None = None,
) -> Transfer:
    """Send an image to its registry; in the lab's own, ``server``, in place of what is damaged."""
    way = _Way("push", engine, server, reference, login)
    if way.reference.digest is not None:
        raise way.error("a digest can't be pushed, it comes out of the push. Push a tag instead.")
    try:
        # What is missing as a whole, the engine sends by itself.
        damage = [blob for blob in way.damage() if blob.what != "missing"]
        if damage and way.own is None:
            raise way.not_whole(damage)
        way.discard({blob.digest: str(blob) for blob in damage})
    except (RegistryFailed, DamagedContent):
        if way.own is not None:
            tags = f"{CONTENT}/repositories/{way.reference.repository}/_manifests/tags"
            digest = way.own.storage(["cat", f"{tags}/{way.reference.tag}/current/link"]).strip()
            way.discard({digest: f"manifest {digest} can't be read"})
    except RegistryError:
        pass  # It has none, or wants a login: of damage this says nothing.
    return way.go()


def pull(
    engine: Engine,
    server: RegistryServer | None,
    reference: Reference | str,
    *,
    login: Login | None = None,
) -> Transfer:
    """Fetch an image from its registry; what is damaged there is named before the engine tries."""
    way = _Way("pull", engine, server, reference, login)
    try:
        damage = way.damage()
    except RegistryError as error:
        raise way.error(str(error)) from error
    if damage:
        raise way.not_whole(damage)
    return way.go()


def remove(engine: Engine, reference: Reference | str) -> bool:
    """Take a name off an image, and tell if there was one; with the last one the image goes.

    BuildKit keeps the layers that it built or built on in a cache of its own, out of which a pull
    would take them. What no image shares any more goes from there too, with what was built on it.
    Some stores can't tell what is shared: there, the image's history names the steps that go.
    (Its history may keep the config on the containerd store; nothing in the API takes that away.)
    """
    api, name = engine.client.api, str(with_tag(reference))
    with engine.doing(f"removing the image '{reference}'", ImageError):
        before = build_cache(engine)
        try:
            # An image that was put together by hand has none.
            history: Any = (before and api.history(name)) or ()  # type: ignore[no-untyped-call]
            said = api.remove_image(name)
        except docker.errors.NotFound:
            return False
        except docker.errors.APIError as error:
            if "tag not known" in str(error):  # Podman 4 has it by a tag, which is another name
                return False
            if error.status_code != 409:
                raise
            raise ImageError(
                f"removing the image '{reference}': a container was made from it "
                f"({error.explanation}). Remove that first: 'docker rm --force CONTAINER'."
            ) from error
        free = [(k, r) for k, r in build_cache(engine).items() if not r.get("Shared")]
        left = {key for key, _ in free if before.get(key, {}).get("Shared")}
        if not left and any("Deleted" in each for each in said):
            # A RUN is told without its keyword and its build arguments.
            words = r"^RUN .*?(?=/bin/)| # buildkit$"
            steps = tuple(re.sub(words, "", each["CreatedBy"]) for each in history)
            left = {key for key, record in free if record["Description"].endswith(steps)}
        going: list[str] = []
        for key, record in free:
            if key in left or not set(record["Parents"]).isdisjoint(going):
                going.append(key)
        prune(engine, going)
    return True


def build_cache(engine: Engine) -> dict[str, dict[str, Any]]:
    """Return the records of BuildKit's cache by their IDs, oldest first; each has its ``Parents``.

    ``Shared`` says that an image has it.
    """
    if engine.builder == "classic":
        return {}
    api = engine.client.api
    # The SDK's `df` would also measure all images and volumes.
    url = f"{api.base_url}/v{api.api_version}/system/df"
    answer = api.get(url, params={"type": "build-cache"}, timeout=api.timeout)
    answer.raise_for_status()
    found = answer.json().get("BuildCache") or ()
    for record in found:
        # Engines up to 28 write the name with a space in front.
        record["Parents"] = record.get("Parents") or record.get(" Parents") or ()
    found = sorted(found, key=lambda record: str(record.get("CreatedAt")))
    return {record["ID"]: record for record in found}


def prune(engine: Engine, going: Sequence[str]) -> int:
    """Remove records of BuildKit's cache, given oldest first, and return the bytes freed."""
    freed = 0
    # What was built on another goes before it.
    for key in reversed(going):
        only_this: Any = {"id": key}
        freed += engine.client.api.prune_builds(filters=only_this).get("SpaceReclaimed") or 0
    return freed


class _Way:
    """One push or pull; ``registry`` is None where the lab may not ask it itself."""

    def __init__(
        self,
        verb: Literal["push", "pull"],
        engine: Engine,
        server: RegistryServer | None,
        reference: Reference | str,
        login: Login | None,
    ) -> None:
        self.verb, self.engine, self.login = verb, engine, login
        self.reference = with_tag(reference)
        self.doing = f"{verb}ing '{self.reference}'"
        self.failure = PushError if verb == "push" else PullError
        self.began = time.monotonic()
        address = self.reference.registry
        is_own = server is not None and same_address(server.address, address)
        self.own = server if is_own else None
        here = is_loopback((address.rpartition(":")[0] or address).strip("[]"))
        self.registry = login.registry if login else Registry(address) if here else None
        words = (verb, str(self.reference))
        feedback.command(login.command(*words) if login else ["docker", *words])

    def error(self, cause: str) -> ImageError:
        return self.failure(f"{self.doing}: {cause}")

    def not_whole(self, damage: list[BlobDamage]) -> ImageError:
        return self.error(
            f"the registry has not got the image whole: {', '.join(map(str, damage))}. "
            f"{PUSH_AGAIN} From a registry that is not the lab's, delete that before."
        )

    def read(self, identifier: str) -> tuple[str, Manifest]:
        """Return the digest that an identifier leads to, and the engine's platform's manifest."""
        assert self.registry is not None
        named = found = self.registry.manifest(self.reference.repository, identifier)
        while isinstance(found, Index):
            entry = found.for_platform(Platform.parse(self.engine.platform))
            found = self.registry.manifest(self.reference.repository, entry.digest)
        return named.digest, found

    def damage(self) -> list[BlobDamage]:
        """Return the blobs that the registry lacks, or has not got as its manifest says."""
        if self.registry is None:
            return []
        try:
            _, manifest = self.read(self.reference.identifier)
        except RegistryUnreachable as error:
            address = self.reference.registry
            raise self.error(f"nothing answers at the registry '{address}'. {_START}") from error
        except RegistryError as error:
            if self.own or self.login or isinstance(error, (NotInRegistry, DamagedContent)):
                raise
            self.registry = None  # It wants a login that only the engine may have.
            return []
        doubted = any(blob.digest in _refused_blobs for blob in manifest.blobs)
        return self.registry.damaged_blobs(self.reference.repository, manifest, contents=doubted)

    def discard(self, damage: dict[str, str]) -> None:
        """Discard what is damaged in the lab's own registry, or a push would not send it anew."""
        if self.own is not None and damage:
            what = ", ".join(damage.values())
            feedback.say(f"The registry's copy is damaged: {what}. It is discarded and sent anew.")
            self.own.discard_blobs(damage)
            _refused_blobs.difference_update(damage)

    def go(self) -> Transfer:
        """Let the engine do it, and keep what it says of each layer."""
        api = self.engine.client.api
        act = api.push if self.verb == "push" else api.pull
        title = self.doing.replace("'", "")
        if self.verb == "push":
            # The engine counts the bytes of a layer before it compresses them.
            title += ", layers before compression"
        digest, outcomes = "", dict[str, str]()
        heard = log.hearing(self.own) if self.own is not None else nullcontext()
        doing = self.engine.doing(self.doing, self.failure)
        with heard as wire, doing, feedback.bars(title) as bars:
            try:
                events = act(
                    self.reference.name,
                    tag=self.reference.identifier,
                    stream=True,
                    decode=True,
                    # The lab's own asks for none: docker's settings need not even be right.
                    auth_config=self.login.auth_config if self.login else {} if self.own else None,
                )
            except docker.errors.APIError as error:
                raise self._refused(error.explanation or error) from error
            with closing(events):
                for event in events:
                    if "error" in event:
                        detail = event.get("errorDetail") or {}
                        raise self._refused(detail.get("message") or event["error"])
                    key, status = event.get("id", ""), str(event.get("status", ""))
                    if status.startswith("Retrying in") and self._is_gone():
                        raise self._refused(status)  # The engine would try for most of a minute.
                    outcome = next((_OUTCOMES[o] for o in _OUTCOMES if status.startswith(o)), None)
                    if outcome:
                        # What "already exists" can be told to be "complete" later.
                        bars.finish(key, outcomes.setdefault(key, outcome))
                    elif "progressDetail" in event and key:
                        progress = event["progressDetail"] or {}
                        now, total = progress.get("current") or 0, progress.get("total") or None
                        bars.update(key, now, total, status.lower())
                    elif found := _DIGEST.search(status):
                        digest = found[0]
                    if isinstance(event.get("aux"), dict):
                        digest = event["aux"].get("Digest", digest)
            if not outcomes:  # Podman tells nothing of what it pushes.
                bars.finish("all layers", HERE if self.verb == "pull" else "done")
        return self._done(digest, outcomes, wire)

    def _done(self, digest: str, outcomes: dict[str, str], wire: log.Wire | None) -> Transfer:
        """Return what came of it, and tell it; of what arrived, even if the tag moved since."""
        import pandas as pd  # A second that quick commands need not pay.

        rows: list[tuple[str, int | None, str]] = [(k, None, o) for k, o in outcomes.items()]
        moved = ""
        if self.registry is not None:
            try:
                digest, manifest = self.read(digest or self.reference.identifier)
            except RegistryError as error:
                raise self.error(str(error)) from error
        if wire is not None:
            found = log.moved(wire.rows, self.reference.repository)
            otherwise = THERE if self.verb == "push" else HERE
            rows = [
                (layer.digest, layer.size, found.get(layer.digest, otherwise))
                for layer in manifest.layers
            ]
        table = pd.DataFrame(rows, columns=["digest", "bytes", "outcome"])
        done = Transfer(self.reference, digest, table, time.monotonic() - self.began)
        if wire is not None:
            moved = f", {amount(done.moved_bytes)} {SENT if self.verb == 'push' else FETCHED}"
        if digest:
            feedback.say(
                f"{self.verb.title()}ed {done.reference} in {done.seconds:.1f} s{moved}: {digest}"
            )
        return done

    def _is_gone(self) -> bool:
        try:
            if self.registry is not None:
                self.registry.ping()
        except RegistryError as error:  # Whatever else it says, it is there.
            return isinstance(error, RegistryUnreachable)
        return False

    def _refused(self, said: object) -> ImageError:
        """Return the error for what the engine said, with what to do about it."""
        cause = " ".join(str(said).split())
        if altered := _ALTERED.search(cause):
            _refused_blobs.add(altered[1])
            return self.error(
                f"blob {altered[1]} has been altered in the registry; the engine refuses it, for "
                f"its bytes do not match its digest. {PUSH_AGAIN}"
            )
        if self._is_gone():
            return self.error(
                f"the registry '{self.reference.registry}' stopped on the way ({cause}). {_START} "
                f"Then {self.verb} again."
            )
        if self.own is not None and on_a_full_disk(self.own.logs(tail=20)):
            return self.error(f"the disk under the registry is full. {FULL}")
        found = (advice for words, advice in _ADVICE.items() if re.search(words, cause, re.I))
        otherwise = "Is the name right, does the registry run, and has it room?"
        return self.error(f"{cause}. {next(found, otherwise)}")
