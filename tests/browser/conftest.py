"""A real browser (Chromium, headless) on the pages of a workspace that was really trained: `make test-browser`."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from flows.inspect.web.server import build_app
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.study.plan import plan_runs
from flows.training.loop import train_plain
from schemas.records.study import Study, Variant
from storage.runs.studies import write_study
from storage.workspace import Workspace

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUICK = ("evaluation.num_questions=8", "data.questions_per_iteration=4", "model.torch_threads=1", "iterations=3")


STUDY = Study(
    name="pair",
    base="tiny",
    set=(*QUICK, "iterations=2", "rollout.group_size=2", "evaluation.every=1", "distillation.warmup_iterations=0"),
    baseline="grpo",
    seeds=(0, 1),
    variants={
        "sd": Variant(title="SD-Search"),
        "grpo": Variant(title="GRPO", set=("distillation.enabled=false",)),
    },
)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one with distillation from its first iteration and one without, and a study of two seeds each."""
    folder = tmp_path_factory.mktemp("browser") / "workspace"
    for run, change in (("sd", "distillation.warmup_iterations=0"), ("grpo", "distillation.enabled=false")):
        train_plain(load_settings("tiny", [*QUICK, change]), run, folder, SilentReporter())
    opened = Workspace(folder)
    write_study(opened, STUDY)
    for plan in plan_runs(STUDY):
        train_plain(plan.settings, plan.run, folder, SilentReporter())
    return folder


@pytest.fixture(scope="session")
def base_url(workspace: Path) -> Iterator[str]:
    config = uvicorn.Config(build_app(Workspace(workspace)), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium: the one that CHROMIUM names, an installed one, or Playwright's own."""
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        # Inside containers the sandbox of Chromium needs rights that they do not have.
        started = playwright.chromium.launch(executable_path=named, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, base_url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in light or dark; at its end nothing was on the console, and no request went anywhere else."""
    context = browser.new_context(
        base_url=base_url, color_scheme=request.param, viewport={"width": 1280, "height": 900}
    )
    opened, heard = context.new_page(), list[str]()
    opened.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: heard.append(f"error: {error}"))
    opened.on("request", lambda sent: None if sent.url.startswith((base_url, "data:")) else heard.append(sent.url))
    yield opened
    context.close()
    assert heard == []
