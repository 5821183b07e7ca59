"""A retriever that is down, slow, or answers with garbage: an error that names the query, and no rollout of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.inspect.db import rebuild
from flows.retrieval.open import open_local
from flows.run.progress import SilentReporter
from flows.settings.load import stored_settings
from flows.training.loop import train_plain
from schemas.errors import UserError
from schemas.records.ledger import StageKey
from schemas.records.passage import Passage, SearchHit
from schemas.records.question import Question
from schemas.settings.retrieval import HttpRetrievalSettings
from schemas.settings.root import Settings
from sdsearch.protocol.prompting import render_frame
from sdsearch.retrieval.cached import CachedRetriever
from sdsearch.retrieval.ports import RetrieverDownError, search_all
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from storage.database.connection import Database
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace
from tests.crash.compare import differences, snapshot
from tests.faults.runs import RUN, quick, train
from tests.support.builders import make_question, make_tokenizer
from tests.support.fakes import FixedRetriever, ScriptedSampler
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]

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
    loop = RolloutLoop(tokenizer, script, CachedRetriever(retriever), LIMITS, render_frame(tokenizer, "compact"))
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
    assert str(caught.value).startswith("the retriever failed on query 'river' (")
    assert str(caught.value).count("sdsearch resume") == 1
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
    """The server goes down in the second of two batches; the first is not rolled out again."""
    workspace = tmp_path / "broken"
    rolled_out: list[str] = []
    with served(tmp_path / "served") as server:
        settings = over_http(server.url)
        train(tmp_path / "undisturbed", settings)
        monkeypatch.setattr(RolloutLoop, "roll_out", noting(rolled_out, lambda: pieces(workspace) and server.stop()))
        with pytest.raises(RetrieverDownError, match=rf"failed on query '.*{server.url}: .*refused.*sdsearch resume"):
            train(workspace, settings)
        assert server.process.returncode == 0, "Ctrl-C is how a server is meant to end"
    (first, second), rolled_out[:] = tuple(rolled_out), []
    assert len(pieces(workspace)) == 1
    key = StageKey(run=RUN, iteration=1, stage="sample")
    (attempt,) = Ledger(ArtifactStore(Workspace(workspace))).history(key).attempts
    assert attempt.status == "failed"
    assert f"{server.url}: " in attempt.error
    with back_again(tmp_path / "served", server):
        train(workspace)
    assert rolled_out[0] == second
    assert first not in rolled_out
    assert differences(snapshot(workspace), snapshot(tmp_path / "undisturbed")) == []
    # A server may move; a run does not go on with another index than the one that it has searched.
    ledger = Ledger(ArtifactStore(Workspace(workspace)))
    with back_again(tmp_path / "served") as elsewhere:
        train(workspace, over_http(elsewhere))
    assert len(ledger.history(key).attempts) == 2, "nothing is sampled again"
    assert stored_settings(ledger.get_run(RUN)).retrieval.urls == (elsewhere,)
    with (
        back_again(tmp_path / "served", index="another") as other,
        pytest.raises(
            UserError, match=r"run 'run' has searched index .{16}, what \[retrieval\] names is index another"
        ),
    ):
        train(workspace, over_http(other))
    assert stored_settings(ledger.get_run(RUN)).retrieval.urls == (elsewhere,)


def test_a_run_with_a_cache_makes_the_same_rollouts(tmp_path: Path) -> None:
    settings = briefly()
    train(tmp_path / "plain", settings)
    cached = settings.model_copy(update={"retrieval": settings.retrieval.model_copy(update={"cache": True})})
    for run in ("first", "second"):
        train_plain(cached, run, tmp_path / "cached", SilentReporter())
    groups = [
        path.read_bytes()
        for root in ("plain", "cached")
        for path in sorted(tmp_path.glob(f"{root}/artifacts/*/*/stage=sample/groups.parquet"))
    ]
    assert len(groups) == 3
    assert len(set(groups)) == 1
    (inputs,) = {
        Ledger(ArtifactStore(Workspace(tmp_path / root)))
        .done(StageKey(run=run, iteration=1, stage="sample"))
        .input_hash
        for root, run in (("plain", RUN), ("cached", "first"))
    }
    assert inputs, "how an index is reached decides nothing"
    reports = Database(Workspace(tmp_path / "cached")).query(
        "SELECT run, stage, num_queries, cache_hit_share, index_hash FROM v_retrieval ORDER BY run, stage"
    )
    shares = {(row["run"], row["stage"]): row["cache_hit_share"] for row in reports.to_pylist()}
    assert {row["num_queries"] > 0 for row in reports.to_pylist() if row["stage"] == "sample"} == {True}
    assert shares["first", "sample"] < 1
    assert shares["second", "sample"] == 1


class FailingOnce(FixedRetriever):
    """Fails on its second call: the first is the trial at a run's start."""

    calls = 0
    failed: Sequence[str] = ()

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        self.calls += 1
        if self.calls == 2:
            self.failed = queries
            raise RuntimeError("out of memory")
        return super().search(queries, top_k)


