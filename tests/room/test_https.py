"""A room with a certificate: browsers that trust whoever signed it come in, others don't."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from visitors import CLASS, Learner

from labapp import room as rooms
from labapp.bench import Bench
from labapp.private.registry import make_certificates
from labapp.room import Room

pytestmark = pytest.mark.long


@pytest.fixture
def authority(bench: Bench, room: Room, tmp_path: Path) -> Iterator[Path]:
    """Serve the room by HTTPS, and return whom to trust for it."""
    make_certificates(tmp_path, "127.0.0.1")
    rooms.start(bench, certificate=(tmp_path / "server.pem", tmp_path / "server.key"))
    yield tmp_path / "authority.pem"
    room.state.write("room", room.settings() | {"certificate": ""})
    rooms.start(bench)


def test_all_goes_by_https(room: Room, authority: Path) -> None:
    told = room.settings()
    assert told["address"].startswith("https://") and room.ask("/users") is not None
    stranger = Learner(told["address"], "eve", "the word of eve")
    with pytest.raises(requests.exceptions.SSLError):
        stranger.log_in(CLASS)
    ida = Learner(told["address"], "ida", "the word of ida", authority=authority)
    assert ida.log_in(CLASS).status_code == 302
    ida.spawn()
    said = ida.run(
        "import subprocess\nfrom labapp import open_lab\nlab = open_lab('00')\n"
        "print(lab.help('which port?'))\n"
        "words = ['sh', '-c', 'echo the word of ida | docker login -u ida --password-stdin '"
        " '${LABAPP_CLASS_REPOSITORY%%/*}']\n"
        "print(subprocess.run(words, capture_output=True, text=True))"
    )
    assert "has it" in said and "Login Succeeded" in said
