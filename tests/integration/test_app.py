"""The application, built by each Dockerfile: all images answer alike."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
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
    # Else each process has an order of its own for the methods that "Allow" names.
    order = {"PYTHONHASHSEED": "0"}
    with contextlib.ExitStack() as ending:
        started = {}
        for variant, made in variants.items():
            started[variant] = run(bench.engine, made.reference, environment=order)
            ending.callback(started[variant].stop)
        yield started


def prints(bench: Bench, service: Running, code: str) -> list[str]:
    """Return the words that a Python program prints in a running container."""
    container = bench.engine.client.containers.get(service.name)
    return container.exec_run(["python3", "-c", code]).output.decode().split()  # type: ignore


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
    inside: dict[str, Contents],
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
    assert {found.image.config.user for found in inside.values()} == {"10001"}

    found = inside["minimal"]
    files = found.files
    names = files[files["type"] != "directory"]["path"]
    assert set(names[names.str.contains(r"/s?bin/[^/]+$")]) == {
        "/usr/bin/python3",
        "/usr/bin/python3.13",
        *(f"/opt/venv/bin/{name}" for name in ("python", "python3", "python3.13")),
        *(f"/opt/venv/bin/{name}" for name in ("flask", "gunicorn", "gunicornc")),
    }
    assert found.privileged.empty and found.secrets.empty
    assert found.wasted_bytes == 0
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
    count, address = prints(bench, running["minimal"], code)
    assert int(count) >= 25 and address == "127.0.0.1"


def test_minimal_says_which_packages_its_files_are_from(
    bench: Bench, inside: dict[str, Contents], running: dict[str, Running], slim: Reference
) -> None:
    found = inside["minimal"]
    debs = found.packages[found.packages["kind"] == "deb"]
    said = dict(zip(debs["name"], debs["version"], strict=True))
    command = ["dpkg-query", "--show", "--showformat=${Package} ${Version}\\n"]
    printed = run_once(bench.engine, slim, command)
    installed = dict(line.split() for line in printed.splitlines())
    assert said == {name: installed[name] for name in said}
    assert {"libc6", "libssl3t64", "python3.13-minimal", "zlib1g", "base-files"} <= said.keys()
    assert not {"bash", "dash", "dpkg", "apt", "perl-base", "coreutils"} & said.keys()
    assert {"Flask", "gunicorn", "shop"} <= set(found.packages["name"])
    assert found.os_release["VERSION_CODENAME"] == "trixie"
    assert any("-security" in text for text in found.apt_sources)

    licences = {f"/usr/share/doc/{name}" for name in said}
    assert licences <= set(found.files["path"])
    code = (
        "import glob, hashlib\n"
        "for sums in glob.glob('/var/lib/dpkg/status.d/*.md5sums'):\n"
        "    for md5, path in map(str.split, open(sums)):\n"
        "        content = open(f'/{path}', 'rb').read()\n"
        "        print(path if hashlib.md5(content).hexdigest() != md5 else 'same')"
    )
    assert {*prints(bench, running["minimal"], code)} == {"same"}
    files = found.files
    libraries = files[(files["type"] == "file") & files["path"].str.contains(r"\.so")]
    unowned = libraries[libraries["package"] == ""]["path"]
    assert set(unowned[~unowned.str.startswith("/opt/venv/")]) == set()


def test_a_public_image_gives_a_minimal_one_too_but_not_without_its_libraries(
    bench: Bench, slim: Reference, tmp_path: Path
) -> None:
    def collect(lost: str = "") -> Build:
        (tmp_path / "Dockerfile").write_text(LIKE_THE_PUBLIC_IMAGE + lost + COLLECTED)
        return build(bench.engine, tmp_path, tag="labtest/collected:1", args={"BASE": str(slim)})

    shutil.copy(bench.application / "collect.py", tmp_path)
    collected = collect()
    try:
        code = "import sys, ssl, sqlite3, ctypes, zoneinfo; print(sys.base_prefix)"
        command = ["/opt-venv/bin/python3", "-c", code]
        assert run_once(bench.engine, collected.reference, command) == "/usr/local\n"
    finally:
        remove(bench.engine, collected.reference)
    # The build fails, and not the server later.
    with pytest.raises(BuildError, match=r"libncursesw\.so\.6, which this image") as caught:
        collect(
            "RUN cp /usr/local/lib/python3.13/lib-dynload/_curses.*.so /opt/venv/lib/"
            " && rm /usr/lib/*/libncursesw.so.6* /usr/lib/*/libsqlite3.so.0*\n"
        )
    # A part of the standard library that can't work is left out, as in the public slim image.
    assert any("left out: _sqlite3" in line for line in caught.value.log)
