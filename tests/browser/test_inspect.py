"""The inspector in a browser: curves drawn, tokens shaded, keys that move, new figures shown, readable on a phone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from rich.console import Console

from flows.inspect.web.report import report
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from tests.browser.conftest import QUICK

SHOTS = os.environ.get("SCREENSHOTS")
"""Folder for a picture of each page, none when it is not set."""


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        scheme = "dark" if is_dark(page) else "light"
        page.screenshot(path=Path(SHOTS) / f"{name}-{scheme}.png", full_page=True)


def is_dark(page: Page) -> bool:
    return bool(page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches"))


def open_mixed_group(page: Page) -> None:
    page.goto("/runs/sd/iterations/2?sort=credit")
    page.locator("table.list tbody a").first.click()
    page.wait_for_url("**/groups/*")
    expect(page.locator(".sibling")).to_have_count(4)


def is_painted(canvas: Locator) -> bool:
    """Return whether a chart is more than an empty canvas."""
    expect(canvas).to_be_visible()
    colours = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    return int(canvas.evaluate(colours)) > 10


def colour_of(page: Page, selector: str) -> str:
    return str(page.locator(selector).first.evaluate("element => getComputedStyle(element).backgroundColor"))


def test_runs_lead_to_a_run_with_curves(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("link", name="grpo", exact=True)).to_be_visible()
    shoot(page, "runs")
    page.get_by_role("link", name="sd", exact=True).click()
    charts = page.locator(".chart canvas")
    expect(charts.first).to_be_visible()
    assert charts.count() >= 12
    assert is_painted(charts.first)
    assert page.locator(".dag .node.done").count() >= 15
    expect(page.locator("svg .stage.done")).to_have_count(6)
    assert page.locator("svg .edge").count() == 9
    shoot(page, "run")


def test_a_group_s_tokens_are_shaded_in_four_ways(page: Page) -> None:
    open_mixed_group(page)
    shades = [f".siblings .r{number}" for number in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)]
    present = [shade for shade in shades if page.locator(shade).count()]
    assert len(present) >= 3
    colours = {colour_of(page, shade) for shade in present}
    assert len(colours) == len(present), "each shade has a colour of its own"
    assert "rgba(0, 0, 0, 0)" not in colours
    expect(page.locator(".legend.on")).to_contain_text("more likely to the teacher")
    for kind in ("jsd", "entropy", "gap"):
        page.locator("#shade").select_option(kind)
        expect(page.locator(".siblings")).to_have_attribute("data-shade", kind)
        expect(page.locator(".legend.on")).to_have_attribute("data-of", kind)
    page.locator("#shade").select_option("ratio")
    shoot(page, "group")


def test_a_token_that_is_pointed_at_or_focused_says_what_teacher_and_student_expected(page: Page) -> None:
    open_mixed_group(page)
    tokens, reading = page.locator(".siblings [data-reading]"), page.locator("#reading")
    expect(reading).to_have_count(0)
    tokens.nth(0).hover()
    expect(reading).to_contain_text("log p teacher")
    for side in ("teacher", "student"):
        line = reading.locator(f"p.{side}")
        expect(line).to_contain_text(f"{side}'s most probable:")
        assert line.locator("span, b").count() == 5
    tokens.nth(1).focus()
    said = json.loads(tokens.nth(1).get_attribute("data-reading") or "")
    expect(reading.locator("code")).to_have_text(said["token"])
    expect(reading).to_contain_text(f"student {said['student_logprob']:.3f}")
    shoot(page, "reading")
    page.keyboard.press("Escape")
    expect(reading).to_be_hidden()


def test_the_command_that_resumes_a_run_is_copied(page: Page, workspace: Path) -> None:
    run = f"stopped-{'dark' if is_dark(page) else 'light'}"
    train_plain(load_settings("tiny", [*QUICK, "iterations=1"]), run, workspace, SilentReporter())
    storage = open_storage(workspace)
    storage.update_run(storage.ledger.get_run(run).model_copy(update={"status": "failed", "num_iterations": 5}))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/runs/{run}")
    code = page.locator("code.copy")
    code.focus()
    page.keyboard.press("Enter")
    expect(code).to_have_attribute("data-copied", "copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"sdsearch resume {run}")
    assert copied == code.text_content()


def test_keys_move_between_groups_siblings_iterations_and_shadings(page: Page) -> None:
    page.goto("/runs/sd/iterations/2")
    first = page.locator("table.list tbody a").first
    first.click()
    page.wait_for_url("**/groups/*")  # And its script is loaded, which reads the keys.
    before = page.url
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url != before)
    page.keyboard.press("k")
    page.wait_for_url(before)
    for number in (0, 1):
        page.keyboard.press("l")
        expect(page.locator(".sibling").nth(number)).to_be_focused()
    page.keyboard.press("h")
    expect(page.locator(".sibling").nth(0)).to_be_focused()
    page.keyboard.press("s")
    expect(page.locator("#shade")).to_have_value("jsd")
    page.keyboard.press("d")
    assert page.locator("details.documents").first.evaluate("each => each.open")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.wait_for_url("**/iterations/3")
    page.keyboard.press("p")
    page.wait_for_url("**/iterations/2")
    page.keyboard.press("u")
    page.wait_for_url("**/runs/sd")


def test_tokens_questions_and_comparisons(page: Page) -> None:
    open_mixed_group(page)
    page.locator("article").first.get_by_role("link", name="tokens").click()
    expect(page.locator("table.tokens tr.policy").first).to_be_visible()
    assert page.locator("table.tokens tr.environment").count() > 0
    shoot(page, "tokens")
    page.go_back()
    page.get_by_role("link", name="this question over time").click()
    expect(page.locator("table.list tbody tr").first).to_be_visible()
    shoot(page, "question")
    page.goto("/compare?run=sd&run=grpo")
    expect(page.locator(".chart").first).to_contain_text("sd")
    expect(page.locator("main h2")).to_contain_text("Questions that flipped")
    shoot(page, "compare")


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_the_width_of_a_phone_and_of_a_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    open_mixed_group(page)
    group = page.url
    tokens = page.locator("article").first.get_by_role("link", name="tokens").get_attribute("href")
    question = page.get_by_role("link", name="this question over time").get_attribute("href")
    pages = {"runs": "/", "run": "/runs/sd", "groups": "/runs/sd/iterations/2", "group": group, "tokens": tokens}
    pages |= {"question": question, "compare": "/compare?study=pair&run=sd"}
    for name, address in pages.items():
        page.goto(address or "")
        expect(page.locator("h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if width < 640:
            shoot(page, f"phone-{name}")


def test_the_theme_can_be_changed_and_is_kept(page: Page) -> None:
    page.goto("/")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    changed = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert changed != before
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == changed


def test_variants_of_a_study_are_lines_with_bands_over_their_seeds(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="pair", exact=True).click()
    first = page.locator(".chart").first
    for label in ("GRPO (pair, 2 seeds)", "SD-Search (pair, 2 seeds)"):
        expect(first.locator(".u-legend")).to_contain_text(label)
    expect(page.get_by_label("SD-Search")).to_be_checked()
    expect(page.locator("main h2")).to_contain_text("Questions that flipped")
    page.get_by_label("sd", exact=True).check()
    page.get_by_role("button", name="Compare").click()
    expect(first.locator(".u-legend")).to_contain_text("sd")
    assert is_painted(page.locator(".chart canvas").first)
    shoot(page, "compare-variants")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("run", "study"), [("sd", None), (None, "pair")])
def test_a_report_is_opened_as_a_file(
    browser: Browser,
    workspace: Path,
    tmp_path: Path,
    run: str | None,
    study: str | None,
    scheme: Literal["light", "dark"],
) -> None:
    report(run, study, tmp_path / "report.html", workspace, Console())
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page, heard = context.new_page(), list[str]()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else heard.append(sent.url))
    page.goto((tmp_path / "report.html").as_uri())
    if run is not None:
        assert is_painted(page.locator(".chart canvas").first)
        page.locator("#shade").select_option("jsd")
        assert page.locator(".siblings[data-shade=jsd]").count() == page.locator(".siblings").count() > 0
    else:
        curves = page.locator("img.plot").first
        assert curves.evaluate("image => image.complete && image.naturalWidth > 300")
        expect(page.locator("table.list").first).to_contain_text("SD-Search")
    shoot(page, f"report-{run or study}")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert heard == []


@pytest.mark.parametrize("path", ["/runs/none", "/runs/sd/iterations/1/groups/none"])
def test_what_is_not_there_is_told_on_a_page(page: Page, path: str) -> None:
    answer = page.request.get(path)
    assert answer.status == 404
    assert "This page cannot be shown" in answer.text()


def test_a_run_that_goes_on_shows_its_new_iterations_by_itself(page: Page, workspace: Path) -> None:
    run = f"live-{'dark' if is_dark(page) else 'light'}"
    settings = load_settings("tiny", [*QUICK, "iterations=1"])
    train_plain(settings, run, workspace, SilentReporter())
    storage = open_storage(workspace)
    page.goto("/")
    row = page.locator("tr", has=page.get_by_role("link", name=run, exact=True))
    expect(row).to_contain_text("1/1")
    record = storage.ledger.get_run(run)
    storage.update_run(
        record.model_copy(update={"num_iterations": 7, "updated_at": record.updated_at.replace(year=2031)})
    )
    expect(row).to_contain_text("1/7", timeout=15_000)
