"""What the turns of a run's stored rollouts are worth, whatever any credit says of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from flows.console.errors import UserError
from flows.run.live import Runtime
from flows.run.stage_files import StageFiles
from flows.screen.plan import ScreenPlan
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.records.screen import DrawnF1, ScreenedTurn
from schemas.settings.data import WORLD
from schemas.settings.root import Settings
from sdsearch.credit.scoring import f1_score, scores_by_group
from sdsearch.sampling.rollouts import Branch
from sdsearch.seeds import derive_seed
from sdsearch.world import load_evidence
from storage.runs.screens import ScreenStore
from storage.storage import Storage

GOLDEN = "a passage that holds a golden answer"
EVIDENCE = "a passage that says a fact which the question needs"
Tell = Callable[[str], None]
Evidence = Mapping[str, tuple[frozenset[str], ...]]


def find_turns(plan: ScreenPlan, storage: Storage, live: Runtime, tell: Tell) -> tuple[list[ScreenedTurn], str]:
    """Return the turns that searched, with what they are worth, and what counts as a hit.

    What was drawn before is taken as it is. Raises UserError where no turn of the iterations searched, and as a rollout
    does.
    """
    store, files = ScreenStore(storage.workspace, plan.name), StageFiles(storage.artifacts)
    evidence = _evidence(live.settings)
    turns: list[ScreenedTurn] = []
    for iteration in range(plan.first, plan.last + 1):
        groups = choose_groups(*_stored(storage, files, plan.source.run, iteration), plan.num_groups, plan.seed)
        drawn = _draw(plan, store, live, iteration, [group for group, _ in groups], tell) if plan.num_draws else []
        values = {point: fmean(f1s) for point, f1s in _by_point(drawn).items()}
        for group, scores in groups:
            turns += _turns_of(group, scores, values, evidence.get(group.question.key))
        files.forget()
    if not turns:
        raise UserError(
            f"run '{plan.source.run}': no rollout of iterations {plan.first}:{plan.last} searched, so there is no turn "
            "to compare; choose other iterations"
        )
    store.write("turns", ScreenedTurn, turns)
    return turns, EVIDENCE if evidence else GOLDEN


def choose_groups(
    groups: Sequence[Group], scores: Sequence[Score], num_groups: int, seed: int
) -> list[tuple[Group, list[Score]]]:
    """Return at most so many groups with their scores: those of mixed outcomes first, both kinds in random order."""
    of_group = scores_by_group(scores)
    order = sorted(groups, key=lambda group: random.Random(derive_seed(seed, group.id)).random())
    order.sort(key=lambda group: len({score.f1 > 0 for score in of_group[group.id]}) == 1)
    return [(group, of_group[group.id]) for group in order[:num_groups]]


def points_of(rollout: Rollout) -> list[int]:
    """Return the turns before which the value of a rollout must be known: each one that searched, and the next."""
    searched = [number for number, turn in enumerate(rollout.turns) if turn.searched_query is not None]
    return sorted({number for first in searched for number in (first, first + 1)})


def branches_of(groups: Sequence[Group], num_draws: int) -> list[Branch]:
    """Return the draws of all points; siblings that have written the same so far share theirs."""
    branches: dict[tuple[str, tuple[int, ...]], Branch] = {}
    for group in groups:
        for rollout in group.rollouts:
            for turn in points_of(rollout):
                branches.setdefault((group.id, _written(rollout, turn)), Branch(group, rollout, turn, 0))
    return [each._replace(draw=draw) for each in branches.values() for draw in range(num_draws)]


def _draw(
    plan: ScreenPlan, store: ScreenStore, live: Runtime, iteration: int, groups: Sequence[Group], tell: Tell
) -> list[tuple[Group, DrawnF1]]:
    """Return the draws of an iteration; one that was stopped begins again with the iteration."""
    of_group = {rollout.id: group for group in groups for rollout in group.rollouts}
    name = f"draws-{iteration:05d}"
    drawn = store.find(name, DrawnF1)
    if drawn is None:
        branches = branches_of(groups, plan.num_draws)
        tell(f"iteration {iteration}: {len(branches)} draws from {len(branches) // plan.num_draws} points")
        loop = live.rollout_loop(iteration - 1)
        rollouts = loop.branch_off(branches, seed=plan.seed, temperature=live.settings.rollout.temperature)
        drawn = [
            DrawnF1(
                rollout_id=branch.rollout.id,
                turn=branch.turn,
                draw=branch.draw,
                f1=f1_score(rollout.answer, branch.group.question.golden_answers),
            )
            for branch, rollout in zip(branches, rollouts, strict=True)
        ]
        store.write(name, DrawnF1, drawn)
    return [(of_group[each.rollout_id], each) for each in drawn]


Point = tuple[str, tuple[int, ...]]
"""A group, and what was written in it so far."""


def _by_point(drawn: Sequence[tuple[Group, DrawnF1]]) -> dict[Point, list[float]]:
    points: dict[Point, list[float]] = {}
    for group, each in drawn:
        (rollout,) = (rollout for rollout in group.rollouts if rollout.id == each.rollout_id)
        points.setdefault((group.id, _written(rollout, each.turn)), []).append(each.f1)
    return points


def _written(rollout: Rollout, turn: int) -> tuple[int, ...]:
    """Return the tokens before a turn."""
    return rollout.token_ids[: rollout.num_tokens_before(turn)]


def _turns_of(
    group: Group,
    scores: Sequence[Score],
    values: Mapping[Point, float],
    facts: tuple[frozenset[str], ...] | None,
) -> list[ScreenedTurn]:
    turns = []
    for rollout, score in zip(group.rollouts, scores, strict=True):
        golden = iter(score.golden)
        for number, turn in enumerate(rollout.turns):
            if turn.searched_query is None:
                continue
            holds_answer = any(next(golden))
            says_fact = facts is not None and any(hit.passage.id in fact for hit in turn.hits for fact in facts)
            turns.append(
                ScreenedTurn(
                    iteration=group.iteration,
                    group_id=group.id,
                    question_key=group.question.key,
                    rollout_id=rollout.id,
                    turn=number,
                    query=turn.searched_query,
                    hit=says_fact if facts is not None else holds_answer,
                    value_before=values.get((group.id, _written(rollout, number))),
                    value_after=values.get((group.id, _written(rollout, number + 1))),
                )
            )
    return turns


def _stored(storage: Storage, files: StageFiles, run: str, iteration: int) -> tuple[list[Group], list[Score]]:
    sampled = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="sample"))
    scored = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="score"))
    if sampled is None or scored is None:
        raise UserError(f"run '{run}' has no scored rollouts of iteration {iteration}; see: sdsearch runs")
    return files.read(sampled, "groups", Group), files.read(scored, "scores", Score)


def _evidence(settings: Settings) -> Evidence:
    """Return which passages each training question needs: known of the embedded world alone."""
    is_embedded = settings.data.questions == WORLD
    return load_evidence("train") if is_embedded else {}
