"""The application, built by each Dockerfile: all images answer alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labapp import images
from labapp.bench import Bench
from labapp.errors import RunError
from labapp.feedback import QuietFeedback
from labapp.images import Running, builds
from labapp.images.builds import Build

VARIANTS = ("full", "slim", "multistage")
PATHS = ("/", "/health", "/price/tea?count=3", "/price/cheese")
REFUSED = ("/price/gold", "/price/tea?count=0", "/price/tea?count=many", "/nowhere")


def make(bench: Bench, variant: str, feedback: QuietFeedback, **arguments: str) -> Build:
    dockerfile = bench.repository / "dockerfiles" / f"{variant}.Dockerfile"
    return builds.build(
        bench.engine,
        bench.application,
        tag=f"{bench.registry.address}/test-app/{variant}:{arguments.get('VERSION', 'plain')}",
        dockerfile=dockerfile,
        args=bench.build_arguments(dockerfile) | arguments,
        labels=bench.state.labels,
        feedback=feedback,
    )


def made(build: Build) -> list[str]:
    """Return the instructions that did not come from the cache; a base is neither."""
    return [
        step.instruction
        for step in build.steps
        if not step.cached and not step.instruction.startswith(("FROM", "ARG B"))
    ]


@pytest.fixture(scope="module")
def built(bench: Bench, feedback: QuietFeedback) -> Iterator[dict[str, Build]]:
    made = {variant: make(bench, variant, feedback) for variant in VARIANTS}
    yield made
    for build in made.values():
        images.remove(bench.engine, build.reference)


@pytest.fixture(scope="module")
def running(
    bench: Bench, built: dict[str, Build], feedback: QuietFeedback
) -> Iterator[dict[str, Running]]:
    started: dict[str, Running] = {}
    try:
        for variant, build in built.items():
            started[variant] = images.run(
                bench.engine, build.reference, labels=bench.state.labels, feedback=feedback
            )
        yield started
    finally:
        for service in started.values():
            service.stop()


@pytest.mark.parametrize("path", PATHS)
def test_all_images_answer_alike(running: dict[str, Running], path: str) -> None:
    answers = {variant: service.get(path) for variant, service in running.items()}
    assert set(answers) == set(VARIANTS)
    assert len(set(answers.values())) == 1, answers


def test_the_answer_comes_from_the_compiled_part(running: dict[str, Running]) -> None:
    # (320 + 745 + 280 + 190) cents and 19 % of tax, rounded once: 1826.65.
    assert '"total_cents":1827' in running["multistage"].get("/")
    assert '"total_cents":678' in running["multistage"].get("/price/tea?count=3")


@pytest.mark.parametrize("path", REFUSED)
def test_all_images_refuse_alike(running: dict[str, Running], path: str) -> None:
    refusals = set()
    for service in running.values():
        with pytest.raises(RunError, match=r"status 40[04]") as caught:
            service.get(path)
        refusals.add(str(caught.value).partition("status")[2])
    assert len(refusals) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_service_is_not_root(
    bench: Bench, built: dict[str, Build], feedback: QuietFeedback, variant: str
) -> None:
    printed = images.run_once(
        bench.engine,
        built[variant].reference,
        ["id", "-u"],
        labels=bench.state.labels,
        feedback=feedback,
    )
    assert printed.strip() == "10001"


@pytest.mark.parametrize(
    ("variant", "has_compiler"), [("full", True), ("slim", True), ("multistage", False)]
)
def test_only_the_multistage_image_leaves_the_compiler_behind(
    bench: Bench,
    built: dict[str, Build],
    feedback: QuietFeedback,
    variant: str,
    has_compiler: bool,
) -> None:
    printed = images.run_once(
        bench.engine,
        built[variant].reference,
        ["sh", "-c", "command -v gcc || true"],
        labels=bench.state.labels,
        feedback=feedback,
    )
    assert bool(printed.strip()) is has_compiler


def test_the_version_is_told_by_build_argument_and_by_environment(
    bench: Bench, built: dict[str, Build], feedback: QuietFeedback
) -> None:
    newer = make(bench, "multistage", feedback, VERSION="2.0")
    try:
        assert made(newer)[0].startswith(("ARG VERSION", "ENV APP_VERSION")), "all above is kept"
        for environment, expected in ((None, "2.0"), ({"APP_VERSION": "3.0"}, "3.0")):
            service = images.run(
                bench.engine,
                newer.reference,
                environment=environment,
                labels=bench.state.labels,
                feedback=feedback,
            )
            try:
                assert f'"version":"{expected}"' in service.get("/health")
            finally:
                service.stop()
    finally:
        images.remove(bench.engine, newer.reference)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_build_comes_from_the_cache(
    bench: Bench, built: dict[str, Build], feedback: QuietFeedback, variant: str
) -> None:
    again = make(bench, variant, feedback)
    assert made(again) == []
    assert again.image_id == built[variant].image_id


def test_no_log_line_of_the_service_is_an_error(running: dict[str, Running]) -> None:
    for service in running.values():
        assert "[ERROR]" not in service.logs()
