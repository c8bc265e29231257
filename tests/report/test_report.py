"""The report page: what is in it, and what a real browser shows of it."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from surefoot.errors import InputError
from surefoot.report import report
from surefoot.report.data import evenly, read_run
from tests.report.folders import lines, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def data_of(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text()).group(1))


def test_page_is_self_contained_and_carries_the_run(tmp_path):
    path = report([make_run(tmp_path / "a")])
    assert path == tmp_path / "a" / "report.html"
    text = path.read_text()
    assert "{{" not in text.split('<script type="application/json"')[0]
    assert not re.search(r'(?:src|href)="(?!data:)', text)  # nothing to fetch
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    (run,) = data_of(path)["runs"]
    assert run["steps"] == 40 and len(run["curves"]["reward"]) == 40
    assert run["curves"]["heldout.pass@1"][0][0] == 10 and len(run["curves"]["heldout.pass@1"]) == 4
    assert run["tokens"] == 40 * 3000 and run["seconds"] == 40.0
    assert len(run["rewards"]) == 40 and len(run["rewards"][0]["groups"]) == 8
    assert {r[0] for r in run["rewards"][0]["groups"][7]["rows"]} == {0.0}


def test_text_of_a_run_cannot_leave_its_script_element(tmp_path):
    folder = make_run(tmp_path / "a", rollouts=False)
    lines(folder / "events.jsonl", [{"step": 0, "kind": "start", "message": "</script><script>alert(1)</script>"}])
    path = report([folder])
    assert data_of(path)["runs"][0]["events"][0]["message"] == "</script><script>alert(1)</script>"
    assert "alert(1)</script>" not in path.read_text()


def test_missing_files_are_left_out(tmp_path):
    (tmp_path / "bare").mkdir()
    lines(tmp_path / "bare" / "metrics.jsonl", [{"step": 1, "reward": 0.5, "loss": float("nan")}])
    (run,) = data_of(report([tmp_path / "bare"], tmp_path / "out" / "page.html"))["runs"]
    assert run["evaluation"] == {} and run["rewards"] == [] and run["events"] == [] and run["config"] == {}
    assert run["curves"] == {"reward": [[1, 0.5]], "loss": [[1, None]]}


def test_a_line_cut_short_by_a_crash_is_left_out_and_a_broken_one_is_named(tmp_path):
    folder = make_run(tmp_path / "a", steps=5, rollouts=False)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 6, "rew')
    assert read_run(folder)["steps"] == 5
    metrics.write_text("{oops\n" + metrics.read_text())
    with pytest.raises(InputError, match=r"metrics.jsonl line 1: not JSON"):
        report([folder])


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a run folder"):
        report([tmp_path / name])
    with pytest.raises(InputError, match="no run given"):
        report([])


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    first, second = make_run(tmp_path / "x" / "run", rollouts=False), make_run(tmp_path / "y" / "run", rollouts=False)
    path = report([first, second], tmp_path / "both.html")
    assert [r["name"] for r in data_of(path)["runs"]] == ["x/run", "y/run"]


def test_long_runs_keep_first_and_last_steps(tmp_path):
    assert evenly(list(range(1, 1001)), 60)[::59] == [1, 1000]
    run = read_run(make_run(tmp_path / "a", steps=130))
    kept = [s["step"] for s in run["rewards"]]
    assert len(kept) == 60 and kept[0] == 1 and kept[-1] == 130 and kept == sorted(kept)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (surefoot[test])")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, request):
    """Opens a page of given width and scheme; fails on console errors and on any request that leaves the page."""
    complaints, pages = [], []

    def visit(path, width=1240, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield visit
    for page in pages:
        page.close()
    assert complaints == []


def photograph(page, name):
    """Keep a screenshot where SUREFOOT_SCREENSHOTS says."""
    folder = os.environ.get("SUREFOOT_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    panel = page.get_by_role("tabpanel")
    assert panel.count() == 1  # the others are hidden
    return panel


def test_every_tab_in_a_real_browser(tmp_path, opened):
    page = opened(report([make_run(tmp_path / "first-light")]))
    evaluation = json.loads((tmp_path / "first-light" / "evaluation.json").read_text())
    assert page.get_by_role("heading", level=1).inner_text() == "grpo on rg:chain_sum"

    panel = page.get_by_role("tabpanel")
    assert f"{100 * evaluation['after']['pass@1']:.1f}%" in panel.inner_text()
    assert "64 held-out problems" in panel.inner_text() and "pebble" in panel.inner_text()
    assert re.search(r"Seed\s+0", panel.inner_text()) and re.search(r"Tokens in all\s+120", panel.inner_text())
    assert panel.locator("svg circle").count() >= 6
    photograph(page, "overview")

    panel = open_tab(page, "Curves")
    for name in ("Held-out accuracy", "Reward", "Entropy", "KL divergence", "Response length", "Gradient norm"):
        assert name in panel.inner_text()
    panel.locator('[data-curve="reward"] svg').hover()
    assert re.search(r"Reward\s+step \d+: 0\.\d+", page.locator("#tip").inner_text())
    assert panel.locator("path.raw").count() > 3
    panel.get_by_label("Smooth").uncheck()
    assert panel.locator("path.raw").count() == 0
    photograph(page, "curves")

    panel = open_tab(page, "Samples")
    samples = evaluation["before"]["samples"]
    assert panel.locator(".pair").count() == len(samples)
    assert panel.locator(".said.is-right").count() == sum(
        s["correct"] for side in ("before", "after") for s in evaluation[side]["samples"]
    )
    assert "<b>so</b>" in panel.locator("pre").first.inner_text()  # text stays text
    panel.get_by_role("button", name="Now correct").click()
    fixed = sum(not a["correct"] and b["correct"] for a, b in zip(samples, evaluation["after"]["samples"], strict=True))
    assert panel.locator(".pair").count() == fixed > 0
    photograph(page, "samples")

    panel = open_tab(page, "Rewards")
    assert "64 trajectories" in panel.inner_text() and panel.locator(".group").count() == 8
    assert panel.locator(".group.silent").count() >= 2
    assert "no signal: all 0" in panel.inner_text()
    slider = panel.get_by_role("slider")
    box, seen = slider.bounding_box(), []
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    page.mouse.down()  # a drag over several steps
    for share in (0.7, 0.4, 0.1):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        seen.append(int(slider.input_value()))
    page.mouse.up()
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == 3
    slider.press("Home")
    assert "Step 1 40 of 40 steps" in re.sub(r"\s+", " ", panel.inner_text())
    panel.locator(".group").nth(3).click()
    assert panel.locator("table tbody tr").count() == 8
    photograph(page, "rewards")

    panel = open_tab(page, "Configuration")
    assert 'name = "grpo"' in panel.inner_text() and "[method.advantage]" in panel.inner_text()
    photograph(page, "configuration")

    panel = open_tab(page, "Events")
    assert panel.locator("tbody tr").count() == 3 and "entropy fell by half" in panel.inner_text()
    page.keyboard.press("Home")  # arrow keys move between tabs
    assert page.get_by_role("tab", name="Overview").get_attribute("aria-selected") == "true"


def test_a_run_whose_steps_are_no_tokens_does_not_speak_of_tokens(tmp_path, opened):
    page = opened(report([make_run(tmp_path / "control", unit="actions")]))
    assert re.search(r"Actions in all\s+120", page.get_by_role("tabpanel").inner_text())
    panel = open_tab(page, "Curves")
    for name in ("Entropy (nats per action)", "Length (actions)", "Actions a second"):
        assert name in panel.inner_text()
    for tab in ("Curves", "Rewards", "Events"):
        assert "oken" not in open_tab(page, tab).inner_text()


def test_several_runs_overlay_in_dark_on_a_phone(tmp_path, opened):
    folders = [make_run(tmp_path / "grpo-seed0"), make_run(tmp_path / "dapo-seed0", seed=1, final=0.6, method="dapo")]
    page = opened(report(folders, tmp_path / "report.html"), width=420, scheme="dark")
    assert page.get_by_role("heading", level=1).inner_text() == "2 runs compared"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    photograph(page, "overview-phone-dark")
    panel = open_tab(page, "Curves")
    assert panel.locator('[data-curve="reward"] path.curve').count() == 2
    panel = open_tab(page, "Configuration")
    assert 'name = "grpo"' in panel.inner_text()
    page.get_by_label("Run").select_option("dapo-seed0")
    assert 'name = "dapo"' in panel.inner_text()
    panel = open_tab(page, "Rewards")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    photograph(page, "rewards-phone-dark")


def test_a_bare_run_says_what_is_missing(tmp_path, opened):
    (tmp_path / "bare").mkdir()
    lines(tmp_path / "bare" / "metrics.jsonl", [{"step": 1, "reward": 0.5}])
    page = opened(report([tmp_path / "bare"]))
    assert "no evaluation yet" in page.get_by_role("tabpanel").inner_text()
    for tab, text in (
        ("Samples", "not been evaluated"),
        ("Rewards", "no rollouts"),
        ("Configuration", "no config.toml"),
        ("Events", "Nothing happened"),
    ):
        assert text in open_tab(page, tab).inner_text()
    assert "Reward" in open_tab(page, "Curves").inner_text()
