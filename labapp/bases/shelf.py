"""The shelf of the base images: the lab's registry, and the record of what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from labapp.bases.sources import SOURCE_LABEL, place
from labapp.engine import Engine
from labapp.errors import LabError, NotInRegistry, RegistryError, RegistryUnreachable
from labapp.feedback import Bars, Feedback
from labapp.manifests import Manifest, Platform
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.copies import ImageSource, copy_image, find_image
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, State

RECORD = "bases"
"""The name under which the state folder keeps the digests and sources of the base images."""


@dataclass(frozen=True)
class Base:
    """A base image in the lab's registry.

    Attributes:
        name: its public name, ``python:3.13`` or ``python:3.13-slim``; ``registry`` is the
            registry's own.
        reference: where it is in the lab's registry, pinned by digest.
        digest: of its manifest, as the lab recorded it.
        source: where it comes from: ``docker-hub`` or ``debian-packages``.
    """

    name: str
    reference: Reference
    digest: str
    source: str

    @classmethod
    def from_record(cls, address: str, name: str, record: Mapping[str, str]) -> Base:
        """Return a base as the state folder has it, in the registry at an address."""
        repository, _ = place(name)
        reference = Reference(address, repository, digest=record["digest"])
        return cls(name, reference, record["digest"], record["source"])


@dataclass(frozen=True)
class Shelf:
    """Where the base images of one lab go."""

    engine: Engine
    server: RegistryServer
    registry: Registry
    state: State
    feedback: Feedback

    def find(self, name: str) -> Base | None:
        """Return a base that is there and whole; what is damaged is discarded, to be stored anew.

        Raises:
            RegistryError: the registry does not answer.
        """
        record = self.state.read(RECORD).get(name)
        repository, tag = place(name)
        try:
            if record is None:
                self._adopt(name)
                record = self.state.read(RECORD)[name]
            manifest = self.registry.manifest(repository, record["digest"])
        except NotInRegistry:
            return None
        except RegistryUnreachable:
            raise
        except RegistryError:  # the manifest is damaged; of an empty one the registry makes a 500
            self.server.discard_blobs([record["digest"]] if record else [])
            return None
        assert isinstance(manifest, Manifest)
        if damage := self.registry.damaged_blobs(repository, manifest):
            what = "; ".join(str(each) for each in damage)
            self.feedback.say(f"The base image '{name}' is damaged and is made again: {what}.")
            self.server.discard_blobs([blob.digest for blob in damage])
            return None
        try:
            self.registry.resolve(repository, tag)
        except NotInRegistry:
            self.registry.put_manifest(repository, tag, manifest.raw, manifest.media_type)
        return Base.from_record(self.registry.address, name, record)

    def record(self, name: str, digest: str) -> None:
        """Write down that a base is complete."""
        repository, _ = place(name)
        manifest = self.registry.manifest(repository, digest)
        assert isinstance(manifest, Manifest)
        source = self.registry.config(repository, manifest).labels.get(SOURCE_LABEL, "unknown")
        known = self.state.read(RECORD)
        self.state.write(RECORD, known | {name: {"digest": digest, "source": source}})

    def copy(self, source: ImageSource, names: Iterable[str]) -> dict[str, LabError]:
        """Copy bases from a mirror or a file, record them, and return what failed."""
        with self.feedback.bars("Copying the base images") as bars:
            return self.side_by_side({name: self._copier(source, name, bars) for name in names})

    def side_by_side(
        self, work: Mapping[str, Callable[[], str]], *, stop: Callable[[], None] = lambda: None
    ) -> dict[str, LabError]:
        """Do the work for several bases at once, and record those that succeed.

        Args:
            work: for each base what makes it, and returns its digest.
            stop: called when this is interrupted; it must make the work end soon.

        Returns:
            The failures of the others.
        """
        failed: dict[str, LabError] = {}
        with ThreadPoolExecutor(max(1, len(work))) as threads:
            names: dict[Future[str], str] = {threads.submit(do): name for name, do in work.items()}
            try:
                for future in as_completed(names):
                    try:
                        self.record(names[future], future.result())
                    except LabError as error:
                        failed[names[future]] = error
            except BaseException:
                stop()
                raise
        return failed

    def _copier(self, source: ImageSource, name: str, bars: Bars) -> Callable[[], str]:
        repository, tag = place(name)

        def copy() -> str:
            platform = Platform.parse(self.engine.platform)
            image = find_image(source, repository, tag, platform=platform)
            self._discard_damaged(repository, image)
            return copy_image(
                source,
                self.registry,
                repository,
                image,
                tag=tag,
                labels=self.state.labels,
                progress=lambda done, total: bars.update(name, done, total),
            )

        return copy

    def _discard_damaged(self, repository: str, image: Manifest) -> None:
        """Make way for the layers that the registry has, but not whole: it replaces none."""
        damaged = [
            layer.digest
            for layer in image.layers
            if self.registry.blob_size(repository, layer.digest) not in (None, layer.size)
        ]
        self.server.discard_blobs(damaged)

    def _adopt(self, name: str) -> None:
        """Record a base that is complete, as after a run that was ended just before it could."""
        repository, tag = place(name)
        platform = Platform.parse(self.engine.platform)
        manifest = find_image(self.registry, repository, tag, platform=platform)
        found = self.registry.config(repository, manifest).labels
        if found.get(LABEL) != self.state.lab_id or SOURCE_LABEL not in found:
            raise NotInRegistry(f"looking for '{repository}:{tag}': another image has that name.")
        self.record(name, manifest.digest)
