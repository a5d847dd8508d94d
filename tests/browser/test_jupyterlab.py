"""JupyterLab as a learner sees it: started by the command, a chapter run in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from desk import empty
from playwright.sync_api import Page, sync_playwright

from labapp.bench import Bench
from labapp.state import REPOSITORY

CHAPTER = "00_start_here"
OPTIONS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def address(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `start --no-browser` prints; it serves a copy of the notebooks."""
    empty(bench)
    folder = tmp_path_factory.mktemp("served") / "notebooks"
    notebooks = REPOSITORY / "notebooks"
    shutil.copytree(notebooks, folder, ignore=shutil.ignore_patterns("work"))
    command = [sys.executable, "-m", "labapp", "start", "--no-browser", "--notebooks", str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = (re.search(r"http://\S+token=\w+", line) for line in process.stdout or ())
            yield next(filter(None, lines))[0]
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def page(address: str, browser_path: str) -> Iterator[Page]:
    """The chapter, opened in JupyterLab and run from top to bottom."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1300, "height": 3000})
        # It is that of the chapter where a learner goes on: here, of the first.
        assert f"lab/tree/{CHAPTER}.ipynb?token=" in address
        page.goto(f"{address}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
        page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for(timeout=60_000)
        run_all(page)
        # The clean-up cell is the last one with code.
        last = page.locator(".jp-CodeCell", has_text="lab.clean_up()")
        last.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]")).wait_for(timeout=420_000)
        yield page
        browser.close()


def run_all(page: Page) -> None:
    """Use the menu until the first cell runs: JupyterLab drops it while its kernel connects."""
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    for _ in range(10):
        page.click(".lm-MenuBar-item:has-text('Run')")
        page.click(".lm-Menu-item[data-command='runmenu:run-all']")
        page.wait_for_timeout(2_000)
        if re.search(r"\[[*\d]", prompt.inner_text()):
            return
    pytest.fail("'Run All Cells' runs nothing")


def test_cells_checks_and_progress(page: Page, bench: Bench) -> None:
    assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0
    assert page.locator(".jp-Cell").count() >= 25
    verdicts = page.locator(".labapp-verdict[data-outcome='NotYet']")
    assert verdicts.count() == 2 and verdicts.first.is_visible()
    bars = page.locator(".labapp-bars[data-state='done'] progress").all()
    assert len(bars) >= 3
    for bar in bars:
        assert bar.get_attribute("value") == bar.get_attribute("max")
    # The lab shows the commands.
    cell = page.locator(".jp-CodeCell", has_text="lab.remove(hello)")
    text = cell.locator(".jp-OutputArea").inner_text()
    assert f"$ docker image rm {bench.registry.address}/hello/web:1.0" in text


def test_diagrams_and_charts_are_drawn_and_described(page: Page) -> None:
    diagram = page.locator(".jp-RenderedMermaid img, .jp-RenderedMermaid svg").first
    diagram.wait_for(timeout=30_000)
    box = diagram.bounding_box()
    assert box and box["width"] > 150 and box["height"] > 30
    charts = page.locator("img.labapp-chart").all()
    assert charts
    for chart in charts:
        assert len(chart.get_attribute("alt") or "") > 40
        assert chart.evaluate("image => image.complete && image.naturalWidth") > 400
