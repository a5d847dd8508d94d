"""What an inspection says of an image, and the commands for it, from a registry in memory."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from made_images import Memory, made, put, put_index

from labapp import cli, feedback
from labapp.errors import InvalidReference, VulnerabilityError
from labapp.inside.inspection import Comparison, Inspection, as_json, inspect, print_inspection
from labapp.inside.known import Report, table
from labapp.registry.manifests import Platform
from labapp.state import SOURCE_LABEL

LIST = "var/lib/dpkg/status"
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


def report(state: str = "missing", *, cve: str = "CVE-2026-1") -> Report:
    rest = ("bash", "bash", "5.2", "5.3", state, "2026-02-03T00:00:00+00:00")
    rows = table([(cve, *rest), ("CVE-2025-1", *rest)])
    return Report(rows, "a source", datetime(2026, 11, 23, tzinfo=UTC))


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
    assert found.notes[0] == f"a source, as of 2026-11-23. {Report.blind}"
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
        ({"User": "app", "Labels": PACKAGES}, "made from Debian packages", "user app"),
        ({"Labels": PYTHON | {SOURCE_LABEL: "docker-hub"}}, "python:3.13, from Docker Hub", "root"),
    ],
)
def test_what_the_config_says(run: dict[str, object], base: str, runs_as: str) -> None:
    facts = Inspection(made(run=run), None).facts
    assert (facts["base"], facts["runs as"]) == (base, runs_as)


def test_an_image_of_nothing_still_has_tables_and_charts() -> None:
    for layers in ((), ({},), ({"empty": ""},)):
        found = Inspection(made(*layers), report("since release"))
        names = ("layers", "unpacked", "system", "secrets", "packages")
        facts = [str(len(layers)), "0 B", "not told", "0", "none of Debian, Alpine, Python"]
        assert [found.facts[name] for name in names] == facts
        # What was looked for is told, for there may be packages of other kinds.
        assert "rpm, npm" in shown(found)
        assert json.loads(as_json(found))["tools"] == []
    assert set(found.charts()) == {"surface", "cves"}


def test_what_nobody_knows_is_not_zero(tmp_path: Path) -> None:
    registry = Memory()
    put(registry, "shop/web", "1", [SYSTEM])
    for source in (None, "snapshot", "debian", "auto"):
        found = inspect(registry, "r.test/shop/web:1", cache=tmp_path, source=source)
        assert bool(found.unknown) == (source is not None)
        assert found.facts["fixes missing now"] == "not known"
        assert found.surface["CVEs fixed since the release"] is None
        with pytest.raises(VulnerabilityError, match=re.escape(found.unknown or "nobody")):
            _ = found.report
    assert json.loads(as_json(found))["vulnerabilities_unknown"] == found.unknown
    # A page shows texts as texts: in the facts, and in the reason.
    assert found._repr_html_().count("&lt;b&gt;Debian&lt;/b&gt; 13") == 2
    assert "<b>" not in found._repr_html_()


def test_texts_of_an_image_have_no_power_and_break_nothing() -> None:
    evil = "\x1b[31m\x9b2J\ud800\u202e"
    image = made(
        SYSTEM | {"etc/os-release": "PRETTY_NAME='\x1b[31mred'\n", "root/\x1b[2J/.env": "A=1\n"},
        run={"User": evil, "Labels": {"org.opencontainers.image.base.name": evil}},
        history=evil,
    )
    assert (
        len(shown(Inspection(made({}, history="x" * 10**6, run={"User": "u" * 10**6}), None)))
        < 9000
    )
    found = Inspection(image, report(cve=f"CVE{evil}"), evil)
    images = {"one": found, "other": Inspection(image, None, evil)}
    both = Comparison(images | {"empty": Inspection(made(), None)})
    for each in (found, both):
        for text in (as_json(each), shown(each), repr(each), each._repr_html_()):
            assert text.encode("utf-8")
            assert not {"\x1b", "\x9b"} & set(text)
    drawn = both.charts()
    assert {"surface", "cves", "sizes", "where-bytes-are", "shared-layers"} <= set(drawn)
    assert all(chart.svg().decode("utf-8") for chart in drawn.values())


def test_what_changed_between_two_images() -> None:
    status = "Package: bash\nStatus: install ok installed\nVersion: {}\n"
    lists = {"var/lib/dpkg/info/bash.list": "/usr/bin/bash\n"}
    base: dict[str, bytes | str] = {"kept/": "", "same": "same", "gone": "12"}
    old: dict[str, bytes | str] = {"usr/bin/bash": "one", "app": "a=1", "tool": "t", "l": "-> a"}
    new = old | {"usr/bin/bash": "two!", "app": "a=2", "l": "-> b", "dir/": "", "dir/n": "=> app"}
    found = Comparison(
        {
            "old": Inspection(made(base, old | lists | {LIST: status.format("5.2")}), None),
            "new": Inspection(
                made(
                    base,
                    new | lists | {LIST: status.format("5.3") + "\nPackage: x\nVersion: 1\n"},
                    {".wh.gone": ""},
                    modes={"tool": 0o4755},
                ),
                None,
            ),
        }
    ).changes
    assert found.packages.values.tolist() == [
        ["deb", "bash", "changed", "5.2", "5.3"],
        ["deb", "x", "added", "", "1"],
    ]
    kinds = ["removed", "kept", "added", "added"]
    assert found.layers[["change", "number"]].values.tolist() == [
        [kind, number] for kind, number in zip(kinds, (2, 1, 2, 3), strict=True)
    ]
    rows = found.files[["path", "change", "what", "old_bytes", "new_bytes", "explained"]]
    assert rows.values.tolist()[1:] == [
        ["/app", "changed", "content", 3, 3, False],
        ["/gone", "removed", "", 2, 0, False],
        ["/tool", "changed", "mode", 1, 1, False],
        ["/dir/n", "added", "", 0, 0, False],
        ["/l", "changed", "target", 0, 0, False],
        ["/usr/bin/bash", "changed", "content", 3, 4, True],
    ]
    assert rows["path"][0] == f"/{LIST}"
    assert "2 added" in found.summary and "<td>/tool</td>" in found._repr_html_()
    same = Comparison({"one": Inspection(found.old, None), "two": Inspection(found.old, None)})
    assert [len(same.changes.packages), len(same.changes.files)] == [0, 0]
    with pytest.raises(InvalidReference, match="3 images"):
        _ = Comparison(dict.fromkeys("abc", Inspection(found.old, None))).changes


# The commands, in a lab where nothing was ever started

FOREIGN, ARM = Platform("linux", "s390x"), Platform("linux", "arm", "v7")
NOBODY, NOTE = {"os": "unknown", "architecture": "unknown"}, "application/vnd.in-toto+json"
IMAGE = "r.test/shop/web"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command for ``one``, ``two``, ``empty`` or ``index``; returns its code and outputs."""
    registry = Memory()
    here, far = (vars(each) for each in (Platform.here(), FOREIGN))
    put(registry, "shop/web", "one", [SYSTEM, KEY, GONE], platform=here, run={"User": "10001"})
    put(registry, "shop/web", "empty", platform=here)
    manifests = [
        put(registry, "shop/web", "two", [{"app": b"p" * 100}], platform=here),
        put(registry, "shop/web", "far", [{"app": b"p"}], platform=far),
        put(registry, "shop/web", "arm", [{"app": b"q"}], platform=vars(ARM)),
        put(registry, "shop/web", "note", [b"{}"], platform=NOBODY, layer_type=NOTE),
    ]
    put_index(registry, "shop/web", "index", manifests)
    monkeypatch.setattr("labapp.registry.client.Registry", lambda address, **_: registry)
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        with feedback.using(None):
            code = cli.main([*arguments, "--cves", "none"])
        return code, *capsys.readouterr()

    return run


