"""Pages in a browser: MLflow's pages and the page of `muxrec compare`, opened in chromium.

    SCREENSHOTS=work/pictures pytest -m browser

keeps the pictures. The store is the test's own: a trained run's files, and made-up curves.
"""

import io
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from recsys.runs.run_directory import RunDirectory
from recsys.tracking.compare_page import VIEW, comparison_page
from recsys.tracking.compare_runs import compare_runs, tracked_runs
from recsys.tracking.logged_model import log_model
from recsys.tracking.model_registry import ModelRegistry
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 180
"""Longest wait for anything; pages of MLflow load megabytes of script, which takes its time on a busy machine."""
RUNS = (
    ("wide", 1, 16, 0.781),
    ("wide", 2, 16, 0.784),
    ("narrow", 1, 4, 0.764),
    ("narrow", 2, 4, 0.769),
    ("plain", 1, 8, 0.75),
)

OVERLAPS = """
const texts = [...document.querySelectorAll("svg text")].map(one => [one.textContent, one.getBoundingClientRect()]);
const covers = (a, b) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
return texts.flatMap(([name, a], k) =>
  texts.slice(k + 1).filter(([_, b]) => covers(a, b)).map(([other]) => [name, other]));
"""
"""Texts of a figure that cover each other, in pairs."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium; to have it: apt-get install chromium chromium-driver"
    ),
]


class Site(NamedTuple):
    """An MLflow UI, and what is in its store."""

    address: str
    experiment: str
    runs: tuple[str, ...]


@pytest.fixture
def site(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """`mlflow ui` on a store with five runs in three rows, the first of them a registered model."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    trackers = [logged(name, seed, width, auc) for name, seed, width, auc in RUNS]
    register(trackers[0], RunDirectory(run))
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1"]
    with (tmp_path / "ui.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health")
        experiment, number, _ = tracked_runs("films")
        assert experiment == "films"
        yield Site(address, number, tuple(tracker.run_id for tracker in trackers))
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def logged(name: str, seed: int, width: int, auc: float) -> Tracker:
    """A finished run with curves that rise to an AUC."""
    tags = {"stage": "train", "dataset.name": "films", "dataset.digest": "d"}
    tracker = Tracker.start(experiment="films", name=name, tags=tags, key=f"{name}{seed}")
    settings = {"name": name, "seed": seed, "embedding.width": width, "embedding.num_rows": 2048 * width}
    for key, value in {**settings, "embedding.l2": 0.05 / width, "model.hidden": "400,400"}.items():
        tracker.client.log_param(tracker.run_id, key, value)
    for epoch in range(1, 9):
        reached = 1 - math.exp(-epoch / 2)
        values = {"val/auc": 0.5 + (auc + 0.004 - 0.5) * reached, "train/loss": 0.69 - 0.2 * reached}
        values |= {"val/logloss": 0.69 - 0.15 * reached, "system/cores_used": 1.9, "system/memory_mb": 700 + 4 * epoch}
        tracker.log_metrics(values, step=50 * epoch)
    size = 400_000 + 32_768.0 * width
    tracker.log_metrics({"test/auc": auc, "test/logloss": 1.3 - auc, "test/gauc": auc - 0.05, "test/ece": 0.012}, 400)
    tracker.log_metrics({"perf/bundle_bytes": size, "perf/samples_per_s": 9e5 / width, "perf/score_ms": 0.3}, step=400)
    tracker.finish()
    return tracker


def register(tracker: Tracker, directory: RunDirectory) -> None:
    """The files of a trained run as those of a tracked one, and its bundle as a version of a registered model."""
    tracker.log_file(directory.report)
    log_model(tracker, Bundle.open(directory.bundle))
    (model,) = tracker.client.search_logged_models([tracker.experiment_id])
    registry = ModelRegistry.open()
    version = registry.register("films", model.model_id, tracker.run_id, {"validation_status": "passed"})
    registry.set_alias("champion", version)


