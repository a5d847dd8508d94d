"""What an inspection says of an image, from layers made in memory."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from made_images import Memory, made, put

from labapp.errors import VulnerabilityError
from labapp.inside.inspection import Comparison, Inspection, as_json, inspect, print_inspection
from labapp.inside.known import Report, table
from labapp.state import SOURCE_LABEL

SYSTEM: dict[str, bytes | str] = {
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="<b>Debian</b> 13"\n',
    "var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5.2\n",
    "usr/bin/bash": "#" * 3000,
    "usr/bin/su": "s",
}
KEY = {"root/.ssh/id_rsa": "-----BEGIN RSA PRIVATE KEY-----\n"}
GONE = {"root/.ssh/.wh.id_rsa": ""}
PACKAGES = {SOURCE_LABEL: "debian-packages"}
PYTHON = {"org.opencontainers.image.base.name": "python:3.13"}
REASON = "looking up fixes: the mirror '<x>' is down. Try again later."


def report(
    state: str = "missing", *, knows_release: bool = True, cve: str = "CVE-2026-1"
) -> Report:
    rest = ("bash", "bash", "5.2", "5.3", "", state, "2026-02-03T00:00:00+00:00")
    rows = table([(cve, *rest), ("CVE-2025-1", *rest)])
    date = datetime(2026, 11, 23, tzinfo=UTC)
    return Report(rows, "a source", date, "It is blind.", knows_release=knows_release)


def shown(found: Inspection | Comparison) -> str:
    """What a terminal of 120 columns is shown."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "120")
        print_inspection(found)
    return out.getvalue()


def test_an_image_in_facts() -> None:
    found = Inspection(made(SYSTEM, KEY, GONE, run={"User": "10001:0"}), report())
    facts = found.facts
    assert found.table["shop/web"].to_dict() == facts
    expected = {
        "image": "r.test/shop/web:1",
        "digest": found.contents.image.digest,
        "layers": "3",
        "unpacked": "3.1 kB",
        "wasted": "32 B",
        "packages": "1 Debian",
        "shells": "1",
        "compilers": "0",
        "set-uid and set-gid files": "1",
        "secrets": "1 (1 in files that a later layer hides)",
        "runs as": "user 10001:0",
        "fixes missing now": "2",
        "CVEs fixed since the release": "2",
    }
    assert expected.items() <= facts.items()
    assert found.notes[0] == "a source, as of 2026-11-23. It is blind."
    # Every rendering tells them, and the lists that a terminal has room for.
    document = json.loads(as_json(found))
    assert document["download_bytes"] == found.contents.download_bytes
    assert document["vulnerabilities"]["rows"][0]["date"] == "2026-02-03T00:00:00"
    assert [each["visible"] for each in document["secrets"]] == [False]
    for text in (shown(found), repr(found), found._repr_html_()):
        assert all(value in text for name, value in expected.items() if name != "secrets")
    for row in ("COPY layer2 /", "/root/.ssh/id_rsa", "CVE-2025-1, CVE-2026-1", "/usr/bin/su"):
        assert row in shown(found)


@pytest.mark.parametrize(
    ("run", "base", "runs_as"),
    [
        *(({"User": user}, "not told", "root") for user in ("", "0", "root", "0:0", "root:app")),
        ({"User": "app", "Labels": PACKAGES}, "of Debian packages", "user app"),
        ({"Labels": PYTHON | {SOURCE_LABEL: "docker-hub"}}, "python:3.13, from Docker Hub", "root"),
    ],
)
def test_what_the_config_says(run: dict[str, object], base: str, runs_as: str) -> None:
    facts = Inspection(made(run=run), None).facts
    assert (facts["base"], facts["runs as"]) == (base, runs_as)


def test_an_image_of_nothing_still_has_tables_and_charts() -> None:
    for layers in ((), ({},), ({"empty": ""},)):
        found = Inspection(made(*layers), report("since release"))
        facts = found.facts
        assert (facts["layers"], facts["unpacked"]) == (str(len(layers)), "0 B")
        assert (facts["system"], facts["secrets"]) == ("not told", "0")
        # What was looked for is told, for there may be packages of other kinds.
        assert facts["packages"] == "none of Debian, Alpine, Python"
        assert "npm" in shown(found)
    assert set(found.charts()) == {"surface", "cves"}
    both = Comparison({"empty": found, "one": Inspection(made(SYSTEM), None)})
    assert {"surface", "cves", "sizes", "where-bytes-are"} <= set(both.charts())


def test_what_nobody_knows_is_not_zero() -> None:
    found = Inspection(made(SYSTEM), None, REASON)
    assert found.facts["fixes missing now"] == "not known"
    assert found.surface["CVEs fixed since the release"] is None
    assert json.loads(as_json(found))["vulnerabilities_unknown"] == REASON
    with pytest.raises(VulnerabilityError, match="'<x>'"):
        _ = found.report
    # A scanner knows what is missing, and nothing of the release day.
    scanned = Inspection(made(SYSTEM), report(knows_release=False))
    assert scanned.facts["fixes missing now"] == "2"
    assert scanned.facts["CVEs fixed since the release"] == "not known"
    # A page shows texts as texts.
    page = found._repr_html_()
    assert "&lt;b&gt;Debian&lt;/b&gt; 13" in page
    assert "&#x27;&lt;x&gt;&#x27; is down" in page
    assert "<b>" not in page


def test_texts_of_an_image_have_no_power_and_break_nothing() -> None:
    evil = "\x1b[31m\x9b2J\ud800\u202e"
    image = made(
        SYSTEM | {"etc/os-release": "PRETTY_NAME='\x1b[31mred'\n", "root/\x1b[2J/.env": "A=1\n"},
        run={"User": evil, "Labels": {"org.opencontainers.image.base.name": evil}},
        history=evil,
    )
    found = Inspection(image, report(cve=f"CVE{evil}"), evil)
    both = Comparison({"one": found, "other": Inspection(image, None, evil)})
    for each in (found, both):
        for text in (as_json(each), shown(each), repr(each), each._repr_html_()):
            assert text.encode("utf-8")
            assert not {"\x1b", "\x9b"} & set(text)
    assert all(chart.svg().decode("utf-8") for chart in both.charts().values())


def test_images_side_by_side() -> None:
    one = Inspection(made(SYSTEM, KEY), report())
    other = Inspection(made(SYSTEM, run={"User": "app"}, tag="2"), report("since release"))
    both = Comparison({"one": one, "other": other})
    assert list(both.table.columns) == ["one", "other"]
    assert list(both.table.loc["fixes missing now"]) == ["2", "0"]
    assert both.notes == one.notes, "a note of both is said once"
    page = both._repr_html_()
    assert page.count("<tr") == len(both.table) + 1 - 2, "image and digest are too long for it"
    images = json.loads(as_json(both))["images"]
    assert images["one"]["layers"][0]["digest"] == images["other"]["layers"][0]["digest"]


def test_whom_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = {"etc/apt/sources.list": "deb http://[::bad/d trixie-security main"}
    registry = Memory()
    put(registry, "shop/web", "1", [SYSTEM | apt])
    monkeypatch.setenv("PATH", str(tmp_path))
    for source in (None, "auto", "grype", "snapshot"):
        found = inspect(registry, "r.test/shop/web:1", cache=tmp_path, source=source)
        assert bool(found.unknown) == (source is not None)
        assert found.facts["fixes missing now"] == "not known"