def test_inspect_on_a_terminal_and_as_json(run: Run) -> None:
    code, shown, told = run("inspect", f"{IMAGE}:one")
    first, digest, *lines = shown.splitlines()
    assert (code, first, len(digest)) == (0, f"{IMAGE}:one", len("sha256:") + 64)
    assert max(map(len, lines)) <= 80
    assert "Layers, lowest first" in lines
    assert "verified" in told  # progress
    code, shown, told = run("inspect", f"{IMAGE}:one", "--json")
    found = json.loads(shown)
    assert (code, found["digest"], found["files"]) == (0, digest, 4)
    assert [each["instruction"] for each in found["layers"]][:1] == ["COPY layer1 /"]
    assert (found["vulnerabilities"], found["runs as"]) == (None, "user 10001")
    assert "verified" not in told, "what was read is read again"
    asked = {str(FOREIGN): FOREIGN, str(ARM): ARM, "linux/arm": ARM, "linux/arm/v8": ARM}
    for name, platform in asked.items():
        code, shown, _ = run("inspect", f"{IMAGE}:index", "--json", "--platform", name)
        assert (code, json.loads(shown)["platform"]) == (0, str(platform))
    code, shown, _ = run("inspect", f"{IMAGE}:index", "--json")
    assert (code, json.loads(shown)["platform"]) == (0, str(Platform.here()))


