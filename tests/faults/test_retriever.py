"""A retriever that is down, slow, or answers with garbage: an error that names the query, and no rollout of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.ledger import StageKey
from schemas.passage import Passage, SearchHit
from schemas.question import Question
from sdsearch.retrieval.dense import DenseRetriever
from sdsearch.retrieval.ports import RetrieverDownError, search_all
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from storage.artifacts import ArtifactStore
from storage.ledger import Ledger
from storage.workspace import Workspace
from tests.builders import make_question, make_tokenizer
from tests.crash.compare import differences, snapshot
from tests.fakes import FixedRetriever, ScriptedSampler
from tests.faults.runs import RUN, quick, train

HIT = SearchHit(passage=Passage(id="1", title="t", text="x"), score=1.0)
LIMITS = RolloutLimits(3, 64, 200, 60, 512, 2)


class Answering:
    """A retriever that does what it is told."""

    def __init__(self, answer: Callable[[Sequence[str]], Any]) -> None:
        self._answer = answer

    def search(self, queries: Sequence[str], top_k: int) -> Any:
        return self._answer(queries)


def raising(error: Exception) -> Callable[[Sequence[str]], Any]:
    def answer(queries: Sequence[str]) -> Any:
        raise error

    return answer


def roll_out(retriever: Any) -> list[Any]:
    tokenizer = make_tokenizer()
    texts = ["<search> river </search>", "<answer> tree </answer>"]
    script = ScriptedSampler(
        lambda key, turn: (tokenizer.encode(texts[turn], add_special_tokens=False), "search_closed")
    )
    loop = RolloutLoop(tokenizer, script, retriever, LIMITS, "compact")
    return loop.roll_out([make_question(0)], run_seed=1, iteration=1, policy_version=0, group_size=3, temperature=1.0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raising(RetrieverDownError("nobody there")), "RetrieverDownError: nobody there"),
        (raising(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (raising(TimeoutError("no answer within 60 s")), "no answer within 60 s"),
        (raising(RuntimeError("index corrupted")), "index corrupted"),
        (raising(KeyError("result")), "KeyError: 'result'"),
        (lambda queries: [(HIT,)] * (len(queries) - 1), "it returned 2 results"),
        (lambda queries: [(HIT,)] * (len(queries) + 1), "it returned 4 results"),
        (lambda queries: [], "it returned 0 results"),
        (lambda queries: None, "it returned NoneType results"),
        (lambda queries: "abc", "which are no passages"),
        (lambda queries: [(HIT,), None, (HIT,)], r"river' \(2 of 3\): it returned 'None', which are no passages"),
        (lambda queries: [(HIT,), [{"document": {}}], ()], r"\(2 of 3\).*which are no passages"),
        (lambda queries: [(HIT,), (HIT,) * 3, ()], r"\(2 of 3\): it returned 3 passages of at most 2"),
        (lambda queries: [(), (), (HIT.model_copy(update={"score": float("nan")}),)], "score is not finite"),
    ],
)
def test_an_answer_that_is_none_names_the_query(answer: Callable[..., Any], reason: str) -> None:
    with pytest.raises(RetrieverDownError, match=reason) as caught:
        roll_out(Answering(answer))
    assert "the retriever failed on query 'river' (" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slow_retriever_gives_what_a_quick_one_gives() -> None:
    quick_one = FixedRetriever()

    def slowly(queries: Sequence[str]) -> Any:
        time.sleep(0.2)
        return quick_one.search(queries, 2)

    assert roll_out(Answering(slowly)) == roll_out(FixedRetriever())


def test_no_query_asks_nobody_and_lists_are_answers() -> None:
    assert search_all(Answering(raising(OSError("down"))), [], 3) == []
    assert search_all(Answering(lambda queries: [[HIT], []]), ["a", "b"], 3) == [(HIT,), ()]


def test_groups_that_were_finished_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The retriever goes down in the second of two batches; the first is not rolled out again."""
    settings = quick(
        "model.path=mini",
        "iterations=1",
        "data.questions_per_iteration=2",
        "rollout.max_searches=1",
        "rollout.max_new_tokens=16",
    )
    train(tmp_path / "undisturbed", settings)
    workspace = tmp_path / "broken"
    search, roll_out_all = DenseRetriever.search, RolloutLoop.roll_out
    rolled_out: list[str] = []

    def search_until_a_piece_is_there(self: DenseRetriever, queries: Sequence[str], top_k: int) -> Any:
        if pieces(workspace):
            raise ConnectionRefusedError(111, "Connection refused")
        return search(self, queries, top_k)

    def roll_out_and_note(self: RolloutLoop, questions: Sequence[Question], **settings: Any) -> Any:
        rolled_out.extend(question.id for question in questions if settings["group_size"] > 1)
        return roll_out_all(self, questions, **settings)

    monkeypatch.setattr(RolloutLoop, "roll_out", roll_out_and_note)
    with monkeypatch.context() as patch:
        patch.setattr(DenseRetriever, "search", search_until_a_piece_is_there)
        with pytest.raises(RetrieverDownError, match=r"failed on query '.*Connection refused.*sdsearch resume"):
            train(workspace, settings)
    (first, second), rolled_out[:] = tuple(rolled_out), []
    assert len(pieces(workspace)) == 1
    key = StageKey(run=RUN, iteration=1, stage="sample")
    (attempt,) = Ledger(ArtifactStore(Workspace(workspace))).history(key).attempts
    assert attempt.status == "failed"
    assert "Connection refused" in attempt.error
    train(workspace)
    assert rolled_out[0] == second
    assert first not in rolled_out
    assert differences(snapshot(workspace), snapshot(tmp_path / "undisturbed")) == []


def pieces(workspace: Path) -> list[Path]:
    return sorted(workspace.glob("artifacts/**/piece-groups-*.parquet"))
