"""`sdsearch ask`: the rollout is the evaluation's, what is shown is the rollout, and a block is the teacher's."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from flows.app import run_command
from flows.ask.blocks import find_block
from flows.ask.plan import AskPlan, as_question, plan_asking
from flows.ask.show import TextAudience
from flows.ask.work import Agent, open_agent
from flows.console.errors import UserError
from flows.run.live import open_runtime
from flows.run.progress import SilentReporter
from schemas.records.asking import AskStep, BlockStep, EndStep, PassagesStep, WrittenStep
from schemas.records.rollout import Group, Rollout
from sdsearch.evaluation.answering import Asking, roll_out_once
from sdsearch.sampling.ports import TurnRequest
from storage.storage import Storage
from storage.workspace import Workspace

STEP: TypeAdapter[AskStep] = TypeAdapter(AskStep)
NORWAY = "What is the capital of Norway?"


class Steps:
    """An audience that keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[AskStep] = []

    def token(self, loop: object, token_id: int) -> None:
        """Keep nothing."""

    def turn(self, turn: object) -> None:
        """Keep nothing."""

    def step(self, step: AskStep) -> None:
        self.steps.append(step)

    def break_line(self) -> None:
        """Keep nothing."""


def plan_of(workspace: Path, mode: Any = "greedy") -> tuple[AskPlan, Storage]:
    return plan_asking("first", None, "quickstart", [], mode, workspace)


def ask(workspace: Path, audience: Any, *questions: str, hindsight: str | None = None, mode: Any = "greedy") -> list:
    """Return the rollouts of the questions."""
    plan, storage = plan_of(workspace, mode)
    with open_agent(plan, storage, hindsight, audience) as agent:
        return [agent.ask(question).rollouts[0] for question in questions]


def text_of(rollout: Rollout) -> str:
    parts = ((turn.generation.text, turn.observation.text if turn.observation else "") for turn in rollout.turns)
    return "".join(text for pair in parts for text in pair)


