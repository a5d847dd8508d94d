"""A lab as a learner finds it on the first day: base images, and nothing of an earlier run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labapp import attacks
from labapp.bench import Bench
from labapp.exercises import evidence
from labapp.feedback import QuietFeedback
from labapp.private.accounts import Accounts
from labapp.state import LABEL, ROLE_LABEL

pytest.register_assert_rewrite("desk")


@pytest.fixture
def emptied(bench: Bench) -> Callable[[], None]:
    """Return a function that takes away all that chapters make, on engine and in registry."""
    return lambda: empty(bench)


def empty(bench: Bench) -> None:
    attacks.undo(bench, feedback=QuietFeedback())
    accounts = Accounts(bench.state)
    for name in accounts.names():
        accounts.remove(name)
    api = bench.engine.client.api
    for container in evidence.containers(bench):
        if container["Config"]["Labels"].get(ROLE_LABEL) != "registry":
            api.remove_container(container["Id"], force=True)
    label = f"{LABEL}={bench.state.lab_id}"
    for image in api.images(filters={"label": label}):
        for name in image["RepoTags"] or ():
            if name.startswith(bench.registry.address) and "/base/" not in name:
                # What is below stays as the cache of later builds: installing takes minutes.
                api.remove_image(name, force=True, noprune=True)
    for repository in bench.registry.repositories():
        if not repository.startswith("base/"):
            tags = bench.registry.tags(repository)
            digests = {bench.registry.resolve(repository, tag) for tag in tags}
            for digest in digests:
                bench.registry.delete_manifest(repository, digest)
