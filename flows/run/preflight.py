"""What is asked before a run begins: `train` stops at the first refusal, `doctor` prints every answer.

Whatever makes a start impossible is asked here, so that both give the same answer. A check that needs the model, the
tokenizer, the questions or the retriever takes them from the runtime, which loads each once.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from flows.plugins.check import check_sinks, open_plugins
from flows.run.block_room import block_room
from flows.run.cards import engine_cards, rank_cards
from flows.run.live import Runtime
from flows.run.policy import check_device, check_ranks, set_threads
from flows.run.progress import Reporter
from schemas.settings.root import Settings
from sdsearch.credit.divergence import try_divergence
from sdsearch.credit.gates import try_gate
from sdsearch.credit.teacher import check_support
from sdsearch.model.policy import check_tokens
from sdsearch.training.selfcheck import check_model, ordinary_tokens
from storage.errors import DamagedArtifactError
from storage.storage import Storage
from storage.workspace import Workspace, link_shared_folders

_TRIAL = "trial"
logger = logging.getLogger(__name__)


class StartCheck(NamedTuple):
    """One thing that must hold before a run begins.

    `look` returns in a few words what was found; it raises UserError or StorageError for what the run cannot begin
    with, and the message says what to do.
    """

    name: str
    look: Callable[[Runtime], str]


def check_start(runtime: Runtime) -> None:
    """Load what the settings name and ask everything; the first refusal is raised, before anything is done."""
    for check in START_CHECKS:
        check.look(runtime)


@contextmanager
def open_trial(settings: Settings, workspace: Workspace, reporter: Reporter) -> Iterator[Runtime]:
    """Open live objects as a run of these settings would, to ask whether it can begin; `workspace` stays as it is.

    What is written on the way (an index that is built at a start) goes to a folder that is removed; corpora and
    indexes that the workspace has are used.
    """
    set_threads(settings)
    with tempfile.TemporaryDirectory() as folder:
        trial = Workspace.open(folder)
        link_shared_folders(workspace, trial)
        runtime = Runtime(settings, _TRIAL, Storage(trial), reporter)
        try:
            yield runtime
        finally:
            runtime.close()


def _plugins(runtime: Runtime) -> str:
    names = open_plugins(runtime.settings)
    if runtime.settings.distils:
        try_divergence(runtime.settings.distillation)
        try_gate(runtime.settings.distillation)
    return ", ".join(names)


def _trackers(runtime: Runtime) -> str:
    return ", ".join(check_sinks(runtime.settings)) or "none"


def _device(runtime: Runtime) -> str:
    device = runtime.settings.model.device
    check_device(device)
    distributed = runtime.settings.distributed
    check_ranks(device, distributed.ranks_per_node)
    rank_cards(runtime.settings)
    machines = f" on {distributed.nodes} machines" if distributed.nodes > 1 else ""
    return device if distributed.ranks == 1 else f"{device}, {distributed.ranks} ranks{machines}"


def _sampler(runtime: Runtime) -> str:
    _ = runtime.sampler
    engine_cards(runtime.settings)
    return runtime.settings.sampling.kind


def _retriever(runtime: Runtime) -> str:
    fingerprint = runtime.index_fingerprint
    runtime.try_search()
    return f"index {fingerprint[:16]}, answers"


def _questions(runtime: Runtime) -> str:
    num_training, num_evaluated = runtime.questions.read_all(runtime.evaluated_sets)
    return f"{num_training} to train on, {num_evaluated} to evaluate on"


def _frame(runtime: Runtime) -> str:
    kind = "the tokenizer's chat template" if runtime.prompts.frame.head else "plain text"
    return f"{kind}, {runtime.prompts.frame.num_tokens} tokens around a question"


def _policy(runtime: Runtime) -> str:
    """A run that has checkpoints goes on with them: its starting weights are not read again."""
    if runtime.storage.checkpoints.versions(runtime.run):
        return f"checkpoints of run '{runtime.run}'"
    runtime.policy.move_to(0)
    check_tokens(runtime.policy.model, runtime.policy.tokenizer)
    return type(runtime.policy.model).__name__


def _support(runtime: Runtime) -> str:
    if runtime.policy.model is None:  # The run goes on from checkpoints, and was asked when it began.
        return "checked when the run started"
    check_support(runtime.policy.model, runtime.settings.distillation)
    return f"{runtime.settings.distillation.support}, fits the vocabulary"


def _prompts(runtime: Runtime) -> str:
    """Every question is measured: none ends the run in a later iteration."""
    questions = runtime.questions
    _ = questions.curriculum
    asked = [*questions.training, *(question for name in runtime.evaluated_sets for question in questions.of(name))]
    longest = max(runtime.prompts.measure.lengths(asked))
    return f"{len(asked)} prompts of at most {longest} tokens{_room(runtime, longest)}"


def _room(runtime: Runtime, longest: int) -> str:
    """Return how many searches the context holds at the settings' caps; a warning where not one is sure to fit."""
    context, rollout = runtime.prompts.context_tokens, runtime.settings.rollout
    if context is None:
        return ""
    each = rollout.max_new_tokens + rollout.max_observation_tokens
    num_searches = max(0, min(rollout.max_searches, (context - longest - rollout.max_new_tokens) // each))
    if not num_searches:
        logger.warning(
            "the context of %d tokens does not hold the longest prompt (%d tokens) with one search at the settings' "
            "caps (rollout.max_new_tokens = %d, rollout.max_observation_tokens = %d): rollouts may end before they "
            "can answer; lower these, or choose a model with a longer context",
            context,
            longest,
            rollout.max_new_tokens,
            rollout.max_observation_tokens,
        )
    return f"; the context holds {num_searches} of {rollout.max_searches} searches at their longest"


def _numbers(runtime: Runtime) -> str:
    """Ask it of a resumed run's newest checkpoint that can be read: other libraries may be installed by now."""
    policy = runtime.policy
    if policy.model is None and not _open_newest(runtime):
        return "checked when the run started"
    differences = check_model(
        policy.model,
        runtime.sampler.in_process(policy),
        ordinary_tokens(policy.tokenizer, policy.model),
        longest=min(runtime.sampler.max_context_tokens(policy), runtime.settings.longest_conversation),
        tolerance=runtime.settings.model.check_tolerance,
        dropout=runtime.settings.update.dropout,
    )
    return ", ".join(f"{found.path} within {found.largest:.0e}" for found in differences) + " nats of the plain model"


def _open_newest(runtime: Runtime) -> bool:
    for version in reversed(runtime.storage.checkpoints.versions(runtime.run)):
        try:
            runtime.policy.move_to(version)
        except DamagedArtifactError:
            continue  # The run makes it again, or refuses when it needs it.
        return True
    return False


def _hindsight(runtime: Runtime) -> str:
    settings = runtime.settings
    if not settings.distils:
        return "never distilled"
    if runtime.policy.model is None:
        return "checked when the run started"
    room, lacking = block_room(settings, runtime.policy.max_context_tokens)
    if lacking:
        runtime.note_once("room", lacking)
    return lacking or f"room for {room} tokens beside the longest rollout"


START_CHECKS: tuple[StartCheck, ...] = (
    StartCheck("start: plugins", _plugins),
    StartCheck("start: trackers", _trackers),
    StartCheck("start: device", _device),
    StartCheck("start: sampler", _sampler),
    StartCheck("start: retriever", _retriever),
    StartCheck("start: questions", _questions),
    StartCheck("start: template", _frame),
    StartCheck("start: policy", _policy),
    StartCheck("start: support", _support),
    StartCheck("start: numbers", _numbers),
    StartCheck("start: prompts", _prompts),
    StartCheck("start: hindsight", _hindsight),
)
"""In the order in which they are asked; a later one may rely on the earlier ones."""
