"""What earlier iterations sampled for the questions of this one (hindsight.memory), from the stages' files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from flows.run.stage_files import StageFiles
from schemas.records.ledger import ArtifactRef, StageKey, StageRecord
from schemas.records.question import Question
from schemas.records.rollout import Group
from schemas.records.run_kind import ForkKind
from schemas.records.score import Score
from schemas.settings.root import HindsightSettings
from sdsearch.credit.hindsight import ScoredGroup, is_homogeneous
from sdsearch.credit.scoring import scores_by_group
from storage.database.stage_rows import file_of
from storage.runs.artifacts import ArtifactStore
from storage.storage import Storage


@dataclass
class Memory:
    """Earlier groups by question, newest first, and the records of the stages that they were read from."""

    of_question: dict[str, list[ScoredGroup]] = field(default_factory=dict)
    read: list[StageRecord] = field(default_factory=list)


def remember(
    storage: Storage,
    files: StageFiles,
    settings: HindsightSettings,
    sampled: StageRecord,
    scored: StageRecord,
) -> Memory:
    """Return, for the questions whose group has one outcome, the newest `memory` earlier groups of each.

    Iterations before a fork's first are its source's, those of a replay are the run's that it replays. Raises
    DamagedArtifactError when a file that is read is missing or altered.
    """
    memory = Memory()
    if not settings.memory:
        return memory
    wanted = _homogeneous_questions(files, settings, sampled, scored)
    for earlier, earlier_scored in _earlier(storage, sampled.adopted_from or sampled.run, sampled.iteration):
        open_ones = {key for key in wanted if len(memory.of_question.get(key, [])) < settings.memory}
        if not open_ones:
            break
        if open_ones.isdisjoint(_questions_in(storage.artifacts, file_of(earlier, "groups"))):
            continue
        memory.read += [earlier, earlier_scored]
        for group in _scored_groups(storage.artifacts, earlier, earlier_scored):
            if group.group.question.key in open_ones:
                memory.of_question.setdefault(group.group.question.key, []).append(group)
    return memory


def _homogeneous_questions(
    files: StageFiles, settings: HindsightSettings, sampled: StageRecord, scored: StageRecord
) -> Collection[str]:
    of_group = scores_by_group(files.read(scored, "scores", Score))
    groups = [ScoredGroup(group, of_group[group.id]) for group in files.read(sampled, "groups", Group)]
    return {each.group.question.key for each in groups if is_homogeneous([each], settings)}


def _earlier(storage: Storage, run: str, iteration: int) -> Iterator[tuple[StageRecord, StageRecord]]:
    """Yield the done sample and score stages of the iterations before, newest first, through the sources of forks."""
    first = storage.ledger.start_of(run) + 1
    for before in range(iteration - 1, 0, -1):
        while before < first and isinstance(kind := storage.ledger.get_run(run).kind, ForkKind):
            run = kind.source
            first = storage.ledger.start_of(run) + 1
        sampled = storage.ledger.done(StageKey(run=run, iteration=before, stage="sample"))
        scored = storage.ledger.done(StageKey(run=run, iteration=before, stage="score"))
        if sampled and scored:
            yield sampled, scored


def _scored_groups(artifacts: ArtifactStore, sampled: StageRecord, scored: StageRecord) -> Sequence[ScoredGroup]:
    groups, scores = file_of(sampled, "groups"), file_of(scored, "scores")
    for file in (groups, scores):
        artifacts.verify(file)
    of_group = scores_by_group(artifacts.read_records(scores, Score))
    return [ScoredGroup(group, of_group[group.id]) for group in artifacts.read_records(groups, Group)]


@lru_cache(maxsize=4096)
def _questions_in(artifacts: ArtifactStore, groups: ArtifactRef) -> frozenset[str]:
    """Return the keys of a sample stage's questions; what a file says does not change, so it is read once."""
    return frozenset(question.key for question in artifacts.read_field(groups, "question", Question))