@pytest.mark.parametrize(
    ("tag", "options", "fact"),
    [
        ("index", ("--platform", "linux/riscv64"), f"{Platform.here()}, {FOREIGN}, {ARM}"),
        ("index", ("--platform", "linux/arm/v6"), str(ARM)),
        ("index", ("--platform", "unknown/unknown"), NOTE),
        ("far", ("--platform", "linux/arm64/v8"), str(FOREIGN)),
        ("one", ("--platform", "linux/riscv64"), str(Platform.here())),
        ("empty", ("--charts", "/dev/null/x"), "/dev/null/x"),
        ("one", ("--sbom", "spdx", "/dev/null/x"), "/dev/null/x"),
    ],
)
def test_what_can_not_be_done_is_told(
    run: Run, tag: str, options: tuple[str, ...], fact: str
) -> None:
    code, shown, told = run("inspect", f"{IMAGE}:{tag}", *options)
    assert (code, shown, fact in told) == (1, "", True), told


def test_compare_and_charts(run: Run, tmp_path: Path) -> None:
    code, shown, _ = run("compare", f"{IMAGE}:one", f"mine={IMAGE}:two")
    lines = shown.splitlines()
    layers = next(line for line in lines if line.startswith("layers"))
    assert (code, lines[0], lines[3]) == (0, "one", "mine")
    assert (lines[7].split(), layers.split()) == (["one", "mine"], ["layers", "3", "1"])
    assert max(map(len, lines[6:])) <= 80
    code, shown, _ = run("compare", *(f"n{n}{'-' * 12}={IMAGE}:one" for n in range(6)))
    lines = shown.splitlines()[6 * 3 :]
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    for words in ("1 Debian", "user 10001", *(f"n{n}{'-' * 12}" for n in range(6))):
        assert words in shown
    code, shown, _ = run("compare", "--changes", f"{IMAGE}:one", f"{IMAGE}:two")
    assert (code, max(map(len, shown.splitlines())) <= 80) == (0, True)
    assert re.search(r"deb +bash +removed +5\.2", shown) and re.search("/app +added", shown)
    code, shown, _ = run("compare", "--changes", f"{IMAGE}:one", f"{IMAGE}:two", "--json")
    assert [each["name"] for each in json.loads(shown)["packages"]] == ["bash"]
    assert (
        run("compare", "--changes", *[f"{IMAGE}:{tag}" for tag in ("one", "two", "empty")])[0] == 2
    )
    code, shown, _ = run("compare", f"{IMAGE}:two", f"{IMAGE}:empty", "--json")
    assert (code, list(json.loads(shown)["images"])) == (0, ["two", "empty"])
    code, _, told = run("inspect", f"{IMAGE}:empty", "--charts", str(tmp_path / "drawn"))
    files = {file.name for file in (tmp_path / "drawn").iterdir()}
    assert (code, files) == (0, {"surface.png", "surface.svg"})
    assert "surface.png, .svg" in told
