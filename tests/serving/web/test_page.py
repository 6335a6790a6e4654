"""The chat page in a real browser."""

from __future__ import annotations

import json
import re

import pytest
from tests.serving.chromium import CHROMIUM, launched
from tests.serving.web.conftest import serving

from automodel_cli.serving.web.guard import Rules

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if CHROMIUM is None:
    pytest.skip("there is no chromium here", allow_module_level=True)
expect = playwright.expect

XSS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<a href='javascript:window.hacked=1'>click</a>",
    '"><body onload=window.hacked=1>',
    "</textarea></div><script>window.hacked=1</script>",
    "<style>*{display:none}</style>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.hacked=1>",
    "{{constructor.constructor('window.hacked=1')()}}",
    '[click](javascript:window.hacked=1) ![x](x" onerror="window.hacked=1)',
    "<base href='http://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    'data: {"error": {"message": "<b>x</b>"}}',
    "data: [DONE]",
]


@pytest.fixture(scope="module")
def browser():
    with launched(playwright) as running:
        yield running


@pytest.fixture
def page(browser, echo):
    """The page, which must have no errors in its console and ask nobody else."""
    echo.model.delay_s = 0.0
    context = browser.new_context(base_url=echo.url)
    opened = context.new_page()
    problems: list[str] = []
    refused = "status of 400"  # which the browser tells too

    def heard(message) -> None:
        if message.type == "error" and refused not in message.text:
            problems.append(message.text)

    opened.on("console", heard)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request", lambda one: None if one.url.startswith((echo.url, "blob:", "data:")) else problems.append(one.url)
    )
    opened.goto("/")
    expect(opened.get_by_role("heading", name="echo")).to_be_visible()
    yield opened
    context.close()
    echo.model.delay_s = 0.0
    assert problems == []


def say(page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def bubbles(page):
    return page.locator("#messages .bubble")


def test_send_and_stream(page, echo):
    echo.model.delay_s = 0.01
    text = "a long answer, letter by letter: " + "na " * 20
    say(page, text)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator("li[aria-busy=true] .bubble")).to_have_text(re.compile("^a long"))
    assert len(bubbles(page).nth(1).inner_text()) < len(text)  # it is there before it is whole
    expect(page.get_by_role("status")).to_have_text(f"{len(text)} tokens")
    expect(bubbles(page).nth(1)).to_have_text(text)
    expect(page.locator(".speed")).to_have_text(re.compile(r"^\d+\.\d tokens/s$"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_stop_keeps_what_has_come(page, echo, eventually):
    echo.model.delay_s = 0.01
    say(page, "x" * 390)
    expect(bubbles(page).nth(1)).to_have_text(re.compile("x"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    eventually(lambda: echo.engine.active == 0)
    kept = bubbles(page).nth(1).inner_text()
    assert 0 < len(kept) < 390
    say(page, "y" * 390)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Your message")).to_be_focused()


def test_regenerate_and_edit(page):
    say(page, "? one")
    expect(page.get_by_role("status")).to_have_text(re.compile("400 tokens, cut"))
    first = bubbles(page).nth(1).inner_text()
    page.get_by_role("button", name="Regenerate").click()
    expect(bubbles(page).nth(1)).not_to_have_text(first)
    expect(page.get_by_role("status")).to_have_text(re.compile("400 tokens, cut"))
    say(page, "two")
    expect(bubbles(page)).to_have_count(4)
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit your message").fill("three")
    page.get_by_label("Edit your message").press("Enter")
    expect(bubbles(page)).to_have_text(["three", "three"])
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_role("button", name="Cancel").click()
    expect(bubbles(page)).to_have_text(["three", "three"])


def test_a_reload_keeps_conversation_and_settings(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tokens at most").fill("3")
    page.get_by_label("System message").fill("be brief")
    page.get_by_role("button", name="Close").click()
    say(page, "abcdef")
    expect(bubbles(page)).to_have_text(["abcdef", "abc"])
    page.reload()
    expect(bubbles(page)).to_have_text(["abcdef", "abc"])
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Tokens at most")).to_have_value("3")
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.9")
    page.get_by_role("button", name="Close").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    saved = json.loads(download.value.path().read_text())
    assert [message["content"] for message in saved["messages"]] == ["be brief", "abcdef", "abc"]
    page.get_by_role("button", name="New").click()
    expect(bubbles(page)).to_have_count(0)


def test_nothing_that_is_said_becomes_html(page):
    said = ["\n".join(XSS[first : first + 5]) for first in range(0, len(XSS), 5)]
    for text in said:
        say(page, text)
        expect(page.get_by_role("status")).to_have_text(f"{len(text)} tokens")
        assert bubbles(page).nth(-1).evaluate("one => one.textContent") == text
        assert bubbles(page).nth(-1).evaluate("one => one.childElementCount") == 0
    page.reload()
    expect(bubbles(page)).to_have_count(2 * len(said))
    assert page.evaluate("window.hacked") is None
    assert page.locator("#messages :is(script, img, svg, iframe, a, style, math, base, meta)").count() == 0
    assert page.url.startswith("http://127.0.0.1")


def test_a_stored_conversation_of_somebody_else_is_text_too(page):
    evil = {"messages": [{"role": XSS[1], "content": XSS[1], "error": XSS[1], "speed": XSS[1]}], "settings": {}}
    page.evaluate("text => localStorage.setItem('automodel-chat', text)", json.dumps(evil))
    page.reload()
    expect(bubbles(page)).to_have_text([XSS[1]])
    assert page.locator("#messages img").count() == 0 and page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 320, "height": 568})
    say(page, "w" * 300)
    expect(bubbles(page)).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for name in ("New", "Export", "Settings", "Send"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320
    page.get_by_role("button", name="Settings").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 320


def test_the_keyboard_is_enough(page):
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(bubbles(page).nth(1)).to_have_text("one\ntwo")
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "Copy"
    names = page.evaluate(
        "[...document.querySelectorAll('button, textarea, input')].map(one => one.textContent || one.labels?.[0]"
        "?.textContent || one.getAttribute('aria-label') || '')"
    )
    assert all(name.strip() for name in names)


def test_errors_are_told(page, echo):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tokens at most").fill("2000")
    page.get_by_role("button", name="Close").click()
    say(page, "x")
    expect(page.get_by_role("alert")).to_have_text("max_tokens is 2,000, at most 1,000 are allowed")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Defaults").click()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Regenerate").click()
    expect(bubbles(page)).to_have_text(["x", "x"])


def test_a_key_is_asked_for(browser):
    with serving(rules=Rules(key="sesame")) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.get_by_role("status")).to_have_text(re.compile("API key"))
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("API key").fill("sesame")
        page.get_by_label("API key").press("Tab")
        expect(page.get_by_role("heading", name="echo")).to_be_attached()
        page.get_by_role("button", name="Close").click()
        say(page, "open")
        expect(bubbles(page)).to_have_text(["open", "open"])
        page.close()
