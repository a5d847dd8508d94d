"""Base images on a real engine: what they hold, and each source they can come from."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from labapp import bases as base_images
from labapp import images
from labapp.bases import Base, debian, registry_image
from labapp.bases.sources import NAMES, SOURCE_LABEL
from labapp.bench import Bench
from labapp.engine import Engine
from labapp.errors import BaseError
from labapp.feedback import QuietFeedback
from labapp.images.builds import build
from labapp.manifests import Manifest
from labapp.registry import Registry
from labapp.registry.server import RegistryServer
from labapp.registry.storage import CONTENT
from labapp.state import LABEL, State

SLIM, FULL = "python:3.13-slim", "python:3.13"


@dataclass
class Lab:
    """One more lab on the engine."""

    engine: Engine
    state: State
    server: RegistryServer
    feedback: QuietFeedback

    def prepare(self, source: str) -> dict[str, Base]:
        found = base_images.prepare(
            self.engine, self.server, self.state, source=source, feedback=self.feedback
        )
        return {base.name: base for base in found}

    @property
    def registry(self) -> Registry:
        return self.server.registry()

    def labels(self, base: Base) -> dict[str, str]:
        return dict(self.registry.image(base.reference).config.labels)

    def layer(self, base: Base) -> str:
        manifest = self.registry.manifest(base.reference.repository, base.digest)
        assert isinstance(manifest, Manifest)
        return manifest.layers[0].digest


@pytest.fixture
def lab(engine: Engine, another_lab: Callable[[], State], monkeypatch: pytest.MonkeyPatch) -> Lab:
    state = another_lab()
    monkeypatch.delenv("LABAPP_BASES", raising=False)
    monkeypatch.setenv("LABAPP_HUB", "localhost:9/library")  # nobody listens there
    return Lab(engine, state, RegistryServer(engine=engine, state=state), QuietFeedback())


@pytest.fixture
def mirrored(lab: Lab, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose mirror is the session's registry."""
    monkeypatch.setenv("LABAPP_MIRROR", registry.address)
    return lab


def by_name(bases: tuple[Base, ...], name: str) -> Base:
    return next(base for base in bases if base.name == name)


def blob_path(digest: str) -> str:
    value = digest.removeprefix("sha256:")
    return f"{CONTENT}/blobs/sha256/{value[:2]}/{value}/data"


# What they hold


def test_each_base_is_pinned_recorded_and_served(
    bases: tuple[Base, ...], registry: Registry, state: State
) -> None:
    assert [base.name for base in bases] == list(NAMES)
    record = state.read("bases")
    for base in bases:
        image = registry.image(base.reference)
        assert base.reference.is_pinned
        assert image.manifest.digest == base.digest == record[base.name]["digest"]
        assert image.config.labels[LABEL] == state.lab_id
        assert image.config.labels[SOURCE_LABEL] == base.source


@pytest.mark.parametrize("name", [SLIM, FULL])
def test_python_and_pip_work_by_their_public_names(
    bench: Bench, state: State, feedback: QuietFeedback, name: str
) -> None:
    script = "python --version && python3 --version && pip --version"
    printed = images.run_once(
        bench.engine,
        bench.base(name),
        ["sh", "-c", script],
        labels=state.labels,
        feedback=feedback,
    )
    assert printed.count("Python 3.13") == 2
    assert "(python 3.13)" in printed


def test_pip_installs_without_a_virtual_environment(
    bench: Bench, state: State, feedback: QuietFeedback
) -> None:
    printed = images.run_once(
        bench.engine,
        bench.base(SLIM),
        ["pip", "install", "--no-index", "--dry-run", "pip"],
        labels=state.labels,
        feedback=feedback,
    )
    assert "already satisfied" in printed


@pytest.mark.parametrize(
    ("program", "in_full", "in_slim"),
    [("gcc", True, False), ("git", True, False), ("make", True, False), ("apt-get", True, True)],
)
def test_full_has_the_tools_and_slim_has_not(
    bench: Bench,
    state: State,
    feedback: QuietFeedback,
    program: str,
    in_full: bool,
    in_slim: bool,
) -> None:
    for name, expected in ((FULL, in_full), (SLIM, in_slim)):
        printed = images.run_once(
            bench.engine,
            bench.base(name),
            ["sh", "-c", f"command -v {program} || true"],
            labels=state.labels,
            feedback=feedback,
        )
        assert bool(printed.strip()) is expected, name


def test_slim_is_the_smaller_download(bases: tuple[Base, ...], registry: Registry) -> None:
    slim, full = (registry.image(by_name(bases, name).reference).manifest for name in (SLIM, FULL))
    assert slim.download_bytes * 4 < full.download_bytes


def test_prepare_is_quick_when_all_is_there(
    bases: tuple[Base, ...],
    engine: Engine,
    server: RegistryServer,
    state: State,
    feedback: QuietFeedback,
) -> None:
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert base_images.prepare(engine, server, state, feedback=feedback) == bases
        took.append(time.monotonic() - began)
    assert min(took) < 0.5, f"prepare took {took} s"


# From a mirror