def test_searches_whose_request_was_repeated_are_marked_and_change_nothing(tmp_path: Path) -> None:
    retriever = FailingOnce()
    with serving(retriever) as url:
        train(tmp_path / "disturbed", over_http(url))
    with serving(FixedRetriever()) as url:
        train(tmp_path / "undisturbed", over_http(url))
    workspace = Workspace(tmp_path / "disturbed")
    rows = Database(workspace).query("SELECT query, num_retries FROM searches ORDER BY ALL").to_pylist()
    assert {row["query"] for row in rows if row["num_retries"] == 1} == set(retriever.failed) != set()
    assert {row["num_retries"] for row in rows} == {0, 1}, "the second batch's request was not repeated"
    (report,) = Database(workspace).query("SELECT * FROM v_retrieval WHERE stage = 'sample'").to_pylist()
    assert {each["query"] for each in report["retried"]} == set(retriever.failed)
    assert report["num_retries"] == 1
    told = differences(snapshot(tmp_path / "disturbed"), snapshot(tmp_path / "undisturbed"))
    assert [line for line in told if "run.json" not in line and "table runs" not in line] == []
    rebuild(workspace.root, Console(quiet=True))
    assert Database(workspace).query("SELECT query, num_retries FROM searches ORDER BY ALL").to_pylist() == rows


def briefly() -> Settings:
    return quick(
        "model.path=mini",
        "iterations=1",
        "data.questions_per_iteration=2",
        "rollout.max_searches=1",
        "rollout.max_new_tokens=16",
    )


def over_http(url: str) -> Settings:
    retrieval = HttpRetrievalSettings(urls=(url,), max_attempts=2, backoff_s=0.01)
    return briefly().model_copy(update={"retrieval": retrieval})


def noting(rolled_out: list[str], before: Callable[[], object]) -> Callable[..., Any]:
    """`roll_out` that notes the questions of training and lets something happen first."""
    roll_out_all = RolloutLoop.roll_out

    def roll_out(self: RolloutLoop, questions: Sequence[Question], **settings: Any) -> Any:
        before()
        rolled_out.extend(question.id for question in questions if settings["group_size"] > 1)
        return roll_out_all(self, questions, **settings)

    return roll_out


@dataclass
class Served:
    """A process of `sdsearch retriever serve`."""

    process: subprocess.Popen[str]
    url: str

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


@contextmanager
def served(workspace: Path) -> Iterator[Served]:
    corpus = briefly().retrieval.corpus
    command = [sys.executable, "-m", "flows.app", "retriever", "serve", "tiny", "--port=0", f"--workspace={workspace}"]
    process = subprocess.Popen(
        [*command, "--set", f"retrieval.corpus={corpus}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        yield Served(process, process.stdout.readline().split()[0])
    finally:
        process.kill()
        process.communicate()


@contextmanager
def back_again(workspace: Path, former: Served | None = None, index: str | None = None) -> Iterator[str]:
    """The server in a thread, on its former port or another; `index` is what it says of itself when not the truth."""
    retriever, known = open_local(briefly().retrieval, Workspace(workspace))
    with serving(retriever, index=index or known, port=int(former.url.rpartition(":")[2]) if former else 0) as url:
        yield url


def pieces(workspace: Path) -> list[Path]:
    return sorted(workspace.glob("artifacts/**/partial-groups-*.parquet"))
