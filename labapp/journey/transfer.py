"""An image on its way: named, pushed, pulled, and taken off the engine again.

The engine does the work. Its API answers 200 at once and tells of failures in a stream of events,
so every event is read. A registry on this machine is looked at first, over HTTP: docker never
writes over a blob that is damaged there, and says that all went well; and it tries for over a
minute to fetch one that is missing or cut short.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import docker.errors

from labapp import feedback
from labapp.errors import (
    DamagedContent,
    ImageError,
    NotInRegistry,
    PullError,
    PushError,
    RegistryError,
    RegistryUnreachable,
)
from labapp.feedback import Bars, amount
from labapp.machine.engine import Engine
from labapp.reference import DEFAULT_TAG, Reference
from labapp.registry.client import BlobDamage, Registry
from labapp.registry.http import is_loopback, same_address
from labapp.registry.login import Credentials
from labapp.registry.manifests import Index, Manifest, Platform
from labapp.registry.server import RegistryServer

if TYPE_CHECKING:
    import pandas as pd

SENT, MOUNTED, THERE = "sent", "mounted", "already there"
FETCHED, HERE = "fetched", "already here"

_OUTCOMES = {
    "Pushed": SENT,
    "Layer already exists": THERE,
    "Mounted from": MOUNTED,
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
    r"no such host|connection refused": "Is the registry's name right, and its port? "
    "The lab's own registry is started by 'python3 -m labapp start'.",
    r"certificate signed by unknown authority|certificate is not trusted": "The engine does not "
    "trust the authority that signed the registry's certificate. If you know whose it is, put its "
    "certificate into the engine's folder 'certs.d', then try again.",
    r"certificate has expired or is not yet valid": "Look at the clock of the engine's machine; "
    "if it is right, whoever runs the registry has to renew its certificate.",
    r"certificate is (?:not )?valid for|doesn't contain any IP SANs|not valid for any names": "The "
    "certificate is for another host. Use the name that it was made for.",
    r"access to the resource is denied|insufficient_scope|no basic auth|nauthorized": "The account "
    "that is logged in has no right to that, or nobody is logged in. Log in with 'docker login' as "
    "one that has it, or ask the repository's owner for the right.",
    r"layers from manifest don't match|wrong diff ?id": "The layers are not those that the image's "
    "config promises: it was put together wrongly. Build and push it again.",
    r"(?:tag|image) does not exist|image not known": "The engine has no image of that name. Build "
    "it under that name, or give it to an image with 'docker tag'.",
}
"""What to do about what engines say."""

T = TypeVar("T", bound="Transfer")

_refused_blobs: set[str] = set()
"""Blobs that an engine refused though their length is right: the next push reads them, for they
are the only ones that there is a reason to doubt."""


@dataclass(frozen=True)
class Transfer:
    """What a push or a pull did.

    Attributes:
        reference: the image's name in the registry.
        digest: of the manifest (or index) that the registry has for it.
        layers: a row a layer, lowest first: ``digest``, ``bytes`` (compressed), ``outcome``. For a
            registry that is not on this machine, only what the engine tells.
        seconds: how long it took, checks included.
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
class Push(Transfer):
    """What a push did; outcomes are ``sent``, ``mounted`` (from elsewhere), ``already there``."""


@dataclass(frozen=True)
class Pull(Transfer):
    """What a pull did; outcomes are ``fetched`` and ``already here``."""


@dataclass(frozen=True)
class Login:
    """An account at a registry, for the engine to push and pull with.

    Attributes:
        registry: the client that is logged in with the same account.
        config: the folder of docker's configuration that keeps the login.
        credentials: name and password; None for nobody.
    """

    registry: Registry
    config: Path
    credentials: Credentials | None = None

    def command(self, *words: str) -> list[str]:
        """Return a docker command line that uses the login."""
        return ["docker", "--config", str(self.config), *words]

    @property
    def auth_config(self) -> dict[str, str]:
        """The login as the Docker SDK takes it; nothing of what it finds elsewhere is added."""
        if self.credentials is None:
            return {}
        return {"username": self.credentials.username, "password": self.credentials.password}


