"""Pushes and pulls as real engines told of them, to a registry that the lab may not ask."""

from __future__ import annotations

import pytest
from recorded import CLASSIC, CONTAINERD, OVERLAY, layers, transferring_engine

from labapp import feedback
from labapp.errors import PullError, PushError
from labapp.feedback import QuietFeedback
from labapp.journey.transfer import pull, push

NAME = "registry.example/shop/web:1"

ALL = (CLASSIC, OVERLAY, CONTAINERD)
OUTCOMES = {
    "push": {name: "sent" for name in ALL},
    "push-again": {name: "already there" for name in ALL},
    "push-elsewhere": {name: "mounted" for name in ALL},
    "pull": {name: "fetched" for name in ALL},
    # Nothing was fetched, though the containerd store first says that it begins to.
    "pull-from-the-build-cache": {name: "already here" for name in (OVERLAY, CONTAINERD)},
}


@pytest.mark.parametrize(
    ("label", "name"), [(label, name) for label, names in OUTCOMES.items() for name in names]
)
def test_outcomes(label: str, name: str) -> None:
    act = push if label.startswith("push") else pull
    told = QuietFeedback()
    with feedback.using(told):
        done = act(transferring_engine(name, label), None, NAME)
    assert list(done.layers["outcome"]) == [OUTCOMES[label][name]] * 2
    if label.startswith("pull") or name == CONTAINERD:
        shorts = {digest.removeprefix("sha256:")[:12] for digest in layers(name)}
        assert set(done.layers["digest"]) == shorts
    assert done.digest.startswith("sha256:")
    [bars] = told.shown
    assert all(bar.finished for bar in bars.bars.values())


def test_the_first_word_on_a_layer_counts() -> None:
    """Some containerd stores say "Pull complete" of a layer that "Already exists"."""
    engine = transferring_engine(CONTAINERD, "pull-from-the-build-cache")
    events = [*engine.client.api.pull("x")]
    key = events[3]["id"]
    events.append({"status": "Pull complete", "progressDetail": {}, "id": key})
    engine.client.api.pull = lambda *_, **__: (each for each in events)  # type: ignore[method-assign]
    with feedback.using(QuietFeedback()):
        done = pull(engine, None, NAME)
    assert set(done.layers["outcome"]) == {"already here"}


@pytest.mark.parametrize("name", ALL)
def test_an_error_in_the_stream_is_raised(name: str) -> None:
    with feedback.using(QuietFeedback()):
        with pytest.raises(PushError, match="connection refused"):
            push(transferring_engine(name, "push-no-registry"), None, NAME)
        with pytest.raises(PushError, match="docker tag"):
            push(transferring_engine(name, "push-no-image"), None, NAME)
        altered = layers(name)[1]
        with pytest.raises(PullError, match=f"{altered} has been altered"):
            pull(transferring_engine(name, "pull-altered"), None, NAME)