def test_a_mirror_gives_all_of_it_relabelled(
    mirrored: Lab, bases: tuple[Base, ...], registry: Registry
) -> None:
    found = mirrored.prepare("auto")
    assert set(found) == set(NAMES)
    for name, base in found.items():
        original = by_name(bases, name)
        assert base.source == original.source, "the origin is not hidden by the mirror"
        assert base.reference.registry == mirrored.registry.address != registry.address
        assert mirrored.labels(base)[LABEL] == mirrored.state.lab_id
        assert mirrored.layer(base) == registry.image(original.reference).manifest.layers[0].digest
    assert base_images.recorded(mirrored.server, mirrored.state) == tuple(found.values())

    # Everything below breaks this copy, and has the mirror mend it.
    slim = found[SLIM]
    layer = blob_path(mirrored.layer(slim))
    for damage in (["truncate", "-s", "1000", layer], ["rm", layer], ["cp", "/dev/null", layer]):
        mirrored.server.storage(damage)
        assert mirrored.prepare("mirror")[SLIM] == slim
        assert mirrored.registry.blob_size("base/python", mirrored.layer(slim)) > 1000
    said = "\n".join(mirrored.feedback.lines)
    assert f"'{SLIM}' is damaged" in said and mirrored.layer(slim) in said

    mirrored.server.storage(["cp", "/dev/null", blob_path(slim.digest)])
    assert mirrored.prepare("mirror")[SLIM] == slim, "a damaged manifest is mended"

    mirrored.state.write("bases", {})
    mirrored.feedback.commands.clear()
    assert mirrored.prepare("mirror") == found, "what is complete is taken up without its record"

    mirrored.registry.delete_manifest("base/python", slim.digest)
    assert mirrored.prepare("mirror")[SLIM] == slim, "what was deleted is copied again"

    engine = mirrored.engine
    mirrored.server.remove(volume=False)
    images.remove(engine, registry_image.engine_name(mirrored.state))
    registry_image.archive(mirrored.state).write_bytes(b"damaged")
    assert mirrored.prepare("mirror") == {
        name: replace(base, reference=replace(base.reference, registry=mirrored.server.address))
        for name, base in found.items()
    }, "a registry image that is lost on the engine and damaged in its file is copied again"


def test_a_mirror_without_the_images_is_named_as_the_cause(
    lab: Lab, engine: Engine, another_lab: Callable[[], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_MIRROR", "localhost:9")
    with pytest.raises(BaseError, match=r"instructor's mirror: .*'localhost:9'"):
        lab.prepare("mirror")
    assert lab.state.read("bases") == {}


# From Docker Hub: a registry on this machine stands in for it


@pytest.fixture
def hub(
    engine: Engine,
    server: RegistryServer,
    state: State,
    another_lab: Callable[[], State],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Registry:
    """A registry with small images under the names of Docker Hub."""
    theirs, feedback = another_lab(), QuietFeedback()
    standing_in = RegistryServer(engine=engine, state=theirs)
    image = str(state.read("registry")["image"])
    registry = standing_in.start(image=image, feedback=feedback)
    monkeypatch.setenv("LABAPP_HUB", f"{registry.address}/library")
    for name in ("registry:3", FULL, SLIM):
        (tmp_path / "Dockerfile").write_text(f"FROM {image}\nLABEL public={name}\n")
        tag = f"{registry.address}/library/{name}"
        build(engine, tmp_path, tag=tag, labels=theirs.labels, feedback=feedback)
        images.push(engine, standing_in, tag, feedback=feedback)
        images.remove(engine, tag)
    return registry


def test_docker_hub_gives_the_images_and_their_digests_are_kept(
    lab: Lab, hub: Registry, engine: Engine
) -> None:
    found = lab.prepare("hub")
    for name, public in (("registry", "registry:3"), (FULL, FULL), (SLIM, SLIM)):
        labels = lab.labels(found[name])
        repository, _, tag = public.partition(":")
        assert found[name].source == "docker-hub"
        assert labels["public"] == public
        assert labels[LABEL] == lab.state.lab_id
        assert labels["org.opencontainers.image.base.digest"] == hub.resolve(
            f"library/{repository}", tag
        )
    left = [tag for image in engine.client.images.list() for tag in image.tags]
    assert not [tag for tag in left if tag.startswith(hub.address)], "no public name is left"
    assert lab.prepare("hub") == found


class _Limited(http.server.BaseHTTPRequestHandler):
    """Docker Hub's answer to an address that has pulled too much."""

    def do_GET(self) -> None:
        body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your limit"}]}'
        self.send_response(429)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Limited) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        monkeypatch.setenv("LABAPP_HUB", f"localhost:{busy.server_port}/library")
        yield
        busy.shutdown()


def test_a_rate_limit_is_told_in_plain_words(lab: Lab, limited: None) -> None:
    with pytest.raises(BaseError, match=r"no more images for now.*bundle load"):
        lab.prepare("hub")


def test_after_a_rate_limit_the_next_source_is_tried(
    lab: Lab, limited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(BaseError) as caught:
        lab.prepare("auto")
    assert "Docker Hub: " in str(caught.value)
    assert "Debian packages: " in str(caught.value)


# From Debian packages


@pytest.mark.own_engine
def test_a_debian_mirror_that_does_not_answer(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABAPP_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(BaseError, match="Debian mirror can't be reached"):
        lab.prepare("debian")
    roots = lab.state.path("roots")
    assert not roots.exists() or not any(roots.iterdir())


@pytest.mark.own_engine
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_is_ended_leaves_nothing_of_a_root(
    tmp_path: Path, end: signal.Signals
) -> None:
    script = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from labapp.bases.debian import Root; from labapp.bases.debian_recipes import recipe\n"
        "from labapp.feedback import QuietFeedback\n"
        "with QuietFeedback().bars('x', unit='steps') as bars:\n"
        "    b''.join(Root(recipe('registry'), folder=Path(sys.argv[1]), bars=bars))\n"
    )
    folder = tmp_path / "roots"
    client = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    _wait(lambda: folder.exists() and any(folder.iterdir()), seconds=30)
    client.send_signal(end)
    client.wait(timeout=30)
    _wait(lambda: not _works_in(folder), seconds=60)
    debian.clear(folder)
    assert not folder.exists() or not any(folder.iterdir())


def _works_in(folder: Path) -> bool:
    """Tell whether a process still has something in its environment about the folder."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={folder}".encode() in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


def _wait(until: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
