"""A run as one HTML file, and its groups in the terminal."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from flows.app import run_command
from flows.inspect.show_groups import print_group
from flows.inspect.web.report import report
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.errors import UserError
from storage.errors import StorageError
from storage.workspace import Workspace
from tests.flows.inspect.conftest import group_path, judge, rows, told


def test_a_report_is_one_file_with_the_run_its_figures_and_its_groups(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    report("first", None, out, workspace, Console())
    text = out.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "it needs no other file"
    for shown in ("Largest credit", "settings.toml", "sdsearch train settings.toml", 'id="chart-data"', "uPlot"):
        assert shown in text
    evaluations = rows(workspace, "SELECT em FROM evaluations WHERE updates_done = 2")
    assert evaluations
    for row in evaluations:
        assert f"{row['em']:.3f} ±" in text
    assert [line for line in told(workspace) if line in html.unescape(text)] == told(workspace)
    assert "<th>judge</th>" not in text
    judge(workspace)
    report("first", None, out, workspace, Console())
    assert '<td class="n">0.123</td>' in out.read_text(encoding="utf-8")
    assert text.count('class="token r') > 3


def test_a_report_s_settings_train_the_same_run(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    report("first", None, out, workspace, Console())
    toml = html.unescape(out.read_text(encoding="utf-8").rsplit("<pre>", 1)[1].split("</pre>")[0])
    file = tmp_path / "settings.toml"
    file.write_text(toml, encoding="utf-8")
    stored = open_storage(workspace).ledger.get_run("first").settings_hash
    assert load_settings(str(file)).content_hash() == stored


@pytest.mark.parametrize(
    ("run", "study", "says"), [(None, None, "name of a run"), ("a", "b", "name of a run"), ("none", None, "none")]
)
def test_a_report_of_nothing_is_one_line(
    workspace: Path, tmp_path: Path, run: str | None, study: str | None, says: str
) -> None:
    with pytest.raises((UserError, StorageError), match=says):
        report(run, study, tmp_path / "report.html", workspace, Console())
    assert not (tmp_path / "report.html").exists()


def test_a_group_in_the_terminal_has_every_query_and_colours_by_credit(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = group_path(workspace, "abs(teacher_logprob - student_logprob) > 0.3").split("/")
    iteration, group = int(path[4]), unquote(path[6])
    console = Console(force_terminal=True, color_system="truecolor", width=200)
    print_group(Workspace(workspace), "first", iteration, group, console)
    said = capsys.readouterr().out
    shown = re.sub(r"\x1b\[[0-9;]*m", "", said)
    for row in rows(workspace, f"SELECT query FROM searches WHERE iteration = {iteration} AND group_id = '{group}'"):
        assert row["query"] in shown
    assert "what the teacher read" in shown
    assert len(set(re.findall(r"48;2;\d+;\d+;\d+", said))) > 2, "tokens have the colours of their credit"


def test_an_iteration_in_the_terminal_lists_its_groups_and_names_one(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["show", "first", "1", "--workspace", str(workspace)]) == 0
    said = capsys.readouterr().out
    groups = [row["group_id"] for row in rows(workspace, "SELECT group_id FROM groups WHERE iteration = 1")]
    assert all(group in said for group in groups)
    command = said[said.index("one of them: sdsearch ") + len("one of them: sdsearch ") :].split()
    assert run_command(command) == 0
    assert run_command(["show", "first", "7", "--workspace", str(workspace)]) == 2
    assert "has no groups of iteration 7" in capsys.readouterr().err
