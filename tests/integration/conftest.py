"""Further labs on the same engine, and the application's images; what is made is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from labapp.bench import Bench
from labapp.feedback import QuietFeedback
from labapp.inside import image
from labapp.inside.image import Contents
from labapp.journey import build as builds
from labapp.journey import transfer
from labapp.journey.build import Build
from labapp.machine.engine import Engine
from labapp.reference import Reference
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State

VARIANTS = ("full", "slim", "multistage", "minimal")


@pytest.fixture(scope="session")
def build_site(
    engine: Engine, slim: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], str]:
    """Build a web server that prints its environment, and answers with a text or ends by FAIL."""

    def build(tag: str, text: str) -> str:
        folder = tmp_path_factory.mktemp("site")
        (folder / "index.html").write_text(text)
        (folder / "Dockerfile").write_text(
            f"FROM {slim}\nWORKDIR /site\nCOPY index.html .\n"
            'CMD env; [ -z "$FAIL" ] || exit $FAIL; exec python3 -m http.server 8000\n'
        )
        builds.build(engine, folder, tag=tag)
        return tag

    return build


@pytest.fixture(scope="session")
def variants(bench: Bench, feedback: QuietFeedback) -> Iterator[dict[str, Build]]:
    """The application, built by each Dockerfile: once, as it takes more than a minute."""
    made = {}
    for variant in VARIANTS:
        dockerfile = REPOSITORY / "dockerfiles" / f"{variant}.Dockerfile"
        made[variant] = builds.build(
            bench.engine,
            bench.application,
            tag=f"{bench.registry.address}/test-app/{variant}:plain",
            dockerfile=dockerfile,
            args=bench.build_arguments(dockerfile),
        )
    yield made
    for build in made.values():
        transfer.remove(bench.engine, build.reference)


@pytest.fixture(scope="session")
def inside(
    bench: Bench,
    variants: dict[str, Build],
    feedback: QuietFeedback,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Contents]:
    """What is inside the application's images, read from the registry."""
    folder = tmp_path_factory.mktemp("inside")
    found: dict[str, Contents] = {}
    for variant, build in variants.items():
        transfer.push(bench.engine, bench.server, build.reference)
        held = bench.registry.image(build.reference)
        found[variant] = image.read(bench.registry, held, folder=folder)
    return found


@pytest.fixture(scope="module")
def only(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer
) -> Iterator[RegistryServer]:
    """A registry of one module's tests alone, to damage and to stop."""
    only = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("state")))
    yield only
    only.remove()


@pytest.fixture
def own(only: RegistryServer, server: RegistryServer) -> RegistryServer:
    """The same, started, whatever the test before has done to it."""
    only.start(image=server.image)
    return only
