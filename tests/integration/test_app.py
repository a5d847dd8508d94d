"""The application, built by each Dockerfile: all images answer alike."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from labapp.bench import Bench
from labapp.errors import BuildError
from labapp.inside.image import Contents
from labapp.journey.build import Build, build
from labapp.journey.run import Running, run, run_once
from labapp.journey.transfer import remove
from labapp.reference import Reference

REQUESTS = {
    "GET /": 200, "GET /health": 200, "GET /price/tea?count=3": 200, "GET /price/cheese": 200,
    "HEAD /price/cheese": 200, "OPTIONS /health": 200, "GET /price/gold": 404,
    "GET /price/tea?count=0": 400, "GET /price/tea?count=many": 400, "GET /nowhere": 404,
    "POST /health": 405,
}  # fmt: skip

# The interpreter is where the public Python images have theirs, and belongs to no package.
LIKE_THE_PUBLIC_IMAGE = """\
ARG BASE
FROM ${BASE} AS selection
RUN mkdir -p /usr/local/bin /usr/local/lib/python3.13 \\
    && cp /usr/bin/python3.13 /usr/local/bin/ \\
    && cp -r /usr/lib/python3.13/. /usr/local/lib/python3.13/ \\
    && ln -s python3.13 /usr/local/bin/python3 \\
    && rm -r /usr/bin/python3* /usr/lib/python3* \\
    && sed -i /python3/d /var/lib/dpkg/info/*python3*.list
RUN python3 -m venv --without-pip /opt/venv
COPY collect.py /
"""
COLLECTED = """\
RUN python3 /collect.py /root-of-image /opt/venv && cp -r /opt/venv /root-of-image/opt-venv
FROM scratch
COPY --from=selection /root-of-image /
"""


@pytest.fixture(scope="module")
def running(bench: Bench, variants: dict[str, Build]) -> Iterator[dict[str, Running]]:
    started: dict[str, Running] = {}
    # Else each process has an order of its own for the methods that "Allow" names.
    order = {"PYTHONHASHSEED": "0"}
    try:
        for variant, made in variants.items():
            started[variant] = run(bench.engine, made.reference, environment=order)
        yield started
    finally:
        for service in started.values():
            service.stop()


@pytest.fixture(scope="module")
def minimal(bench: Bench, running: dict[str, Running]) -> Iterator[tarfile.TarFile]:
    """All files of the minimal image, as its container has them."""
    container = bench.engine.client.containers.get(running["minimal"].name)
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as files:
        yield files


def prints(bench: Bench, service: Running, *command: str) -> str:
    """Return what a command prints in a running container."""
    container = bench.engine.client.containers.get(service.name)
    return str(container.exec_run(list(command)).output.decode())


def made(build: Build) -> list[str]:
    """Return the instructions that did not come from the cache; a base is neither."""
    return [
        step.instruction
        for step in build.steps
        if not step.cached and not step.instruction.startswith(("FROM", "ARG B"))
    ]


def test_all_images_answer_alike(running: dict[str, Running]) -> None:
    def answer(service: Running, request: str) -> tuple[object, ...]:
        method, _, path = request.partition(" ")
        found = session.request(method, f"{service.url}{path}", timeout=10)
        headers = {name: value for name, value in found.headers.items() if name != "Date"}
        return found.status_code, found.reason, headers, found.content

    with requests.Session() as session:
        session.trust_env = False
        answers = {
            variant: {request: answer(service, request) for request in REQUESTS}
            for variant, service in running.items()
        }
    assert {request: found[0] for request, found in answers["full"].items()} == REQUESTS
    for found in answers.values():
        assert found == answers["full"]
    # (320 + 745 + 280 + 190) cents and 19 % of tax, rounded once: 1826.65.
    assert '"total_cents":1827' in running["minimal"].get("/")
    assert '"total_cents":678' in running["minimal"].get("/price/tea?count=3")
    for service in running.values():
        assert "[ERROR]" not in service.logs()


def test_each_image_has_less_than_the_one_before_and_none_is_root(
    bench: Bench, running: dict[str, Running], inside: dict[str, Contents]
) -> None:
    assert {variant: set(found.tools["kind"]) for variant, found in inside.items()} == {
        "full": {"shell", "compiler", "package manager", "network client"},
        "slim": {"shell", "compiler", "package manager"},
        "multistage": {"shell", "package manager"},
        "minimal": set(),
    }
    compiler = r"/lib(?:exec)?/gcc/|/bin/(?:gcc|as|ld)$|-gcc(?:-\d+)?$|/binutils|/Python\.h$"
    in_layers = {
        name: found.changes["path"].str.contains(compiler).sum() for name, found in inside.items()
    }
    assert in_layers["slim"] > 50
    assert (in_layers["multistage"], in_layers["minimal"]) == (0, 0)
    code = "import os; print(os.getuid())"
    for service in running.values():
        assert prints(bench, service, "python3", "-c", code) == "10001\n"


def test_minimal_has_the_programs_of_the_service_and_no_other(inside: dict[str, Contents]) -> None:
    found = inside["minimal"]
    files = found.files
    names = files[files["type"] != "directory"]["path"]
    assert set(names[names.str.contains(r"/s?bin/[^/]+$")]) == {
        "/usr/bin/python3",
        "/usr/bin/python3.13",
        *(f"/opt/venv/bin/{name}" for name in ("python", "python3", "python3.13")),
        *(f"/opt/venv/bin/{name}" for name in ("flask", "gunicorn", "gunicornc")),
    }
    assert found.privileged.empty
    assert found.secrets.empty
    assert found.wasted_bytes == 0
    assert found.image.config.user == "10001"
    assert files.set_index("path").loc["/tmp", "mode"] == 0o1777


def test_all_that_is_left_of_the_standard_library_can_be_imported(
    bench: Bench, running: dict[str, Running]
) -> None:
    # Every module in C, so every shared library; names are looked up; threads end.
    code = (
        "import importlib, pathlib, socket, sysconfig, threading\n"
        "folder = pathlib.Path(sysconfig.get_path('stdlib'), 'lib-dynload')\n"
        "names = [path.name.partition('.')[0] for path in folder.iterdir()]\n"
        "for name in [*names, 'asyncio', 'sqlite3', 'ctypes.util', 'http.server', 'unittest']:\n"
        "    importlib.import_module(name)\n"
        "threading.Thread(target=print, daemon=True).start()\n"
        "print(len(names), socket.gethostbyname('localhost'))"
    )
    printed = prints(bench, running["minimal"], "python3", "-c", code).split()
    assert int(printed[0]) >= 25
    assert printed[1:] == ["127.0.0.1"]


def test_minimal_says_which_packages_its_files_are_from(
    bench: Bench, inside: dict[str, Contents], minimal: tarfile.TarFile, slim: Reference
) -> None:
    packages = inside["minimal"].packages
    debs = packages[packages["kind"] == "deb"]
    said = dict(zip(debs["name"], debs["version"], strict=True))
    command = ["dpkg-query", "--show", "--showformat=${Package} ${Version}\\n"]
    printed = run_once(bench.engine, slim, command)
    installed = dict(line.split() for line in printed.splitlines())
    assert said == {name: installed[name] for name in said}
    assert {"libc6", "libssl3t64", "python3.13-minimal", "zlib1g", "base-files"} <= said.keys()
    assert not {"bash", "dash", "dpkg", "apt", "perl-base", "coreutils"} & said.keys()
    assert {"Flask", "gunicorn", "shop"} <= set(packages["name"])
    assert inside["minimal"].os_release["VERSION_CODENAME"] == "trixie"
    assert any("-security" in text for text in inside["minimal"].apt_sources)

    names = set(minimal.getnames())
    assert {name for name in said if f"usr/share/doc/{name}" not in names} == set(), "licences"
    folder = "var/lib/dpkg/status.d"
    sums: dict[str, str] = {}
    for name in said:
        note = minimal.extractfile(f"{folder}/{name}.md5sums")
        assert note is not None
        sums |= {line[34:]: line[:32] for line in note.read().decode().splitlines()}
    for path, md5 in sums.items():
        content = minimal.extractfile(path)
        assert content is not None
        assert hashlib.md5(content.read()).hexdigest() == md5, path
    files = inside["minimal"].files
    libraries = files[(files["type"] == "file") & files["path"].str.contains(r"\.so")]
    unowned = libraries[libraries["package"] == ""]["path"]
    assert set(unowned[~unowned.str.startswith("/opt/venv/")]) == set()


def test_a_public_image_gives_a_minimal_one_too_but_not_without_its_libraries(
    bench: Bench, slim: Reference, tmp_path: Path
) -> None:
    collected = collect(bench, slim, tmp_path, LIKE_THE_PUBLIC_IMAGE + COLLECTED)
    try:
        code = "import sys, ssl, sqlite3, ctypes, zoneinfo; print(sys.base_prefix)"
        command = ["/opt-venv/bin/python3", "-c", code]
        assert run_once(bench.engine, collected.reference, command) == "/usr/local\n"
    finally:
        remove(bench.engine, collected.reference)
    lost = (
        "RUN cp /usr/local/lib/python3.13/lib-dynload/_curses.*.so /opt/venv/lib/"
        " && rm /usr/lib/*/libncursesw.so.6* /usr/lib/*/libsqlite3.so.0*\n"
    )
    # The build fails, and not the server later.
    with pytest.raises(BuildError, match=r"libncursesw\.so\.6, which this image") as caught:
        collect(bench, slim, tmp_path, LIKE_THE_PUBLIC_IMAGE + lost + COLLECTED)
    # A part of the standard library that can't work is left out, as in the public slim image.
    assert any("left out: _sqlite3" in line for line in caught.value.log)


def collect(bench: Bench, base: Reference, folder: Path, dockerfile: str) -> Build:
    """Build an image of what ``collect.py`` selects."""
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "collect.py").write_text((bench.application / "collect.py").read_text())
    tag = f"{bench.registry.address}/test-app/collected:1"
    return build(bench.engine, folder, tag=tag, args={"BASE": str(base)})


def test_the_version_is_told_by_build_argument_and_by_environment(
    bench: Bench, variants: dict[str, Build], build_variant: Callable[..., Build]
) -> None:
    newer = build_variant("multistage", VERSION="2.0")
    try:
        # What comes last changed, so all that takes time is kept, in whichever steps it is shown.
        assert not [each for each in made(newer) if each.startswith(("RUN", "COPY"))]
        for environment, expected in ((None, "2.0"), ({"APP_VERSION": "3.0"}, "3.0")):
            service = run(bench.engine, newer.reference, environment=environment)
            try:
                assert f'"version":"{expected}"' in service.get("/health")
            finally:
                service.stop()
    finally:
        remove(bench.engine, newer.reference)


def test_a_second_build_comes_from_the_cache(
    variants: dict[str, Build], build_variant: Callable[..., Build]
) -> None:
    for variant in variants:
        assert made(build_variant(variant)) == []