def free_port() -> int:
    """A free port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(address: str) -> None:
    """Return once a server answers."""
    last = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < last, f"{address} does not answer"
            time.sleep(0.3)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    """Chromium without a window, with a new profile."""
    options = Options()
    options.binary_location = CHROMIUM or ""
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,900")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(SECONDS)
    try:
        yield driver
    finally:
        driver.quit()


class Visitor:
    """Opens pages, waits for words on them, and takes pictures."""

    def __init__(self, browser: WebDriver, pictures: Path) -> None:
        self.browser = browser
        self.pictures = pictures

    def see(self, address: str, *words: str) -> None:
        """Open a page and wait until all the words are on it."""
        self.browser.get("about:blank")  # a change behind the # alone would load nothing
        self.browser.get(address)
        for word in words:
            self.wait(word)

    def wait(self, word: str) -> None:
        """Wait until a word is on the page."""

        def is_there(browser: WebDriver) -> bool:
            return word.lower() in browser.find_element(By.TAG_NAME, "body").text.lower()

        where = f"{word!r} on {self.browser.current_url}"
        WebDriverWait(self.browser, SECONDS, ignored_exceptions=[WebDriverException]).until(is_there, where)

    def shoot(self, name: str) -> None:
        """Take a picture, in few colours so that it stays small; it must show something."""
        time.sleep(1.5)  # what is on the page fades in
        path = self.pictures / f"{name}.png"
        with Image.open(io.BytesIO(self.browser.get_screenshot_as_png())) as picture:
            picture.convert("RGB").quantize(200).save(path, optimize=True)
        assert 8_000 < path.stat().st_size < 150_000


def test_the_pages_that_people_compare_runs_on(site: Site, browser: WebDriver, tmp_path: Path):
    visitor = Visitor(browser, Path(os.environ.get("SCREENSHOTS", tmp_path)))
    visitor.see(f"{site.address}/health", "OK")
    browser.execute_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    experiment = f"{site.address}/#/experiments/{site.experiment}/runs"
    visitor.see(f"{experiment}?{VIEW}", "wide", "narrow", "plain")
    visitor.shoot("experiment")
    visitor.see(f"{experiment}/{site.runs[0]}?{VIEW}", "test/auc", "embedding.width", "films")
    visitor.see(f"{experiment}/{site.runs[0]}/model-metrics?{VIEW}", "perf", "test", "val")
    browser.find_element(By.CSS_SELECTOR, "input[placeholder='Search metric charts']").send_keys("val/|train/")
    visitor.wait("train/loss")
    visitor.shoot("run")
    visitor.see(f"{experiment}/{site.runs[0]}/artifacts/report/model_card.md?{VIEW}", "Metrics by segment")
    chosen = ",".join(f'"{one}"' for one in site.runs[::2])
    compare = f'{site.address}/#/compare-runs?runs=[{chosen}]&experiments=["{site.experiment}"]&{VIEW}'
    visitor.see(compare, "Parallel Coordinates", "embedding.width", "val/auc")
    WebDriverWait(browser, SECONDS).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".parcoords"))
    visitor.shoot("parallel")
    visitor.see(f"{site.address}/#/models/films?{VIEW}", "champion", "Version 1")
    visitor.shoot("registry")


def test_the_comparison_sorts_and_leads_to_the_runs(site: Site, browser: WebDriver, tmp_path: Path):
    page = tmp_path / "comparison.html"
    page.write_text(comparison_page(compare_runs(*tracked_runs("films"), "plain"), site.address), encoding="utf-8")
    visitor = Visitor(browser, Path(os.environ.get("SCREENSHOTS", tmp_path)))
    visitor.see(page.as_uri(), "Runs of films", "wide", "baseline")
    visitor.shoot("compare")

    def names() -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr td:nth-child(2)")
        return [cell.text.split()[0] for cell in cells]

    assert names() == ["wide", "narrow", "plain"]
    assert browser.execute_script(OVERLAPS) == []
    heading = {" ".join(one.text.split()): one for one in browser.find_elements(By.CSS_SELECTOR, "#runs th button")}
    heading["bundle kB"].click()
    assert names() == ["narrow", "plain", "wide"]
    heading["bundle kB"].click()
    assert names() == ["wide", "plain", "narrow"]
    heading["test AUC"].click()
    assert names() == ["wide", "narrow", "plain"]
    link = browser.find_element(By.CSS_SELECTOR, "#runs tbody a").get_attribute("href")
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert fetched == []
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert errors == []
    visitor.see(link, "test/auc", "wide")
