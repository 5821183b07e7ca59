"""Where jobs are done: one at a time in each place, each with a card of its own where there are several."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from flows.jobs.orders import AnswerOrder, TrainOrder
from flows.jobs.processes import Job, JobFailure, Places, carry_out_jobs
from flows.run.cards import cards_of
from storage.workspace import Workspace


def test_cards_are_dealt_in_turn_and_one_card_is_not_named() -> None:
    assert Places.of(3, ("0", "1")).environments == tuple({"CUDA_VISIBLE_DEVICES": card} for card in "010")
    assert Places.of(2, ("0",)).environments == ({}, {})
    assert Places.of(2).environments == ({}, {})


def test_the_cards_of_a_process_are_those_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7f")
    assert cards_of("cuda") == ("3", "GPU-7f")
    assert cards_of("cuda:1") == cards_of("cpu") == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cards_of("cuda") == ()


def test_each_place_does_one_job_at_a_time_with_its_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys; sys.stdin.readline(); card = os.environ['CUDA_VISIBLE_DEVICES']; "
        "place = os.open(card, os.O_CREAT | os.O_EXCL); print('card', card, flush=True); os.remove(card); "
        "sys.exit(card == '8')"
    )
    monkeypatch.setattr("flows.jobs.processes._command", lambda: [sys.executable, "-c", code])
    monkeypatch.chdir(tmp_path)
    workspace, told = Workspace.open(tmp_path / "workspace"), list[str]()
    order = TrainOrder(run="r", workspace="w", settings_json="{}", alike=())
    jobs = [
        Job(f"j{number}", f"job {number}", order, f"start {number}", partial(workspace.open_log, f"j{number}"))
        for number in range(5)
    ]
    failures = carry_out_jobs(jobs, workspace, Places.of(2, ("7", "8")), told.append)
    on = {job.name: workspace.log(job.name).read_text(encoding="utf-8").strip() for job in jobs}
    assert set(on.values()) == {"card 7", "card 8"}
    assert {failure.name for failure in failures} == {name for name, card in on.items() if card == "card 8"}
    assert all(f.reason == f"card 8 (log: {workspace.log(f.name)})" for f in failures)
    assert isinstance(failures[0], JobFailure)
    at_work = [1 if line.startswith("start ") else -1 for line in told]
    assert at_work.count(1) == 5
    assert max(sum(at_work[:place]) for place in range(len(told))) == 2, "no more at one time than there are places"
    assert sum(" done in " in line for line in told) == 5 - len(failures)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ or os.environ["CUDA_VISIBLE_DEVICES"] not in ("7", "8")


def test_orders_are_told_apart_by_their_kind() -> None:
    from flows.jobs.orders import ORDERS

    order = TrainOrder(run="r", workspace="w", settings_json="{}", alike=("s",))
    assert ORDERS.validate_json(order.model_dump_json()) == order
    assert not isinstance(ORDERS.validate_json(order.model_dump_json()), AnswerOrder)
