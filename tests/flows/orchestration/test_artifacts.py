"""What Prefect's pages show of a run: the summary's curve and table, the parameters' descriptions, the log's lines."""

from __future__ import annotations

import base64
import logging
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from prefect.utilities.callables import parameter_schema

from flows.orchestration.artifacts import MAX_ROWS, curve_svg, curve_text, summary_markdown
from flows.orchestration.log_reporter import LogReporter
from flows.orchestration.study_flow import study_flow
from flows.orchestration.train_flow import train_flow
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from tests.support.records import make_evaluation

SVG = "{http://www.w3.org/2000/svg}"


def numbers(iteration: int) -> dict[str, float]:
    return {"iteration": float(iteration), "reward_mean": 0.1 * iteration, "em": 0.5, "grad_norm": 2.0}


def rows(last: int) -> dict[int, dict[str, float]]:
    return {iteration: numbers(iteration) for iteration in range(1, last + 1)}


def test_the_summary_has_a_row_an_iteration_the_latest_first() -> None:
    lines = summary_markdown("r1", 5, rows(3)).splitlines()
    assert lines[0] == "## r1: iteration 3 of 5"
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert table == [
        ["iteration", "reward", "EM"],
        ["3", "0.300", "0.500"],
        ["2", "0.200", "0.500"],
        ["1", "0.100", "0.500"],
    ]


def test_a_long_run_has_a_short_table_with_its_last_iteration() -> None:
    shown = [int(cell) for cell in re.findall(r"^\| (\d+) ", summary_markdown("r1", 200, rows(199)), re.MULTILINE)]
    assert shown[0] == 199
    assert len(shown) <= MAX_ROWS
    assert {first - second for first, second in pairwise(shown)} == {9}


def test_the_curve_is_an_image_in_the_text_itself() -> None:
    markdown = summary_markdown("r1", 5, rows(3))
    alt, encoded = re.findall(r"^!\[(.*)\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)$", markdown, re.MULTILINE)[0]
    assert alt == curve_text(rows(3)) == "reward ▂▂▃ 0.300, EM ▅▅▅ 0.500"
    assert base64.b64decode(encoded).decode() == curve_svg(5, rows(3))


def test_the_curve_rises_to_the_right_within_the_picture() -> None:
    picture = ElementTree.fromstring(curve_svg(5, rows(3) | {4: {"reward_mean": 7.0}}))
    width, height = int(picture.attrib["width"]), int(picture.attrib["height"])
    lines = [line.attrib["points"].split() for line in picture.iter(f"{SVG}polyline")]
    reward, em = ([tuple(map(float, point.split(","))) for point in line] for line in lines)
    assert (len(reward), len(em)) == (4, 3), "an iteration without a figure has no point"
    xs, ys = zip(*reward, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True), "up is less"
    assert all(0 <= x <= width and 0 <= y <= height for x, y in reward), "a reward above 1 stays inside"
    assert [text.text for text in picture.iter(f"{SVG}text")][-2:] == ["reward", "EM"]


@pytest.mark.parametrize("flow", [train_flow, study_flow])
def test_every_parameter_of_a_flow_is_described_in_prefects_form(flow: object) -> None:
    properties = parameter_schema(flow.fn).properties  # type: ignore[attr-defined]
    assert all(described.get("description") for described in properties.values()), properties
    assert "section.key=value" in properties.get("overrides", {}).get("description", "section.key=value")


class _Heard(SilentReporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        self.heard.append(f"iteration {iteration}")

    def warned(self, text: str) -> None:
        self.heard.append(text)


def test_the_flow_runs_log_has_the_terminals_lines(caplog: pytest.LogCaptureFixture) -> None:
    inner, log = _Heard(), logging.getLogger("flow_run")
    reporter = LogReporter(inner, log, lambda: True)
    report, _ = make_evaluation()
    with caplog.at_level(logging.INFO, "flow_run"):
        reporter.run_started("r1", load_settings("tiny", ["iterations=2"]), 1)
        reporter.evaluated(report)
        reporter.iteration_done(1, numbers(1))
        reporter.warned("nothing was found")
        reporter.run_done("r1")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "run r1: 2 iterations, model mini"
    assert [line for line in said if line.startswith("iteration 1/2  reward 0.100  EM 0.500")]
    assert [line for line in said if line.startswith("evaluation after ")]
    assert said[-1].startswith("run r1 done in ")
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == ["nothing was found"]
    assert inner.heard == ["iteration 1", "nothing was found"]


def test_nothing_is_logged_while_the_server_is_away(caplog: pytest.LogCaptureFixture) -> None:
    inner = _Heard()
    with caplog.at_level(logging.INFO, "flow_run"):
        LogReporter(inner, logging.getLogger("flow_run"), lambda: False).iteration_done(1, numbers(1))
    assert not caplog.records
    assert inner.heard == ["iteration 1"]
