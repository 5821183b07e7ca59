"""A warm-up: evaluate, train on demonstrations from checkpoint to checkpoint, write the policy, evaluate again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from typing import NamedTuple

from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import print_line
from flows.evaluation.show import EvaluationReporter
from flows.evaluation.work import evaluate
from flows.run.policy import LivePolicy, check_device, set_threads
from flows.settings.load import describe_differences
from flows.warmup.plan import WarmupPlan
from flows.warmup.sources import make_batches, open_source
from schemas.records.warmup import WarmupFigures, WarmupRecord
from sdsearch.protocol.ports import open_protocol
from sdsearch.protocol.prompting import render_frame
from sdsearch.seeds import derive_seed
from sdsearch.training.supervised import Batch, Layout, learning_rate_at, take_step
from storage.errors import DamagedArtifactError
from storage.runs.lock import RunLock


class Steps(NamedTuple):
    """The parts of a warm-up in their order; Prefect has a task for each."""

    evaluate_before: Callable[[WarmupPlan, Console], None]
    train_on_demonstrations: Callable[[WarmupPlan, Console], None]
    evaluate_after: Callable[[WarmupPlan, Console], None]


def warm_up(plan: WarmupPlan, console: Console, steps: Steps | None = None) -> WarmupRecord:
    """Do what is not done yet and return the record; each step does nothing where it was done before.

    Raises UserError for a warm-up of the name with other settings, RunLockedError while another process works on it.
    """
    with RunLock(plan.storage.workspace, f"warmup-{plan.name}"):
        _begin(plan)
        for step in steps or PLAIN:
            step(plan, console)
        return _record(plan)


def evaluate_before(plan: WarmupPlan, console: Console) -> None:
    """Evaluate the model that the warm-up starts from."""
    record = _record(plan)
    if record.before is None:
        _keep(plan, record, before=_figures(plan, "before", console))


def evaluate_after(plan: WarmupPlan, console: Console) -> None:
    """Evaluate the policy that the warm-up made."""
    record = _record(plan)
    if record.after is None:
        _keep(plan, record, after=_figures(plan, "after", console))


def train_on_demonstrations(plan: WarmupPlan, console: Console) -> None:
    """Train from the newest checkpoint on and write the policy; UserError for a loss that is not finite."""
    record, store = _record(plan), plan.store
    if record.status == "done":
        store.verify_policy()
        return
    set_threads(plan.settings)
    check_device(plan.settings.model.device)
    policy = LivePolicy(plan.training, plan.name, store.checkpoints)
    policy.move_to(record.steps_done)
    record = _train(plan, policy, record, console)
    policy.model.eval()
    sha256 = store.write_policy(lambda folder: policy.export_to(folder, adapter=False))
    _keep(plan, record, status="done", policy_sha256=sha256)
    store.drop_checkpoints()


PLAIN = Steps(evaluate_before, train_on_demonstrations, evaluate_after)


def _train(plan: WarmupPlan, policy: LivePolicy, record: WarmupRecord, console: Console) -> WarmupRecord:
    settings = plan.settings.warmup
    source = open_source(plan.settings, plan.storage, _layout(plan, policy))
    if record.steps_done and source.fingerprint != record.demonstrations_sha256:
        raise UserError(
            f"warm-up '{plan.name}': what '{settings.demonstrations}' shows has changed since step "
            f"{record.steps_done}; begin anew with another --name"
        )
    batches = make_batches(plan.settings, source.draw, policy.max_context_tokens)
    losses, num_tokens, started = list(record.losses), record.num_tokens, time.monotonic()
    policy.model.train()
    for step, batch in enumerate(islice(batches, record.steps_done, settings.steps), record.steps_done + 1):
        losses.append(_step(plan, policy, batch, step))
        num_tokens += int((batch.weights_BT > 0).sum())
        if step % settings.checkpoint_every == 0 or step == settings.steps:
            policy.save_as(step)
            seconds = record.seconds + time.monotonic() - started
            changes = {"steps_done": step, "losses": tuple(losses), "num_tokens": num_tokens, "seconds": seconds}
            _keep(plan, record, **changes, demonstrations_sha256=source.fingerprint)
            plan.store.keep_newest(step)
            print_line(console, f"warm-up step {step}/{settings.steps}, loss {losses[-1]:.3f}, {seconds:.0f} s")
    return _record(plan)


def _step(plan: WarmupPlan, policy: LivePolicy, batch: Batch, step: int) -> float:
    settings, device = plan.settings.warmup, plan.settings.model.device
    rate = learning_rate_at(step - 1, settings.steps, settings.learning_rate, max(1, settings.steps // 10))
    seed = derive_seed(plan.settings.seed, "warmup step", step)
    loss = take_step(policy.model, policy.optimiser, Batch(*(part.to(device) for part in batch)), rate, seed)
    if not math.isfinite(loss):
        raise UserError(
            f"warm-up '{plan.name}': the loss of step {step} is {loss}; lower warmup.learning_rate "
            f"({settings.learning_rate:g}) and use another --name"
        )
    return loss


def _layout(plan: WarmupPlan, policy: LivePolicy) -> Layout:
    rollout = plan.settings.rollout
    protocol = open_protocol(rollout)
    frame = render_frame(policy.tokenizer, rollout.template, protocol, rollout.wording)
    room = plan.settings.hindsight.max_block_tokens
    return Layout(policy.tokenizer, protocol, frame, rollout.max_observation_tokens, room)


def _begin(plan: WarmupPlan) -> None:
    """Make the record where there is none; refuse one with other settings, and a policy that is gone."""
    known = plan.store.find()
    if known is None:
        now = datetime.now(UTC)
        settings = plan.settings.model_dump_json()
        made = WarmupRecord(
            name=plan.name,
            config=plan.config,
            settings_json=settings,
            code_version=version("sdsearch"),
            created_at=now,
            updated_at=now,
        )
        plan.storage.workspace.claim()
        plan.store.write(made)
    elif changes := describe_differences(known.settings_json, plan.settings):
        raise UserError(f"warm-up '{plan.name}' exists with other settings ({changes}); choose another one with --name")


def _record(plan: WarmupPlan) -> WarmupRecord:
    record = plan.store.find()
    if record is None:
        raise DamagedArtifactError(f"the record of warm-up '{plan.name}' is gone; start it anew with another --name")
    return record


def _keep(plan: WarmupPlan, record: WarmupRecord, **changes: object) -> None:
    plan.store.write(record.model_copy(update={**changes, "updated_at": datetime.now(UTC)}))


def _figures(plan: WarmupPlan, when: str, console: Console) -> WarmupFigures:
    evaluation = plan.evaluation(when, plan.store.policy if when == "after" else None)
    reporter = EvaluationReporter(console)
    try:
        (result,) = evaluate(evaluation, plan.storage, reporter)
    finally:
        reporter.close()
    return WarmupFigures(
        run=evaluation.run,
        valid_share=result.report.valid_share,
        em=result.report.em,
        f1=result.report.f1,
        searches_per_rollout=result.report.searches_per_rollout,
    )
