"""Who is asked: which run, and with which sampler."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.ask.plan import newest_finished, plan_asking
from flows.console.errors import UserError
from flows.settings.load import load_settings
from schemas.settings.sampling import TransformersSamplerSettings, VllmServerSamplerSettings
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_run


def test_the_newest_finished_run_is_asked(tmp_path: Path) -> None:
    storage = Storage(Workspace.open(tmp_path))
    with pytest.raises(UserError, match="has no run with a policy; train one with sdsearch train quickstart"):
        newest_finished(storage)
    record = make_run("early").model_copy(update={"status": "running"})
    storage.create_run(record)
    with pytest.raises(UserError, match="ask one as it is with --run early"):
        newest_finished(storage)
    for day, run, status in ((2, "older", "done"), (4, "stopped", "interrupted"), (3, "newer", "done")):
        moment = record.updated_at.replace(day=day)
        storage.create_run(record.model_copy(update={"run": run, "status": status, "updated_at": moment}))
    assert newest_finished(storage).run == "newer"


def test_servers_that_a_run_samples_with_are_left_alone(tmp_path: Path) -> None:
    """Their weights are those of the training that goes on."""
    settings = load_settings("tiny", ["sampling.kind=vllm_server", "sampling.urls=['http://gpu:8000']"])
    storage = Storage(Workspace.open(tmp_path))
    storage.create_run(make_run("first").model_copy(update={"settings_json": settings.model_dump_json()}))
    plan, _ = plan_asking("first", None, "", [], "greedy", tmp_path)
    assert plan.settings.sampling == TransformersSamplerSettings()
    plan, _ = plan_asking("first", None, "", ["sampling.timeout_s=5"], "greedy", tmp_path)
    assert isinstance(plan.settings.sampling, VllmServerSamplerSettings)
