"""What Podman is told of the lab's registry, and what a person is told where the lab can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import engine_that_said

from labapp.feedback import QuietFeedback
from labapp.registry import podman
from labapp.registry.server import RegistryServer
from labapp.state import State


@pytest.mark.parametrize("name", ["podman-4", "podman-5"])
def test_where_podman_cannot_be_told(name: str, tmp_path: Path, told: QuietFeedback) -> None:
    """A person is told the file and what belongs into it, for the mirror of an attack as well."""
    state = State.open(tmp_path / "lab")
    state.write("registry", {"port": 41233, "image": "labapp/registry:x"})
    with engine_that_said(name, tmp_path) as engine:
        server = RegistryServer(engine=engine, state=state)
        # The recorded engine runs no container, by which the file would be written.
        podman.allow_http(engine, state, server)
        assert not podman.takes_http(engine, server.address)
    advice = told.lines[-1]
    assert f"'{podman.written(state)}'" in advice
    for port in (41233, podman.mirror_port(state)):
        assert f'[[registry]]\nlocation = "localhost:{port}"\ninsecure = true\n' in advice
