"""References: a table of good and bad ones, and properties over generated ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp.errors import InvalidReference, printable
from labapp.reference import Reference

D = "sha256:" + "0123456789abcdef" * 4
D512 = "sha512:" + "0123456789abcdef" * 8
LONG = "a" * 128

GOOD = [
    # text, registry, repository, tag, digest, printed
    ("python", "docker.io", "library/python", None, None, "python"),
    ("docker.io/library/python:3", "docker.io", "library/python", "3", None, "python:3"),
    ("index.docker.io/python", "docker.io", "library/python", None, None, "python"),
    ("shop/web", "docker.io", "shop/web", None, None, "shop/web"),
    ("library/a/b", "docker.io", "library/a/b", None, None, "library/a/b"),
    ("localhost:41233/shop/web:1.4", "localhost:41233", "shop/web", "1.4", None, None),
    # docker reads these as a Hub repository and a tag, however much they look like a registry.
    ("localhost:5000", "docker.io", "library/localhost", "5000", None, None),
    ("localhost", "docker.io", "library/localhost", None, None, "localhost"),
    ("[::1]:5000/web", "[::1]:5000", "web", None, None, None),
    ("GHCR.io/org/web", "GHCR.io", "org/web", None, None, None),
    (f"web@{D}", "docker.io", "library/web", None, D, None),
    (f"localhost:1/web:1.4@{D}", "localhost:1", "web", "1.4", D, None),
    (f"web@{D512}", "docker.io", "library/web", None, D512, None),
    ("a__b/c-d/e.f/g--h/i---j", "docker.io", "a__b/c-d/e.f/g--h/i---j", None, None, None),
    (f"web:{LONG}", "docker.io", "library/web", LONG, None, None),
    ("docker.io/localhost/web", "docker.io", "localhost/web", None, None, None),
]

BAD = [
    # text, what the message must tell
    ("", ""),
    ("shop/my web", "space"),
    ("http://localhost:5000/web", "'localhost:5000/web'"),
    ("-t", "option"),
    ("shop\\web", "\\"),
    ("a" * 64, "image ID"),
    ("Web", "'web'"),
    ("localhost:5000/Shop/Web:1.0", "'shop/web'"),
    ("web:", "tag"),
    (f"@{D}", "no repository"),
    ("web:1.0:2.0", "'1.0:2.0'"),
    ("web:ä", "'ä'"),
    (f"web:{LONG}a", "128"),
    ("web@sha256:" + "A" * 64, "lower case"),
    ("web@md5:" + "0" * 32, "digest"),
    (f"web@{D}:1.0", "comes last"),
    ("localhost:5000/", "no repository"),
    ("shop//web", "'shop//web'"),
    ("shop:1.0/web", "'shop:1.0'"),
    ("localhost:70000/web", "65535"),
    ("localhost:٣/web", "'localhost:٣'"),
    ("::1:5000/web", "'::1:5000'"),
    ("[zz]:5000/web", "'[zz]:5000'"),
    ("[2001:db8::192.0.2.33]:5000/web", "'[2001:db8::192.0.2.33]:5000'"),
    ("my_host.example/web", "'my_host.example'"),
    ("shop/we$b", "0-9"),
    ("shop/${NAME}", "'shop/${name}'"),
    ("localhost:5000/" + "a" * 241, "255"),
]


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest", "printed"), GOOD, ids=[r[0] for r in GOOD]
)
def test_good(
    text: str,
    registry: str,
    repository: str,
    tag: str | None,
    digest: str | None,
    printed: str | None,
) -> None:
    reference = Reference.parse(text)
    assert reference == Reference(registry, repository, tag, digest)
    assert str(reference) == (printed or text)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(("text", "fact"), BAD, ids=[repr(r[0][:40]) for r in BAD])
def test_bad(text: str, fact: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    message = str(caught.value)
    assert f"'{text}': " in message
    assert fact in message.replace(f"'{text}'", "", 1)


LIKELY = (
    r"([a-zA-Z0-9.\[:\]-]{1,12}(:[0-9]{1,5})?/)?[a-z0-9]{1,6}((/|\.|_|__|-{1,3})[a-z0-9]{1,6}){0,3}"
    r"(:[\w.-]{1,9})?(@sha256:[a-f0-9]{64})?"
)


@given(st.text(max_size=60) | st.from_regex(LIKELY, fullmatch=True))
def test_any_text_is_read_back_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        assert printable(text) in str(error)
    else:
        assert Reference.parse(str(reference)) == reference