def test_the_rollout_is_the_evaluation_s(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Token by token, whatever else is in the evaluation's batch; and its answers are those that `evaluate` stores."""
    plan, storage = plan_of(workspace)
    options = ("--run", "first", "--num-questions", "5", "--name", "greedy", "--workspace", str(workspace))
    assert run_command(["evaluate", *options]) == 0
    capsys.readouterr()
    with open_runtime(plan.settings, "other", storage, SilentReporter(), "first") as live:
        questions = list(live.questions.of(live.evaluated_set))[:20]
        batch = roll_out_once(live.rollout_loop(1), questions, Asking("greedy", 1.0, plan.settings.evaluation.seed, 1))
    asked = ask(workspace, Steps(), *(question.question for question in questions))
    assert [one.token_ids for one in asked] == [group.rollouts[0].token_ids for group in batch]
    query = "SELECT question, answer, queries, num_completion_tokens AS n FROM evaluation_answers WHERE run = 'greedy'"
    stored = {row.pop("question"): row for row in Storage(Workspace(workspace)).database.query(query).to_pylist()}
    assert len(stored) == 5
    for question, rollout in zip(stored, ask(workspace, Steps(), *stored), strict=True):
        answered = {
            "answer": rollout.answer,
            "queries": list(rollout.queries),
            "n": len(rollout.completion_positions),
        }
        assert answered == stored[question]


def test_sampled_draws_the_same_again_and_not_the_greedy_one(workspace: Path) -> None:
    questions = [f"What is the capital of {land}?" for land in ("Norway", "Peru", "Rwanda", "Chad", "Oman", "Fiji")]
    once, again = (ask(workspace, Steps(), *questions, mode="sampled") for _ in range(2))
    assert [rollout.token_ids for rollout in once] == [rollout.token_ids for rollout in again]
    assert [r.token_ids for r in once] != [r.token_ids for r in ask(workspace, Steps(), *questions)]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_is_written_is_the_rollout(workspace: Path, is_terminal: bool) -> None:
    colours: Any = "truecolor" if is_terminal else None
    console = Console(file=io.StringIO(), force_terminal=is_terminal, color_system=colours, width=60)
    (rollout,) = ask(workspace, TextAudience(console), NORWAY)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    shown, _, ending = re.sub(r"\x1b\[[\d;]*m", "", written).rpartition("\n\nanswer: ")
    assert shown == text_of(rollout)
    assert ending.splitlines()[0] == rollout.answer
    assert ("\x1b[2;3m" in written) == is_terminal, "thinking is dim and italic, as in `sdsearch show`"


def test_text_appears_token_by_token(workspace: Path) -> None:
    """Each token is written before the next one is sampled."""
    console = Console(file=io.StringIO(), width=60)
    lengths: list[int] = []

    class Watched(TextAudience):
        def token(self, loop: Any, token_id: int) -> None:
            super().token(loop, token_id)
            lengths.append(len(console.file.getvalue()))  # type: ignore[attr-defined]

    (rollout,) = ask(workspace, Watched(console), NORWAY)
    first = len(rollout.turns[0].generation.token_ids)
    assert len(set(lengths[:first])) > first / 2
    assert lengths[first - 1] <= len(rollout.turns[0].generation.text)


def test_json_lines_are_the_steps(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ask", NORWAY, "--json", "--workspace", str(workspace)]) == 0
    steps = [STEP.validate_json(line) for line in capsys.readouterr().out.splitlines()]
    (rollout,) = ask(workspace, Steps(), NORWAY)
    end = steps[-1]
    assert isinstance(end, EndStep)
    assert (end.question, end.answer, end.queries) == (NORWAY, rollout.answer, rollout.queries)
    assert (end.policy, end.policy_version, end.mode) == ("run first, version 1", 1, "greedy")
    assert end.stop_reason == rollout.turns[-1].generation.stop_reason
    written = [step for step in steps if isinstance(step, WrittenStep)]
    assert sum(step.num_tokens for step in written) == end.num_completion_tokens == len(rollout.completion_positions)
    assert [step.text for step in written if step.kind == "query"] == list(rollout.written_queries)
    found = [step for step in steps if isinstance(step, PassagesStep)]
    assert [step.hits for step in found] == [turn.hits for turn in rollout.turns if turn.hits]
    assert sum(step.num_tokens for step in found) == end.num_observation_tokens
    assert [step.turn for step in steps[:-1]] == sorted(step.turn for step in steps[:-1])  # type: ignore[union-attr]


class Openings:
    """The sampler of an agent, and what opened its conversations."""

    def __init__(self, agent: Agent) -> None:
        self.inner = agent._loop.sampler
        self.tokens: list[tuple[int, ...]] = []
        object.__setattr__(agent._loop, "sampler", self)

    def converse(self, openings: list[TurnRequest], respond: Any) -> None:
        self.tokens += [opening.token_ids for opening in openings]
        self.inner.converse(openings, respond)


def test_the_policy_reads_the_block_as_the_teacher_does(workspace: Path) -> None:
    plan, storage = plan_of(workspace)
    stage = storage.ledger.history(next(key for key in storage.workspace.stage_keys("first") if key.stage == "sample"))
    assert stage.done is not None
    (reference,) = (ref for ref in stage.done.outputs if "groups" in ref.path)
    groups = storage.artifacts.read_records(reference, Group)
    rows = storage.database.query("SELECT group_id, text, token_ids FROM hindsight_blocks WHERE run = 'first'")
    blocks = {row["group_id"]: row for row in rows.to_pylist()}
    audience = Steps()
    with open_agent(plan, storage, "first", audience) as agent:
        openings = Openings(agent)
        for group in groups:
            agent.ask(f" {group.question.question.upper()}")
            block, prompt = blocks[group.id], group.prompt_token_ids
            head = prompt[: group.block_offset] + tuple(block["token_ids"])
            assert openings.tokens[-1][: len(head)] == head
            shown = [step for step in audience.steps if isinstance(step, BlockStep)][-1]
            assert (shown.text, shown.iteration) == (block["text"], 1)
            assert shown.num_tokens == len(block["token_ids"])
            agent.ask(group.question.question)
            assert openings.tokens[-1] == head + prompt[group.block_offset :], "byte by byte what its teacher read"
        with pytest.raises(
            UserError, match="run 'first' has sampled no question 'Who\\?'; those that it has: sdsearch"
        ):
            agent.ask("Who?")


def test_the_newest_block_is_shown(workspace: Path, tmp_path: Path) -> None:
    """A run that goes on may have sampled a question again without its block being there yet."""
    shutil.copytree(workspace, tmp_path / "copy")
    storage = Storage(Workspace(tmp_path / "copy"))
    question = storage.database.query("SELECT question FROM v_groups LIMIT 1").to_pylist()[0]["question"]
    with storage.database.transaction() as connection:
        for table, iteration in (("groups", 4), ("hindsight_blocks", 4), ("groups", 9)):
            columns = ", ".join(
                {"iteration": "$i", "text": "'newer'"}.get(name, name)
                for name in connection.execute(f"SELECT * FROM {table} LIMIT 0").fetchdf().columns
            )
            connection.execute(
                f"INSERT INTO {table} SELECT {columns} FROM {table} WHERE iteration = 1", {"i": iteration}
            )
    plan, reading = plan_of(tmp_path / "copy")
    with open_agent(plan, reading, "first", Steps()) as agent:
        found = find_block(reading, "first", question, agent._loop)
        assert (found.step.iteration, found.step.text) == (4, "newer")
        with storage.database.transaction() as connection:
            connection.execute("UPDATE hindsight_blocks SET focal_turn = 0")
        with pytest.raises(UserError, match="another block at each turn"):
            find_block(reading, "first", question, agent._loop)
        with storage.database.transaction() as connection:
            connection.execute("DELETE FROM hindsight_blocks")
        with pytest.raises(UserError, match="has built no hindsight block"):
            find_block(reading, "first", question, agent._loop)


def test_a_version_that_training_has_removed_meanwhile_is_not_missed(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workspace, tmp_path / "copy")
    plan, storage = plan_of(tmp_path / "copy")
    now = storage.ledger.get_run("first")
    records = iter([now.model_copy(update={"policy_version": 7})])
    monkeypatch.setattr(storage.ledger, "get_run", lambda run: next(records, now))
    with open_agent(plan, storage, None, Steps()) as agent:
        assert agent.version == now.policy_version == 1


def test_nothing_waits_for_the_database(workspace: Path) -> None:
    """A training holds it again and again; without --hindsight it is not opened."""
    with Storage(Workspace(workspace)).database.transaction():
        assert ask(workspace, Steps(), NORWAY)


def test_a_question_is_one_line_of_text() -> None:
    assert as_question("  Who? ").question == "Who?"
    assert as_question("Who?").key == as_question(" Who?").key != as_question("What?").key
