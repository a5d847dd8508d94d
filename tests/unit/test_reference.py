"""References: a table of good and bad ones, and properties over generated ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp.errors import InvalidReference
from labapp.reference import Reference

D = "sha256:" + "0123456789abcdef" * 4
D512 = "sha512:" + "0123456789abcdef" * 8
LONG = "a" * 128

GOOD = [
    # text, registry, repository, tag, digest, printed
    ("python", "docker.io", "library/python", None, None, "python"),
    ("python:3.13", "docker.io", "library/python", "3.13", None, "python:3.13"),
    ("docker.io/python", "docker.io", "library/python", None, None, "python"),
    ("docker.io/library/python:3", "docker.io", "library/python", "3", None, "python:3"),
    ("index.docker.io/shop/web", "docker.io", "shop/web", None, None, "shop/web"),
    ("index.docker.io/python", "docker.io", "library/python", None, None, "python"),
    ("shop/web", "docker.io", "shop/web", None, None, "shop/web"),
    ("shop/web/api:1", "docker.io", "shop/web/api", "1", None, "shop/web/api:1"),
    ("library/a/b", "docker.io", "library/a/b", None, None, "library/a/b"),
    ("localhost/web", "localhost", "web", None, None, "localhost/web"),
    ("localhost:41233/web", "localhost:41233", "web", None, None, "localhost:41233/web"),
    ("localhost:41233/shop/web:1.4", "localhost:41233", "shop/web", "1.4", None, None),
    # docker reads these as a Hub repository and a tag, however much they look like a registry.
    ("localhost:5000", "docker.io", "library/localhost", "5000", None, None),
    ("localhost", "docker.io", "library/localhost", None, None, "localhost"),
    ("host:80/name", "host:80", "name", None, None, "host:80/name"),
    ("127.0.0.1:5000/web:x", "127.0.0.1:5000", "web", "x", None, None),
    ("[::1]:5000/web", "[::1]:5000", "web", None, None, None),
    ("[2001:db8::1]/shop/web:1", "[2001:db8::1]", "shop/web", "1", None, None),
    ("GHCR.io/org/web", "GHCR.io", "org/web", None, None, None),
    (f"web@{D}", "docker.io", "library/web", None, D, None),
    (f"localhost:1/web:1.4@{D}", "localhost:1", "web", "1.4", D, None),
    (f"web@{D512}", "docker.io", "library/web", None, D512, None),
    ("a__b/c-d/e.f/g--h/i---j", "docker.io", "a__b/c-d/e.f/g--h/i---j", None, None, None),
    (f"web:{LONG}", "docker.io", "library/web", LONG, None, None),
    ("web:_x", "docker.io", "library/web", "_x", None, None),
    ("web:Version-1.0", "docker.io", "library/web", "Version-1.0", None, None),
    ("xn--n3h.example/web", "xn--n3h.example", "web", None, None, None),
    ("0/1:2", "docker.io", "0/1", "2", None, None),
    ("docker.io/localhost/web", "docker.io", "localhost/web", None, None, None),
]

BAD = [
    # text, what the message must tell
    ("", ""),
    (" web", "space"),
    ("shop/my web", "space"),
    ("http://localhost:5000/web", "'localhost:5000/web'"),
    ("docker://python:3.13", "'python:3.13'"),
    ("-t", "option"),
    ("shop\\web", "\\"),
    ("a" * 64, "image ID"),
    ("Web", "'web'"),
    ("localhost:5000/Shop/Web:1.0", "'shop/web'"),
    ("ghcr.io/Org/web", "'org/web'"),
    ("web:", "tag"),
    (":1.0", "no repository"),
    (f"@{D}", "no repository"),
    ("web:1.0:2.0", "'1.0:2.0'"),
    ("web:.1", "'.1'"),
    ("web:1+2", "'1+2'"),
    ("web:ä", "'ä'"),
    (f"web:{LONG}a", "128"),
    ("web@", "digest"),
    ("web@latest", "'latest'"),
    ("web@" + D[:-1], "63"),
    ("web@" + D + "0", "65"),
    ("web@sha256:" + "g" * 64, "digest"),
    ("web@sha256:" + "A" * 64, "lower case"),
    ("web@SHA256:" + "0" * 64, "lower case"),
    ("web@md5:" + "0" * 32, "digest"),
    (f"web@{D}:1.0", "comes last"),
    (f"web@{D}@{D}", "digest"),
    ("localhost:5000/", "no repository"),
    ("/web", "'/web'"),
    ("shop//web", "'shop//web'"),
    ("shop:1.0/web", "'shop:1.0'"),
    ("shop/web:1.0/api", "last slash"),
    ("localhost:/web", "port"),
    ("localhost:70000/web", "65535"),
    ("localhost:5000000000000000000/web", "65535"),
    ("localhost:٣/web", "'localhost:٣'"),
    ("::1:5000/web", "'::1:5000'"),
    ("[::1/web", "'[::1'"),
    ("[zz]:5000/web", "'[zz]:5000'"),
    ("[]:5000/web", "'[]:5000'"),
    ("[:::]:5000/web", "'[:::]:5000'"),
    ("[2001:db8::192.0.2.33]:5000/web", "'[2001:db8::192.0.2.33]:5000'"),
    ("[fe80::1%eth0]:5000/web", "'[fe80::1%eth0]:5000'"),
    ("my_host.example/web", "'my_host.example'"),
    ("host-.example/web", "'host-.example'"),
    ("shop/we$b", "0-9"),
    ("shop/${NAME}", "'shop/${name}'"),
    ("shop/wéb", "0-9"),
    ("shop/_web", "'shop/_web'"),
    ("shop/web___api", "'shop/web___api'"),
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


def test_the_longest_name_is_allowed() -> None:
    reference = Reference.parse("localhost:5000/" + "a" * 240)
    assert len(reference.name) == 255


def test_parts_are_checked_without_parsing() -> None:
    with pytest.raises(InvalidReference, match="'shop/web'"):
        Reference("localhost:5000", "Shop/web")
    with pytest.raises(InvalidReference, match=r"'\.1'"):
        Reference.parse("web").with_tag(".1")
    with pytest.raises(InvalidReference, match="sha256:00"):
        Reference.parse("web").with_digest("sha256:00")


def test_changes() -> None:
    reference = Reference.parse("localhost:1/shop/web:1.4")
    assert str(reference.with_tag("2")) == "localhost:1/shop/web:2"
    assert str(reference.with_digest(D)) == f"localhost:1/shop/web:1.4@{D}"
    assert str(reference.pinned(D)) == f"localhost:1/shop/web@{D}"
    assert not reference.is_pinned
    assert reference.pinned(D).is_pinned
    assert reference.name == "localhost:1/shop/web"


def test_identifier_is_what_the_registry_is_asked_for() -> None:
    assert Reference.parse("web").identifier == "latest"
    assert Reference.parse("web:1").identifier == "1"
    assert Reference.parse(f"web:1@{D}").identifier == D


hosts = st.from_regex(
    r"[a-z0-9A-Z]([a-z0-9A-Z-]{0,8}[a-z0-9A-Z])?(\.[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?){1,2}",
    fullmatch=True,
)
ports = st.integers(1, 65535).map(str)
with_port = st.builds("{}:{}".format, st.sampled_from(["localhost", "[::1]", "host"]), ports)
registries = st.one_of(hosts, with_port, st.just("docker.io"), st.just("localhost"))
components = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.none() | st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}", fullmatch=True)
digests = st.none() | st.from_regex(r"sha256:[a-f0-9]{64}", fullmatch=True)


@given(registries, repositories, tags, digests)
def test_what_is_printed_reads_back(
    registry: str, repository: str, tag: str | None, digest: str | None
) -> None:
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    reference = Reference(registry, repository, tag, digest)
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=60))
def test_any_text_is_read_back_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        assert text in str(error)
    else:
        assert Reference.parse(str(reference)) == reference