def with_tag(reference: Reference | str) -> Reference:
    """Read a reference; one without tag and digest means ``latest``, as for docker."""
    if isinstance(reference, str):
        reference = Reference.parse(reference)
    if reference.tag is None and reference.digest is None:
        return reference.with_tag(DEFAULT_TAG)
    return reference


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
) -> Push:
    """Send an image to its registry; in the lab's own, ``server``, in place of what is damaged."""
    way = _Way("push", engine, server, reference, login)
    if way.reference.digest is not None:
        raise way.error("a digest can't be pushed, it comes out of the push. Push a tag instead.")
    way.look()
    way.replace_damaged()
    way.go()
    if way.own is not None and way.digest:
        try:
            way.arrived()
        except RegistryUnreachable:
            pass
        except RegistryError:  # A registry that can't read its own manifest says so in many ways.
            way.discard([way.digest], f"manifest {way.digest} can't be read")
            way.go()
    return way.done(Push)


def pull(
    engine: Engine,
    server: RegistryServer | None,
    reference: Reference | str,
    *,
    login: Login | None = None,
) -> Pull:
    """Fetch an image from its registry; what is damaged there is named before the engine tries."""
    way = _Way("pull", engine, server, reference, login)
    way.look()
    if way.fault is not None:
        raise way.error(str(way.fault)) from way.fault
    if damage := way.damage():
        raise way.not_whole(damage)
    way.go()
    return way.done(Pull)


def remove(engine: Engine, reference: Reference | str) -> bool:
    """Take a name from an image on the engine; with the last one the image goes, wherever it is.

    BuildKit keeps the layers that it built or built on in a cache of its own, out of which a pull
    would take them. What no image shares any more goes from there too, with what was built on it.
    (Its history may keep the config on the containerd store; nothing in the API takes that away.)

    Returns:
        Whether there was such a name.
    """
    with engine.doing(f"removing the image '{reference}'", ImageError):
        before = _build_cache(engine)
        try:
            engine.client.api.remove_image(str(with_tag(reference)))
        except docker.errors.NotFound:
            return False
        going: list[str] = []
        after = _build_cache(engine)
        for key, record in sorted(after.items(), key=lambda item: str(item[1].get("CreatedAt"))):
            # Engines up to 28 write the name with a space in front.
            parents = record.get("Parents") or record.get(" Parents") or ()
            left = before.get(key, {}).get("Shared") or not set(parents).isdisjoint(going)
            if left and not record.get("Shared"):
                going.append(key)
        # What was built on another goes before it.
        for key in reversed(going):
            only_this: Any = {"id": key}
            engine.client.api.prune_builds(filters=only_this)
    return True


def _build_cache(engine: Engine) -> dict[str, dict[str, Any]]:
    """Return the records of BuildKit's cache by their IDs; ``Shared`` says that an image has it."""
    if engine.builder == "classic":
        return {}
    api = engine.client.api
    # The SDK's `df` would also measure all images and volumes.
    url = f"{api.base_url}/v{api.api_version}/system/df"
    answer = api.get(url, params={"type": "build-cache"}, timeout=api.timeout)
    answer.raise_for_status()
    return {record["ID"]: record for record in answer.json().get("BuildCache") or ()}


