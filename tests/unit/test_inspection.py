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
from labapp.inside.fixes import Report, Row, table
from labapp.inside.inspection import Comparison, Inspection, as_json, inspect, print_inspection

SYSTEM: dict[str, bytes | str] = {
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="<b>Debian</b> 13"\n',
    "var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5.2\n",
    "usr/bin/bash": "#" * 3000,
    "usr/bin/su": "s",
}
KEY = {"root/.ssh/id_rsa": "-----BEGIN RSA PRIVATE KEY-----\n"}
GONE = {"root/.ssh/.wh.id_rsa": ""}
REASON = "looking up fixes: the mirror '<x>' is down. Try again later."


def report(
    state: str = "missing", *, knows_release: bool = True, cve: str = "CVE-2026-1"
) -> Report:
    when = datetime(2026, 2, 3, tzinfo=UTC)
    row = Row(cve, "bash", "bash", "5.2", "5.3", when, state, "a source", "", False)
    rows = table([row, row._replace(cve="CVE-2025-1")])
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
    assert found.table.set_index("fact")["value"].to_dict() == facts
    expected = {
        "image": "r.test/shop/web:1",
        "digest": found.contents.image.digest,
        "layers": "3",
        "unpacked": "3.1 kB",
        "of it wasted": "32 B",
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


PYTHON = {"org.opencontainers.image.base.name": "python:3.13"}


@pytest.mark.parametrize(
    ("run", "fact", "value"),
    [
        *(({"User": user}, "runs as", "root") for user in ("", "0", "root", "0:0", "root:app")),
        ({}, "base", "not told"),
        ({"Labels": {"labapp.base.source": "debian-packages"}}, "base", "of Debian packages"),
        ({"Labels": PYTHON}, "base", "python:3.13"),
        (
            {"Labels": PYTHON | {"labapp.base.source": "docker-hub"}},
            "base",
            "python:3.13, from Docker Hub",
        ),
    ],
)
def test_what_the_config_says(run: dict[str, object], fact: str, value: str) -> None:
    assert Inspection(made(run=run), None).facts[fact] == value


@pytest.mark.parametrize("layers", [(), ({},), ({"empty": ""},)])
def test_an_image_of_nothing_still_has_tables_and_charts(layers: tuple[dict[str, str]]) -> None:
    found = Inspection(made(*layers), report("since release"))
    facts = found.facts
    assert (facts["layers"], facts["unpacked"]) == (str(len(layers)), "0 B")
    assert (facts["system"], facts["secrets"]) == ("not told", "0")
    # What was looked for is told, for there may be packages of other kinds.
    assert facts["packages"] == "none of Debian, Alpine, Python"
    assert "npm" in shown(found)
    assert {"surface", "cves"} <= set(found.charts())
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
    assert json.loads(as_json(scanned))["vulnerabilities"]["since_release"] is None


def test_a_page_shows_texts_of_an_image_as_texts() -> None:
    page = Inspection(made(SYSTEM), None, REASON)._repr_html_()
    assert "&lt;b&gt;Debian&lt;/b&gt; 13" in page
    assert "&#x27;&lt;x&gt;&#x27; is down" in page
    assert "<b>" not in page
    assert "<script" not in page


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
        document = as_json(each)
        for text in (document, shown(each), repr(each), each._repr_html_()):
            assert text.encode("utf-8")
            assert not {"\x1b", "\x9b"} & set(text)
        assert all(chart.svg().decode("utf-8") for chart in each.charts().values())


def test_images_side_by_side() -> None:
    one = Inspection(made(SYSTEM, KEY), report())
    other = Inspection(made(SYSTEM, run={"User": "app"}, tag="2"), report("since release"))
    both = Comparison({"one": one, "other": other})
    assert list(both.table.columns) == ["one", "other"]
    assert list(both.table.loc["fixes missing now"]) == ["2", "0"]
    assert list(both.table.loc["runs as"]) == ["root", "user app"]
    assert both.notes == one.notes, "a note of both is said once"
    page = both._repr_html_()
    assert page.count("<tr") == len(both.table) + 1 - 2, "image and digest are too long for it"
    document = json.loads(as_json(both))
    assert list(document["images"]) == ["one", "other"]
    assert document["images"]["one"]["layers"][0]["digest"] in str(document["images"]["other"])


def test_whom_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = {"etc/apt/sources.list": "deb http://[::bad/d trixie-security main"}
    registry = Memory()
    put(registry, "shop/web", "1", [SYSTEM | apt])
    monkeypatch.setenv("PATH", str(tmp_path))
    for source in (None, "auto", "grype", "snapshot"):
        found = inspect(registry, "r.test/shop/web:1", cache=tmp_path, source=source)
        assert bool(found.unknown) == (source is not None)
        assert found.facts["fixes missing now"] == "not known"
