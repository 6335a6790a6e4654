"""The page of runs in a real browser: live, after a kill, by keyboard, with hostile names, and as a file."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.serving.chromium import CHROMIUM, launched
from tests.serving.watch.conftest import XSS, watching, write_run

pytest.importorskip("uvicorn", reason="the extra [web] is not installed")

from automodel_cli.config.schema.watching import ReportConfig
from automodel_cli.metrics.log_file import METRICS_NAME, encode_record
from automodel_cli.recipes import report
from automodel_cli.serving.web.guard import Rules

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if CHROMIUM is None:
    pytest.skip("there is no chromium here", allow_module_level=True)
expect = playwright.expect
STEPS = "name => [...(store.runs.get(name)?.parts?.get('train')?.curves.get('loss').x ?? [])]"


@pytest.fixture(scope="module")
def browser():
    with launched(playwright) as running:
        yield running


@pytest.fixture
def opened(browser):
    """Opens pages, which must have no errors in their consoles and ask nobody else."""
    problems: list[str] = []
    contexts = []

    def open_page(url: str, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        own = (url.split("#")[0], "blob:", "data:")
        page.on("request", lambda one: None if one.url.startswith(own) else problems.append(one.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    told = ("status of 401", "net::ERR_")  # which the browser tells too: no key yet, the server has gone first
    assert [one for one in problems if not any(text in one for text in told)] == []


def card(page, title: str):
    return page.locator(".card", has=page.get_by_role("heading", name=title, exact=True))


def in_log(folder: Path) -> list[int]:
    records = map(json.loads, (folder / METRICS_NAME).read_text().splitlines())
    return [record["step"] for record in records if record["kind"] == "train"]


def test_points_appear_as_they_are_logged(opened, tmp_path):
    write_run(tmp_path / "a")
    with watching(tmp_path, poll_s=0.2) as server:
        page = opened(server.url)
        expect(page.get_by_role("status")).to_have_text("Live")
        expect(card(page, "Loss (nats per token)").locator(".legend")).to_contain_text("validation0.3")
        assert page.evaluate(STEPS, "a") == list(range(1, 21))
        lags = []
        for step in range(21, 26):
            write_run(tmp_path / "a", range(step, step + 1))
            written = time.monotonic()
            page.wait_for_function("step => store.runs.get('a').parts.get('train').ends[1] === step", arg=step)
            lags.append(time.monotonic() - written)
            expect(page.locator("#runs")).to_contain_text(str(step))
        assert sorted(lags)[len(lags) // 2] < 1.0, lags
        assert page.evaluate(STEPS, "a") == list(range(1, 26))
        titles = page.locator(".card h2").all_inner_texts()
        assert titles[:3] == ["Loss (nats per token)", "Loss by source", "Learning rate"] and "Step time (s)" in titles
        write_run(tmp_path / "later", range(1, 4))
        expect(page.get_by_role("checkbox", name="later")).to_be_visible(timeout=10_000)


def test_a_killed_run_that_resumes(opened, tiny_training):
    """Every step once, whatever the page saw before the kill."""
    tiny_training.run.mkdir()
    each = {"step_scheduler": {"log_every_steps": 1, "max_steps": 6, "ckpt_every_steps": 2, "val_every_steps": None}}
    with watching(tiny_training.run) as server:
        page = opened(server.url)
        killed = tiny_training.train(kill=("step", 4), **each)
        assert killed.returncode != 0
        before = in_log(tiny_training.run)
        assert before == [1, 2, 3]  # and the checkpoint is that of step 2
        page.wait_for_function(f"steps => ({STEPS})('run').length === steps", arg=len(before))
        assert page.evaluate(STEPS, "run") == before
        again = tiny_training.train(**each)
        assert again.returncode == 0, again.stderr
        page.wait_for_function(f"() => ({STEPS})('run').at(-1) === 6")
        assert page.evaluate(STEPS, "run") == in_log(tiny_training.run) == list(range(1, 7))
        expect(page.locator("#events")).to_contain_text("were made again from a checkpoint")
        expect(page.locator("#runs")).to_contain_text("finished")


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.torture)])
def test_many_kills_with_the_page_open(opened, tmp_path, kills):
    """At no instant is there a step twice or out of order, and in the end there are those of the file."""
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", range(1, 2))
    pids = "() => [...store.runs.get('run').parts.get('train').curves.get('pid').y]"
    with watching(tmp_path / "run") as server:
        page = opened(server.url)
        page.wait_for_function("() => store.runs.get('run')?.parts")
        script = Path(__file__).with_name("log_and_die.py")
        killer = subprocess.Popen([sys.executable, str(script), str(tmp_path / "run"), str(kills), "1"])
        looks = 0
        while killer.poll() is None:
            steps = page.evaluate(STEPS, "run")
            assert all(a < b for a, b in itertools.pairwise(steps)), steps
            looks += 1
        assert killer.returncode == 0 and looks > kills / 4
        expected = in_log(tmp_path / "run")
        assert expected == list(range(1, len(expected) + 1))
        page.wait_for_function("last => store.runs.get('run').parts.get('train').ends[1] === last", arg=expected[-1])
        page.wait_for_timeout(500)
        records = map(json.loads, (tmp_path / "run" / METRICS_NAME).read_text().splitlines())
        written = [record["pid"] for record in records if record["kind"] == "train"]
        if len(expected) < 1500:  # the page has all points, not thinned ones
            assert page.evaluate(STEPS, "run") == expected
            assert page.evaluate(pids) == written  # of the process whose step counts, not of one that was killed
        validated = page.evaluate("() => [...store.runs.get('run').parts.get('val/default').curves.get('loss').x]")
        assert validated == [step for step in expected if step % 7 == 0]


def test_a_server_that_goes_away_and_comes_back(opened, tmp_path):
    write_run(tmp_path / "a")
    with watching(tmp_path) as server:
        page = opened(server.url)
        expect(page.get_by_role("status")).to_have_text("Live")
        page.context.set_offline(True)
        page.evaluate("() => store.place = '1-1'")  # as if that server had been started anew
        server.hub._say({"what": "facts", "run": "a"})
        write_run(tmp_path / "a", range(21, 23))
        page.context.set_offline(False)
        page.wait_for_function("() => store.runs.get('a').parts.get('train').ends[1] === 22", timeout=60_000)
        assert page.evaluate(STEPS, "a") == list(range(1, 23))


def drag(page, title: str, start: float, end: float) -> None:
    canvas = card(page, title).locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=3)
    page.mouse.up()


def test_the_address_keeps_the_view(opened, tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, range(1, 201))
    with watching(tmp_path) as server:
        page = opened(server.url)
        expect(page.locator(".card").first).to_be_visible()
        drag(page, "Learning rate", 0.5, 0.8)
        page.get_by_label("log loss").check()
        page.get_by_label("raw").uncheck()
        page.get_by_role("checkbox", name="b").uncheck()
        expect(page.get_by_role("button", name="Whole run")).to_be_enabled()
        low, high = page.evaluate("[view.low, view.high]")
        assert 80 < low < 110 and 150 < high < 180
        page.wait_for_function("() => store.runs.get('a').parts.get('train').curves.get('loss').x[0] > 50")
        page.reload()
        expect(page.get_by_role("checkbox", name="b")).not_to_be_checked()
        expect(page.get_by_label("log loss")).to_be_checked()
        expect(page.get_by_label("raw")).not_to_be_checked()
        assert page.evaluate("view.low") == pytest.approx(low, rel=1e-4)
        page.wait_for_function("() => store.runs.get('a').parts?.get('train').curves.get('loss').x[0] > 50")
        card(page, "Learning rate").locator("canvas").dblclick()
        page.wait_for_function("() => store.runs.get('a').parts.get('train').curves.get('loss').x[0] === 1")
        page.get_by_label("x axis").select_option("tokens")
        page.wait_for_function("() => store.runs.get('a').parts.get('train').curves.get('loss').x.at(-1) === 20000")
        assert "x=tokens" in page.url and "low" not in page.url


def test_hostile_names_and_texts_are_texts(opened, tmp_path):
    from tests.serving.watch.test_app import write_hostile_runs

    folders = write_hostile_runs(tmp_path)
    with watching(tmp_path) as server:
        page = opened(f"{server.url}/#x=<img src=x onerror=window.hacked=1>&low=<b>&hide=<script>")
        for number in range(len(folders)):
            box = page.get_by_role("checkbox", name=str(number), exact=True)
            box.check()
        expect(page.locator(".card").first).to_be_visible()
        page.wait_for_function("count => document.querySelectorAll('.sample').length >= count", arg=len(folders))
        for button in page.get_by_role("button", name=re.compile("^Table")).all()[:3]:
            button.click()
        assert page.evaluate("window.hacked") is None and page.evaluate("({}).hacked") is None
        inside = "#runs tbody, #charts, #sections"
        odd = ":is(script, img, svg, iframe, a, style, math, base, meta, body, textarea)"
        assert page.evaluate(f"document.querySelectorAll('{inside}').length") == 3
        assert page.locator(f":is({inside}) {odd}").count() == 0
        shown = page.locator(".sample").all_inner_texts()
        expected = [text.strip() for text in XSS if not set(text) & set("\ud800\u2028")]
        assert all(any(text in one for one in shown) for text in expected)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(opened, tmp_path, scheme):
    write_run(tmp_path / "a-run-with-a-long-name-of-many-words", range(1, 101))
    with watching(tmp_path) as server:
        page = opened(server.url, viewport={"width": 320, "height": 640}, color_scheme=scheme)
        expect(page.locator(".card").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (scheme == "dark") == (sum(map(int, re.findall(r"\d+", back))) < 300)


def test_the_keyboard_and_a_screen_reader_are_enough(opened, tmp_path):
    write_run(tmp_path / "a", range(1, 101))
    with watching(tmp_path) as server:
        page = opened(server.url)
        loss = card(page, "Loss (nats per token)")
        canvas = loss.get_by_role("img", name=re.compile(r"Chart of Loss .* over step\. train: last 0\.05 at 100"))
        expect(canvas).to_be_visible()
        canvas.focus()
        page.keyboard.press("ArrowLeft")
        expect(loss.locator("[aria-live]")).to_have_text(re.compile(r"^49\.\d+: train 0\.1"))
        page.keyboard.press("+")
        expect(page.get_by_role("button", name="Whole run")).to_be_enabled()
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Whole run")).to_be_disabled()
        loss.get_by_role("button", name="Table").press("Enter")
        table = loss.get_by_role("table")
        expect(table.get_by_role("columnheader").nth(1)).to_have_text("train")
        assert table.get_by_role("row").count() == 26
        names = page.evaluate(
            "[...document.querySelectorAll('button, select, input, canvas, progress')].map(one => one.textContent || "
            "one.labels?.[0]?.textContent || one.getAttribute('aria-label') || '')"
        )
        assert all(name.strip() for name in names)


def test_a_key_is_asked_for(opened, tmp_path):
    from automodel_cli.serving.watch.app import OPEN_PATHS

    write_run(tmp_path / "a")
    with watching(tmp_path, rules=Rules(key="sesame", open_paths=OPEN_PATHS)) as server:
        page = opened(server.url)
        page.get_by_role("textbox", name="API key").fill("wrong")
        page.get_by_role("textbox", name="API key").press("Enter")
        expect(page.get_by_role("textbox", name="API key")).to_be_visible()
        page.get_by_role("textbox", name="API key").fill("sesame")
        page.get_by_role("button", name="Open").click()
        expect(card(page, "Learning rate")).to_be_visible()


def test_a_report_opens_from_the_disk(opened, tmp_path):
    folder = write_run(tmp_path / "runs" / "<b>a", range(1, 3001), losses=lambda step: 9 / step)
    with (folder / METRICS_NAME).open("ab") as handle:
        sample = {"prompt": XSS[6], "text": XSS[0]}
        handle.write(encode_record({"kind": "eval", "step": 3000, "core": 0.1, "samples": [sample]}))
    (path,) = report.run(ReportConfig(runs=(str(tmp_path / "runs"),), output=str(tmp_path / "r.html")))
    assert path.stat().st_size < 2_000_000
    page = opened(f"file://{path}#x=tokens&smooth=0", offline=True)
    expect(page.get_by_role("heading", name="<b>a", exact=True).first).to_be_visible()
    expect(card(page, "CORE")).to_be_visible()
    assert page.evaluate("store.runs.get('<b>a').parts.get('train').ends[1]") == 300_000
    drag(page, "Learning rate", 0.5, 0.8)
    expect(page.get_by_role("button", name="Whole run")).to_be_enabled()
    expect(page.locator(".sample")).to_have_text(XSS[6] + XSS[0])
    assert page.evaluate("window.hacked") is None
