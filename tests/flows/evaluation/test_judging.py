"""The judge of evaluations: what it is asked and what is kept of it; it changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.app import run_command
from flows.evaluation.stage import EVALUATE
from flows.run.stage_inputs import input_hash
from flows.settings.load import load_settings
from schemas.errors import UserError
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.judging import FakeJudge, Reply, judging

FOUR = ["evaluate", "--config", "tiny", "--datasets", "world:dev", "--num-questions", "4"]
_VERDICTS = "SELECT question_key, judged_right, reply FROM evaluation_verdicts WHERE run = $run ORDER BY ALL"


def of(judge: FakeJudge, **changes: Any) -> list[str]:
    """The options that name a judge, which is asked once for each answer."""
    values = {"url": judge.url, "model": "m", "retries": 0, "concurrency": 1, **changes}
    return [word for name, value in values.items() for word in ("--set", f"evaluation.judge.{name}={value}")]


def golden(prompt: str) -> Reply:
    """Call right what is among the golden answers, as the prompt has them."""
    lines = dict(line.split(": ", 1) for line in prompt.splitlines() if ": " in line)
    return 200, "yes" if lines["Answer"] in lines["Golden answers"].split("; ") else "no"


def rows(workspace: Path, sql: str, **named: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Storage(Workspace(workspace)).database.query(sql, named).to_pylist()
    return found


def stages(workspace: Path) -> list[str]:
    return [row["stage"] for row in rows(workspace, "SELECT stage FROM stages WHERE status = 'done' ORDER BY ALL")]


def test_a_judge_is_no_part_of_what_decides_an_evaluation() -> None:
    plain = load_settings("tiny")
    judged = load_settings("tiny", ["evaluation.judge.url=http://h:1", "evaluation.judge.model=m"])
    assert judged.evaluation.judge.model == "m"
    assert judged.content_hash() == plain.content_hash()
    assert input_hash(judged, EVALUATE, [], "code") == input_hash(plain, EVALUATE, [], "code")


def test_a_judge_without_a_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"names a server, and evaluation\.judge\.model no model there; name it"):
        load_settings("tiny", ["evaluation.judge.url=http://h:1"])


def test_a_key_that_is_not_there_is_said_before_anything_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with judging(golden) as judge:
        train = ["train", "tiny", "--no-prefect", "--set", "evaluation.judge.while_training=true"]
        for command in (FOUR, train):
            assert run_command([*command, "--workspace", str(tmp_path), *of(judge, api_key_env="JUDGE_KEY")]) == 2
            said = " ".join(capsys.readouterr().err.split())
            assert "evaluation.judge.api_key_env: the environment has no JUDGE_KEY; export it" in said
        assert not judge.bodies
    assert not Workspace(tmp_path).run_files()


@pytest.mark.long
def test_answers_are_judged_once_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(name: str, *options: str) -> int:
        return run_command([*FOUR, "--name", name, "--workspace", str(tmp_path), *options])

    monkeypatch.setenv("JUDGE_KEY", "secret")
    assert evaluate("e") == 0
    assert "judge:" not in capsys.readouterr().out
    assert stages(tmp_path) == ["evaluate"]
    answers = rows(tmp_path, "SELECT * FROM evaluation_answers ORDER BY question_key")
    with judging(golden) as judge:
        assert evaluate("e", *of(judge, api_key_env="JUDGE_KEY")) == 0
        printed = capsys.readouterr().out
        assert "judge: the share of answers that m calls right, prompt " in printed
        assert len(judge.bodies) == len({(a["question"], a["answer"]) for a in answers if a["answer"]}) > 0
        assert set(judge.keys) == {"Bearer secret"}
        kept = rows(tmp_path, _VERDICTS, run="e")
        assert [row["judged_right"] for row in kept] == [answer["em"] == 1.0 for answer in answers]
        (share,) = rows(tmp_path, "SELECT model, prompt, num_questions, judged_right FROM judged_evaluations")
        right = sum(row["judged_right"] for row in kept) / 4
        assert (share["model"], share["num_questions"], share["judged_right"]) == ("m", 4, right)
        assert "{golden_answers}" in share["prompt"]
        assert f"{right:.3f}" in next(line for line in printed.splitlines() if "world" in line)

        asked = len(judge.bodies)
        assert evaluate("e", *of(judge)) == 0, "the stage has them"
        Workspace(tmp_path).verdict_cache.unlink()
        assert evaluate("e", *of(judge)) == 0, "the stage has them, also without the cache"
        assert evaluate("e", *of(judge, model="n")) == 0, "another judge"
        assert len(judge.bodies) == 2 * asked
        assert evaluate("f", *of(judge, model="n")) == 0, "another evaluation of the same answers"
        assert len(judge.bodies) == 2 * asked
    assert rows(tmp_path, "SELECT * FROM evaluation_answers WHERE run = 'e' ORDER BY question_key") == answers
    before = rows(tmp_path, _VERDICTS, run="e")
    assert run_command(["db", "rebuild", "--workspace", str(tmp_path)]) == 0
    assert rows(tmp_path, _VERDICTS, run="e") == before
    assert "secret" not in "".join(path.read_text() for path in Workspace(tmp_path).run_files())


@pytest.mark.long
def test_an_evaluation_goes_on_after_a_judge_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = True

    def at_times(prompt: str) -> Reply:
        return (402, "no credit") if failing and len(judge.bodies) > 2 else golden(prompt)

    with judging(at_times) as judge:
        assert run_command([*FOUR, "--name", "e", "--workspace", str(tmp_path), *of(judge)]) == 2
        line = " ".join(capsys.readouterr().err.split())
        assert f"the judge at {judge.url}/chat/completions refused: status 402, 'no credit'; correct" in line
        assert "all 4 answers are kept, and 2 of 4 verdicts: continue with sdsearch resume e" in line
        assert (stages(tmp_path), len(judge.bodies)) == (["evaluate"], 3)
        failing = False
        assert run_command(["resume", "e", "--workspace", str(tmp_path)]) == 0
        assert (stages(tmp_path), len(judge.bodies)) == (["evaluate", "judge"], 5)
    assert len(rows(tmp_path, _VERDICTS, run="e")) == 4
    assert run_command(["db", "check", "--workspace", str(tmp_path)]) == 0


@pytest.mark.long
def test_a_run_that_trains_is_judged_only_where_it_says_so_and_never_stops_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["iterations=1", "evaluation.modes=['greedy']", "evaluation.num_questions=4"]
    options = [text for override in small for text in ("--set", override)]

    def train(run: str, *more: str) -> None:
        command = ["train", "tiny", "--run", run, "--no-prefect", "--workspace", str(tmp_path), *options, *more]
        assert run_command(command) == 0

    with judging(golden) as judge:
        train("unjudged", *of(judge))
        assert not judge.bodies
        train("judged", *of(judge, while_training="true"))
        assert judge.bodies
        said = capsys.readouterr().out
        assert "calls" in said
        assert "right after 1 updates" in said
        judge.reply = lambda prompt: (503, "loading")
        train("failed", *of(judge, while_training="true", model="n"))
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: the judge")]
        assert len(warnings) == 2
        assert all("the run goes on without the others" in line for line in warnings)
    judged = rows(tmp_path, "SELECT run, iteration, judged_right FROM judged_evaluations ORDER BY ALL")
    ems = rows(tmp_path, "SELECT run, iteration, em FROM evaluations WHERE run = 'judged' ORDER BY ALL")
    assert [tuple(row.values()) for row in judged] == [tuple(row.values()) for row in ems], "the judge took EM"
    runs = rows(tmp_path, "SELECT status, policy_sha256 FROM runs")
    assert {row["status"] for row in runs} == {"done"}
    assert len({row["policy_sha256"] for row in runs}) == 1, "no reward"
    judge_stages = rows(tmp_path, "SELECT run, status FROM stages WHERE stage = 'judge'")
    assert {(row["run"], row["status"]) for row in judge_stages} == {("judged", "done")}