class _Way:
    """One push or pull: look at the registry, let the engine go, see what arrived.

    Attributes:
        own: the lab's registry, if the image is in it.
        registry: None where the lab may not ask it.
        seen: the manifest that the registry had before, for the engine's platform.
        fault: why there was none.
        digest: that the name stands for: before, and later as the engine tells.
        outcomes: by the short names that the engine gives to layers.
    """

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
        is_own = server is not None and same_address(server.address, self.reference.registry)
        self.own = server if is_own else None
        self.registry: Registry | None = None
        self.seen: Manifest | None = None
        self.fault: RegistryError | None = None
        self.digest = self._seen_digest = ""
        self.outcomes: dict[str, str] = {}

    def error(self, cause: str) -> ImageError:
        return self.failure(f"{self.doing}: {cause}")

    def not_whole(self, damage: list[BlobDamage]) -> ImageError:
        mend = "Delete that from its storage, then push again: it never writes over what it has."
        if self.own:
            mend = "Push it again from where it was built: the lab then replaces what is damaged."
        return self.error(f"the registry has not got the image whole: {_listed(damage)}. {mend}")

    def look(self) -> None:
        words = (self.verb, str(self.reference))
        feedback.command(self.login.command(*words) if self.login else ["docker", *words])
        address = self.reference.registry
        if self.login is not None:
            self.registry = self.login.registry
        elif is_loopback((address.rpartition(":")[0] or address).strip("[]")):
            self.registry = Registry(address)
        else:
            return
        try:
            self._seen_digest, self.seen = self._read(self.reference.identifier)
        except RegistryUnreachable as error:
            raise self.error(f"nothing answers at the registry '{address}'. {_START}") from error
        except RegistryError as error:
            if self.own or self.login or isinstance(error, (NotInRegistry, DamagedContent)):
                self.fault = error
            else:
                self.registry = None  # It wants a login that only the engine may have.

    def damage(self) -> list[BlobDamage]:
        """Return the blobs that are missing, or not as the manifest says."""
        if self.registry is None or self.seen is None:
            return []
        doubted = any(blob.digest in _refused_blobs for blob in self.seen.blobs)
        contents = doubted and self.verb == "push"
        return self.registry.damaged_blobs(self.reference.repository, self.seen, contents=contents)

    def replace_damaged(self) -> None:
        """Make room for what a push has to send anew."""
        unreadable = self.fault is not None and not isinstance(self.fault, NotInRegistry)
        if self.own is not None and unreadable and self.engine.store == "containerd":
            # This store asks for the manifest first, and goes no further; it knows the digest.
            held = self.engine.image(str(self.reference))
            if held is not None:
                self.discard([str(held.id)], f"manifest {held.id} can't be read")
        # What is missing as a whole, the engine sends by itself.
        damage = [blob for blob in self.damage() if blob.what != "missing"]
        if damage and self.own is None:
            raise self.not_whole(damage)
        if damage:
            self.discard([blob.digest for blob in damage], _listed(damage))

    def discard(self, digests: list[str], what: str) -> None:
        assert self.own is not None
        feedback.say(
            f"The registry's copy is damaged: {what}. The lab discards it, to push it anew."
        )
        self.own.discard_blobs(digests)
        _refused_blobs.difference_update(digests)

    def go(self) -> None:
        api, self.outcomes = self.engine.client.api, {}
        title = self.doing.replace("'", "")
        if self.verb == "push":
            # The engine counts the bytes of a layer before it compresses them.
            title += ", layers before compression"
        with self.engine.doing(self.doing, self.failure), feedback.bars(title) as bars:
            try:
                events = (api.push if self.verb == "push" else api.pull)(
                    self.reference.name,
                    tag=self.reference.identifier,
                    stream=True,
                    decode=True,
                    auth_config=self.login.auth_config if self.login else None,
                )
            except docker.errors.APIError as error:
                raise self._refused(error.explanation or error) from error
            with closing(events):
                for event in events:
                    self._take(event, bars)
            if not self.outcomes:
                bars.finish("all layers", HERE if self.verb == "pull" else THERE)

    def arrived(self) -> Manifest:
        """Return the manifest of what was sent or fetched, even if the tag has moved since."""
        if self.seen is None or self.digest != self._seen_digest:
            self.digest, self.seen = self._read(self.digest or self.reference.identifier)
            self._seen_digest = self.digest
        return self.seen

    def done(self, kind: type[T]) -> T:
        """Return what came of it, and tell it."""
        import pandas as pd  # A second that quick commands need not pay.

        rows: list[tuple[str, int | None, str]]
        if self.registry is None:
            rows = [(key, None, outcome) for key, outcome in self.outcomes.items()]
        else:
            try:
                layers = self.arrived().layers
            except RegistryError as error:
                raise self.error(str(error)) from error
            # The classic store names a layer that it pushes by its diff ID, which no manifest has.
            held = self.engine.image(str(self.reference)) if self.verb == "push" else None
            diff_ids = held.attrs["RootFS"].get("Layers") or [] if held else []
            rows = [
                (layer.digest, layer.size, self._outcome(layer.digest, *diff_ids[place:][:1]))
                for place, layer in enumerate(layers)
            ]
        table = pd.DataFrame(rows, columns=["digest", "bytes", "outcome"])
        done = kind(self.reference, self.digest, table, time.monotonic() - self.began)
        if self.registry is not None:
            moved = f"{amount(done.moved_bytes)} {SENT if self.verb == 'push' else FETCHED}"
            feedback.say(
                f"{self.verb.title()}ed {done.reference} in {done.seconds:.1f} s, {moved}: "
                f"{done.digest}"
            )
        return done

    def _outcome(self, *digests: str) -> str:
        keys = [digest.partition(":")[2][:12] for digest in digests]
        otherwise = THERE if self.verb == "push" else HERE
        return next((self.outcomes[key] for key in keys if key in self.outcomes), otherwise)

    def _read(self, identifier: str) -> tuple[str, Manifest]:
        """Return the digest that an identifier leads to, and the engine's platform's manifest."""
        assert self.registry is not None
        found = self.registry.manifest(self.reference.repository, identifier)
        digest = found.digest
        if isinstance(found, Index):
            entry = found.for_platform(Platform.parse(self.engine.platform))
            found = self.registry.manifest(self.reference.repository, entry.digest)
        if isinstance(found, Index):
            raise DamagedContent(f"the index {digest} leads to another index, not to an image")
        return digest, found

    def _take(self, event: dict[str, Any], bars: Bars) -> None:
        """Take the next event of the engine's answer."""
        if "error" in event:
            detail = event.get("errorDetail") or {}
            raise self._refused(detail.get("message") or event["error"])
        key, status = event.get("id", ""), str(event.get("status", ""))
        if status.startswith("Retrying in") and self._is_gone():
            raise self._refused(status)  # The engine would try for most of a minute.
        if outcome := next((_OUTCOMES[o] for o in _OUTCOMES if status.startswith(o)), None):
            # The first word counts: what "already exists" can be told to be "complete" later.
            bars.finish(key, self.outcomes.setdefault(key, outcome))
        elif "progressDetail" in event and key:
            progress = event["progressDetail"] or {}
            now, total = progress.get("current") or 0, progress.get("total") or None
            bars.update(key, now, total, status.lower())
        elif found := _DIGEST.search(status):
            self.digest = found[0]
        if isinstance(event.get("aux"), dict):
            self.digest = event["aux"].get("Digest", self.digest)

    def _is_gone(self) -> bool:
        try:
            if self.registry is not None:
                self.registry.ping()
        except RegistryUnreachable:
            return True
        except RegistryError:
            pass  # Whatever it says, it is there.
        return False

    def _refused(self, said: object) -> ImageError:
        """Return the error for what the engine said, with what to do about it."""
        cause = " ".join(str(said).split())
        if altered := _ALTERED.search(cause):
            _refused_blobs.add(altered[1])
            return self.error(
                f"blob {altered[1]} has been altered in the registry; the engine refuses it, for "
                "its bytes do not match its digest. Push the image again from where it was built: "
                "the lab then replaces what is damaged."
            )
        if self._is_gone():
            return self.error(
                f"the registry '{self.reference.registry}' stopped on the way ({cause}). {_START} "
                f"Then {self.verb} again."
            )
        found = (advice for words, advice in _ADVICE.items() if re.search(words, cause))
        otherwise = "Is the name right, does the registry run, and has it room?"
        return self.error(f"{cause}. {next(found, otherwise)}")


def _listed(damage: Iterable[BlobDamage]) -> str:
    return ", ".join(map(str, damage))
