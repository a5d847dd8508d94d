"""Wheels: what is asked for, what counts as complete, and the real pip against an index here."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import ssl
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from labapp.bases import wheels
from labapp.errors import BaseError
from labapp.feedback import QuietFeedback

AMD64 = "linux/amd64"


@pytest.fixture(autouse=True)
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away this machine's own settings of pip and of proxies; no index answers."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/")


@pytest.fixture
def application(tmp_path: Path) -> Path:
    return write_application(tmp_path / "app")


def write_application(folder: Path) -> Path:
    folder.mkdir()
    (folder / "requirements.txt").write_text("# exact\nteapot==1.0  # brews\n\nspout==2.0\n")
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = ["kiln==3.0"]\n')
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index on this machine with three small wheels."""
    root = tmp_path_factory.mktemp("index")
    for name, version in (("teapot", "1.0"), ("spout", "2.0"), ("kiln", "3.0")):
        file = f"{name}-{version}-py3-none-any.whl"
        page = root / name
        page.mkdir()
        info = f"{name}-{version}.dist-info"
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(page / file, "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA", about)
            wheel.writestr(f"{info}/WHEEL", kind)
            wheel.writestr(f"{info}/RECORD", "")
        (page / "index.html").write_text(f'<a href="{file}">{file}</a>')
    with _serving(root) as address:
        yield f"http://{address}/"


@pytest.fixture(scope="module")
def filled_once(index: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application whose wheel folder the real pip has filled."""
    application = write_application(tmp_path_factory.mktemp("once") / "app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_INDEX_URL", index)
        patch.delenv("PIP_FIND_LINKS", raising=False)
        fetch(application)
    return application


@pytest.fixture
def filled(filled_once: Path, tmp_path: Path) -> Path:
    """A copy of that wheel folder, to do with as a test likes; no index answers."""
    shutil.copytree(filled_once, tmp_path / "app")
    return tmp_path / "app" / "wheels"


class _serving:
    """A folder served over HTTP on a free port, or over HTTPS with a certificate."""

    def __init__(self, root: Path, certificate: Path | None = None) -> None:
        handler = functools.partial(_Quiet, directory=str(root))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(application: Path) -> tuple[Path, ...]:
    return wheels.fetch(application / "wheels", platform=AMD64, feedback=QuietFeedback())


def test_the_wheels_to_run_and_to_build_are_fetched(filled: Path) -> None:
    names = ["kiln-3.0", "spout-2.0", "teapot-1.0"]
    assert [path.name for path in wheels.wheels_in(filled)] == [
        f"{name}-py3-none-any.whl" for name in names
    ]
    assert not (filled / wheels.DOWNLOAD).exists()


def test_a_complete_folder_needs_no_index(filled: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in filled.iterdir()}
    assert len(fetch(filled.parent)) == 3
    assert {path: path.stat().st_mtime_ns for path in filled.iterdir()} == before


def _truncate(folder: Path) -> None:
    (folder / "kiln-3.0-py3-none-any.whl").write_bytes(b"PK")


def _ask_for_another(folder: Path) -> None:
    with (folder.parent / "requirements.txt").open("a") as file:
        file.write("saucer==1.0\n")


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate,
        _ask_for_another,
        lambda folder: (folder / "kiln-3.0-py3-none-any.whl").unlink(),
        lambda folder: (folder / wheels.STAMP).unlink(),
        lambda folder: (folder / wheels.STAMP).write_text("{"),
        lambda folder: (folder / "stray-1.0-py3-none-any.whl").write_bytes(b""),
    ],
    ids=["truncated", "new requirement", "wheel gone", "stamp gone", "stamp damaged", "stray"],
)
def test_what_is_not_complete_is_seen(filled: Path, spoil: object) -> None:
    assert wheels.is_complete(filled, platform=AMD64)
    spoil(filled)  # type: ignore[operator]
    assert not wheels.is_complete(filled, platform=AMD64)


@pytest.mark.parametrize(("platform", "python"), [("linux/arm64", "3.13"), (AMD64, "3.12")])
def test_wheels_for_something_else_do_not_count(filled: Path, platform: str, python: str) -> None:
    assert not wheels.is_complete(filled, platform=platform, python=python)


def test_a_failed_fetch_keeps_the_old_wheels_and_the_next_mends(
    filled: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (filled / wheels.STAMP).unlink()
    with pytest.raises(BaseError):
        fetch(filled.parent)
    assert len(wheels.wheels_in(filled)) == 3
    monkeypatch.setenv("PIP_INDEX_URL", index)
    assert len(fetch(filled.parent)) == 3
    assert wheels.is_complete(filled, platform=AMD64)


def test_an_index_that_does_not_answer(filled: Path) -> None:
    (filled / wheels.STAMP).unlink()
    with pytest.raises(BaseError, match=r"index can't be reached.*bundle load"):
        fetch(filled.parent)


def test_a_proxy_that_does_not_answer(application: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.example/")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.example")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(BaseError, match=r"the proxy that is set here.*HTTPS_PROXY"):
        fetch(application)


def test_a_certificate_that_is_not_trusted(
    application: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "both.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    with _serving(tmp_path, pem) as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"https://{address}/")
        with pytest.raises(BaseError, match=r"certificate is not trusted.*PIP_CERT"):
            fetch(application)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError('... [Errno -3] Temporary failure in name resolution')", "name is"),
        ("NewConnectionError('... [Errno -2] Name or service not known')", "name is not known"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel failed: 407'))", "the proxy"),
        ("ERROR: No matching distribution found for flask==99", "no wheel of 'flask==99'"),
        ("ERROR: something new", "pip said: ERROR: something new"),
        ("", "pip said: nothing"),
    ],
)
def test_what_pip_says_is_put_in_plain_words(line: str, cause: str) -> None:
    assert cause in wheels._why([line] if line else [])[0]


def test_an_unknown_platform_is_refused(application: Path) -> None:
    with pytest.raises(BaseError, match="no wheels are published"):
        wheels.fetch(application / "wheels", platform="linux/riscv64", feedback=QuietFeedback())


def test_an_application_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"requirements\.txt.*git checkout"):
        wheels.wanted_by(tmp_path)


def test_carried_wheels_are_complete_elsewhere(filled: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(filled.parent, there, ignore=shutil.ignore_patterns("wheels"))
    (there / "wheels").mkdir()
    (there / "wheels" / "old-1.0-py3-none-any.whl").write_bytes(b"")
    wheels.unpack(there / "wheels", wheels.packed(filled))
    assert wheels.is_complete(there / "wheels", platform=AMD64)


@pytest.mark.parametrize(
    "change",
    [
        {"kiln-3.0-py3-none-any.whl": b"altered"},
        {"more-1.0-py3-none-any.whl": b""},
        {wheels.STAMP: b"{}"},
        {wheels.STAMP: b"not JSON"},
    ],
    ids=["altered", "one too many", "empty stamp", "no stamp"],
)
def test_carried_wheels_that_are_not_whole_change_nothing(
    filled: Path, tmp_path: Path, change: dict[str, bytes]
) -> None:
    there = tmp_path / "there"
    with pytest.raises(BaseError, match="not whole"):
        wheels.unpack(there, wheels.packed(filled) | change)
    assert not there.exists()


def test_the_lab_asks_for_exact_versions(repository: Path) -> None:
    wanted = wheels.wanted_by(repository / "dockerfiles" / "app")
    assert wanted and all("==" in requirement for requirement in wanted)
    assert any(requirement.startswith("setuptools==") for requirement in wanted)
