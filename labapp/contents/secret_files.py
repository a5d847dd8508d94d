"""What a secret scanner would flag in the files of a layer; the secret's text is never kept.

Looked at are text files of up to 256 KiB where people put things, and files whose names are known
for secrets. Not looked at: what a distribution's package brought, folders of libraries (such as
``site-packages`` and ``node_modules``), archives, databases and programs, larger files, texts that
are only conspicuous by their randomness, and the image's config (``ENV``, build arguments).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from detect_secrets.filters import heuristic
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.keyword import KeywordDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.private_key import PrivateKeyDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.stripe import StripeDetector

MAX_FILE_BYTES = 256 * 1024
MAX_LINES = 10_000
"""How many suspicious lines of a layer are looked at closely."""
MAX_LINE = 2_000

_NAMED = {
    "/id_rsa": ("Private Key", re.compile(rb"PRIVATE KEY")),
    "/id_dsa": ("Private Key", re.compile(rb"PRIVATE KEY")),
    "/id_ecdsa": ("Private Key", re.compile(rb"PRIVATE KEY")),
    "/id_ed25519": ("Private Key", re.compile(rb"PRIVATE KEY")),
    "/.netrc": ("Login in .netrc", re.compile(rb"\bpassword\s+\S")),
    "/.pypirc": ("Login in .pypirc", re.compile(rb"(?m)^\s*password\s*[=:]\s*\S")),
    "/.git-credentials": ("Login in .git-credentials", re.compile(rb"://[^/\s]+@")),
    "/.aws/credentials": ("AWS Access Key", re.compile(rb"aws_secret_access_key\s*=\s*\S")),
    "/.docker/config.json": (
        "Registry login",
        re.compile(rb'"(?:auth|identitytoken)"\s*:\s*"[^"]'),
    ),
}
"""Names that tell what the whole file is for, and what is in it where it holds a secret."""

_LOOKED_INTO = ("/.npmrc", "/.env", ".pem", ".key", *_NAMED)
"""Endings of files that are looked at wherever they are."""
_LIBRARIES = re.compile(
    r"/etc/nsswitch\.conf|/(?:usr/(?:lib|lib32|lib64|libexec|share|include|bin|sbin|games)|lib|lib64|bin|sbin|boot|dev"
    r"|proc|sys|var/(?:lib|cache|log))/|.*/(?:site-packages|dist-packages|node_modules|vendor"
    r"|python3\.\d+|\.git|\.cache)/"
)
_SUSPICIOUS = re.compile(
    rb"(?i)-----BEGIN|AKIA|ASIA|gh[pousr]_|glpat-|npm_|_authToken|pypi-|sk-|sk_live|rk_live|SG\.|xox"
    rb"|eyJ|AccountKey=|://[^/\s:]{1,80}:[^@\s]{1,80}@"
    rb"|(?:passw|passphrase|pwd|secret|token|api_?key|apikey|private_?key|access_?key|credential)"
    rb"[\w\-\"'\]]{0,40}\s{0,8}[:=]"
)
_TEMPLATES = (
    heuristic.is_templated_secret,
    heuristic.is_sequential_string,
    heuristic.is_not_alphanumeric_string,
    heuristic.is_prefixed_with_dollar_sign,
)


def is_looked_at(path: str, length: int) -> bool:
    """Tell if a file is looked at; see the module's text for what is left out.

    Args:
        path: in the image.
        length: of the file, in bytes.
    """
    if not 0 < length <= MAX_FILE_BYTES:
        return False
    return path.endswith(_LOOKED_INTO) or _LIBRARIES.match(path) is None


def suspicious_lines(path: str, content: bytes) -> list[tuple[int | None, str]]:
    """Return the lines (number from 1, text) that deserve the close look, which takes longer.

    A whole file that is suspicious by its name comes with the number None and its kind as text.
    """
    if b"\0" in content:
        return []
    for ending, (kind, pattern) in _NAMED.items():
        if path.endswith(ending) and pattern.search(content):
            return [(None, kind)]
    found: list[tuple[int | None, str]] = []
    if _SUSPICIOUS.search(content):
        for number, line in enumerate(content.splitlines(), 1):
            if len(line) <= MAX_LINE and _SUSPICIOUS.search(line):
                found.append((number, line.decode("utf-8", "replace")))
    return found


class Detector:
    """The close look, by the plugins of detect-secrets that go by more than randomness."""

    def __init__(self) -> None:
        self._plugins: tuple[BasePlugin, ...] = (
            AWSKeyDetector(),
            AzureStorageKeyDetector(),
            BasicAuthDetector(),
            GitHubTokenDetector(),
            GitLabTokenDetector(),
            JwtTokenDetector(),
            KeywordDetector(),
            NpmDetector(),
            OpenAIDetector(),
            PrivateKeyDetector(),
            PypiTokenDetector(),
            SendGridDetector(),
            SlackDetector(),
            StripeDetector(),
        )

    def kinds(self, path: str, line: str) -> Iterator[str]:
        """Yield what kinds of secrets a line holds, such as ``Private Key``.

        Args:
            path: of the file; settings have other rules than programs.
            line: its text.
        """
        if heuristic.is_indirect_reference(line):
            return
        name = path if re.search(r"\.\w+$", path) and "/.env" not in path else f"{path}.ini"
        for plugin in self._plugins:
            for secret in plugin.analyze_line(filename=name, line=line, line_number=0):
                if not any(matches(secret.secret_value or "") for matches in _TEMPLATES):
                    yield secret.type
                    break
