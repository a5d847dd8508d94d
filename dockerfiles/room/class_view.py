"""The class: a service of JupyterHub that takes what learners post, and shows it to teachers.

The hub starts it, and says in JUPYTERHUB_… where it listens. LABAPP_CLASS_FOLDER names the folder
in which it keeps its key and a file for each learner, as 'report' reads them.

- ``POST receipts?where=03-pin``: a learner's receipts file, sent with that learner's token. The
  answer is a signature for each receipt in it, by its digest.
- ``GET ./``: the page, for whoever may access this service: admins, and a role that names it.
- ``POST ./``: a teacher has seen a question.
- ``GET key.pub``: the public key, for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler, StaticFileHandler, addslash, authenticated

from labapp.course import signatures, view
from labapp.course.exercises import all_exercises
from labapp.course.receipts import DamagedReceipts, Posted, Record, Signature, parse, read
from labapp.registry.manifests import canonical_json, digest_of
from labapp.state import write_file

LONGEST = 256 * 1024
"""How many bytes a post may have; with all exercises passed, one has a tenth of it."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " + (
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A post that is not taken; the text tells the learner why."""


class Class:
    """The learners by their names on the hub, in memory and in the folder, and the key."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, dict[str, Record]()
        file = folder / "key"
        if not file.exists():
            write_file(file, Ed25519PrivateKey.generate().private_bytes_raw())
        self.key = Ed25519PrivateKey.from_private_bytes(file.read_bytes())
        public = self.key.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_file(folder / "key.pub", pem, mode=0o644)
        for each in folder.glob("*.json"):
            try:
                record = read(each)
                self.records[record.learner] = record
            except DamagedReceipts as error:
                print(error, flush=True)

    def take(self, user: str, content: bytes, where: str) -> dict[str, Signature]:
        """Keep a user's receipts, and sign those that are new; return all signatures."""
        record, name, now = parse(content, f"the post of {user}"), user[:100], datetime.now(UTC)
        if record.learner != name:
            raise Refused(
                f"these receipts are of '{record.learner}', and you are '{user}' on the hub. If "
                f"they are yours, run 'python3 -m labapp progress --name {name}'."
            )
        if any(it.start == record.start for other, it in self.records.items() if other != name):
            raise Refused("these receipts began as another learner's. Ask your teacher.")
        before = self.records.get(name, replace(record, posted=Posted(), signatures={}))
        posted, time = before.posted, now.isoformat(timespec="seconds")
        pause = timedelta(minutes=view.AWAY)
        if not posted.last or now - datetime.fromisoformat(posted.last) > pause:
            posted = replace(posted, since=time)
        # A chapter says less than the exercise of it that was tried.
        if where in all_exercises() or (where.isdigit() and posted.where[:2] != where[:2]):
            posted = replace(posted, where=where[:10])
        signed = {}
        for digest in (receipt.digest for receipt in record.passed.values()):
            given = before.signatures.get(digest)
            signed[digest] = given or signatures.sign(self.key, digest, user, time)
        self._keep(replace(record, posted=replace(posted, last=time), signatures=signed))
        return signed

    def saw(self, name: str, time: str) -> None:
        """Note that a teacher has seen what a learner asked at a time."""
        if record := self.records.get(name):
            self._keep(replace(record, posted=replace(record.posted, seen=time)))

    def _keep(self, record: Record) -> None:
        name = digest_of(record.learner.encode("utf-8", "replace"))[7:39]
        write_file(self.folder / f"{name}.json", canonical_json(record.content))
        self.records[record.learner] = record


class Page(HubOAuthenticated, RequestHandler):
    """The page, for teachers; the hub lets nobody else come here."""

    @addslash
    @authenticated
    def get(self) -> None:
        """Show the class as it is now."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cache-Control", "no-store")
        records = self.settings["class"].records.values()
        self.finish(view.page(records, datetime.now(UTC), token=self.xsrf_token.decode()))

    @authenticated
    def post(self) -> None:
        """Note that a question was seen."""
        asked = self.get_body_argument("learner"), self.get_body_argument("time")
        self.settings["class"].saw(*asked)
        self.redirect(self.hub_auth.base_url)


class Posts(RequestHandler):
    """What learners' labs post."""

    def check_xsrf_cookie(self) -> None:
        """Check none: a token in a header tells who posts, never a cookie."""

    async def post(self) -> None:
        """Take a learner's receipts; who that is, the token says, and nothing else."""
        hub = HubOAuth.instance()
        token = hub.get_token(self, in_cookie=False)
        try:
            user = await hub.user_for_token(token, sync=False) if token else None
            if not user or user["kind"] != "user":
                raise Refused("the token is not that of a user of this hub. Restart your server.")
            where = self.get_query_argument("where", "")
            signed = self.settings["class"].take(user["name"], self.request.body, where)
            self.finish({digest: asdict(each) for digest, each in signed.items()})
        except (DamagedReceipts, Refused) as error:
            self.set_status(400 if isinstance(error, DamagedReceipts) else 403)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(str(error))


async def main() -> None:
    """Serve until the hub ends this process."""
    place, prefix = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]), HubOAuth.instance().base_url
    folder = Path(os.environ["LABAPP_CLASS_FOLDER"])
    handlers = [
        (f"{prefix}?", Page),
        (f"{prefix}receipts", Posts),
        (f"{prefix}oauth_callback", HubOAuthCallbackHandler),
        (f"{prefix}(key.pub)", StaticFileHandler, {"path": folder}),
    ]
    settings = {"class": Class(folder), "cookie_secret": secrets.token_bytes(32)}
    application = Application(handlers, xsrf_cookies=True, **settings)
    server = HTTPServer(application, max_body_size=LONGEST)
    server.listen(place.port or 80, place.hostname or "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # as the hub ends it
        asyncio.run(main())
