"""Posting: what a learner's receipts say goes to the class's service, and its signatures come back.

Each post holds the whole file, so one that got lost goes with the next. It is sent beside the
learner's work, which never waits for it and never fails because of it.
"""

from __future__ import annotations

import os
import threading
from urllib.parse import quote

import requests

from labapp import feedback
from labapp.course.receipts import Receipts, signatures_from

_one = threading.Lock()
_told = threading.Event()
"""Set once it was told that the class is not reached, until it is again."""


def post(receipts: Receipts, where: str, *, wait: float = 0.0) -> bool:
    """Post in the background from where a learner is, an exercise or a chapter.

    Return whether it has arrived after ``wait`` seconds. There is a class where the hub names one.
    """
    arrived = threading.Event()
    if os.environ.get("LABAPP_CLASS"):
        sender = threading.Thread(target=_post, args=(receipts, where, arrived), daemon=True)
        sender.start()
        sender.join(wait)
    return arrived.is_set()


def _post(receipts: Receipts, where: str, arrived: threading.Event) -> None:
    url = os.environ["LABAPP_CLASS"].rstrip("/")
    try:
        with _one:  # two at once could arrive in another order
            receipts.read()
            answer = requests.post(
                f"{url}/receipts?where={quote(where)}",
                data=receipts.file.read_bytes(),
                auth=_authorized,
                timeout=(2, 10),  # seconds: to connect, and for the next byte
                allow_redirects=False,
            )
            if answer.status_code != 200:
                raise requests.HTTPError(f"{answer.status_code}, {answer.text[:300].strip()}")
            receipts.keep(signatures_from(answer.json()))
            arrived.set()
            _told.clear()
    except Exception as error:  # whatever it is, the learner's work goes on
        if not _told.is_set():
            _told.set()
            silent = isinstance(error, requests.ConnectionError | requests.Timeout)
            feedback.say(
                f"posting to your class at '{url}': {'it does not answer' if silent else error}. "
                "What you did is in your receipts, and goes with the next post. Just go on."
            )


def _authorized(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add the hub's token for this learner; as a function, no netrc file replaces it."""
    request.headers["Authorization"] = f"token {os.environ.get('JUPYTERHUB_API_TOKEN', '')}"
    return request
