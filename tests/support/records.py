"""Records drawn by hand for tests of what is stored, and their rows: groups of two questions, scored and credited."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions, EvaluationReport
from schemas.records.hindsight import HindsightAttempt, HindsightBlock
from schemas.records.ledger import ArtifactRef, RunRecord
from schemas.records.passage import Passage, SearchHit
from schemas.records.question import Question
from schemas.records.rollout import Action, Answer, Generation, Group, Malformed, Observation, Rollout, Search, Turn
from schemas.records.run_kind import TrainingKind
from schemas.records.score import RewardPart, Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import StepReport, UpdateReport
from storage.database.connection import Database
from storage.database.rollout_rows import score_rows
from storage.database.rows import StageRows, evaluation_rows, hindsight_rows, teacher_rows, update_rows
from storage.database.tables import insert

GOLDEN = SearchHit(passage=Passage(id="p1", title="Andorra", text="Its capital is Andorra la Vella."), score=0.75)
OTHER = SearchHit(passage=Passage(id="p2", title="Oslo", text="A city in Norway."), score=0.25)


def contains_golden(passage: Passage, golden_answers: object) -> bool:
    """Stands in for the method's own test of a passage."""
    return passage.id == "p1"


def make_turn(action: Action, num_tokens: int = 4, hits: tuple[SearchHit, ...] = (), last: bool = False) -> Turn:
    """A turn of `num_tokens` sampled tokens, the middle ones a query when it searches, and 3 observed tokens."""
    query_positions = tuple(range(1, num_tokens - 1)) if isinstance(action, Search) else ()
    generation = Generation(
        token_ids=tuple(range(10, 10 + num_tokens)),
        sampled_logprobs=tuple(-0.5 * (place + 1) for place in range(num_tokens)),
        text=f"<{action.kind}>",
        stop_reason="search_closed" if isinstance(action, Search) else "answer_closed",
        query_positions=query_positions,
    )
    kind = "documents" if isinstance(action, Search) else "notice"
    observation = Observation(kind=kind, token_ids=(7, 8, 9), text="reply", hits=hits, num_tokens_cut=2)
    return Turn(generation=generation, action=action, observation=None if last else observation)


def make_groups(iteration: int = 3) -> list[Group]:
    """Two groups of two: a mixed one (search and answer; malformed and answer), and one that fails twice."""
    first = (
        make_turn(Search(query="capital Andorra"), hits=(GOLDEN, OTHER)),
        make_turn(Answer(answer="Andorra la Vella"), last=True),
    )
    second = (make_turn(Malformed(reason="no_action"), num_tokens=2), make_turn(Answer(answer="Paris"), last=True))
    third = (make_turn(Search(query="Oslo"), hits=(OTHER,)), make_turn(Malformed(reason="no_action"), last=True))
    fourth = (make_turn(Search(query="Oslo")), make_turn(Search(query="Oslo city"), num_tokens=6, last=True))
    return [
        _group("andorra", iteration, "What is the capital of Andorra?", (first, second)),
        _group("norway", iteration, "Where is Oslo?", (third, fourth)),
    ]


def _group(name: str, iteration: int, question: str, rollouts: tuple[tuple[Turn, ...], ...]) -> Group:
    identity = f"{iteration}/{name}"
    return Group(
        id=identity,
        iteration=iteration,
        policy_version=iteration,
        question=Question(
            id=name, dataset="toy", split="train", question=question, golden_answers=("Andorra la Vella",)
        ),
        prompt_token_ids=(1, 2, 3),
        block_offset=1,
        rollouts=tuple(
            Rollout(id=f"{identity}/{index}", group_id=identity, index=index, turns=turns)
            for index, turns in enumerate(rollouts)
        ),
    )


def make_scores(groups: list[Group]) -> list[Score]:
    """The first rollout of the first group is right, all others are wrong."""
    return [
        Score(
            rollout_id=rollout.id,
            group_id=group.id,
            em=float(right),
            f1=float(right),
            valid_format=rollout.valid_format,
            golden=tuple(
                tuple(contains_golden(hit.passage, ()) for hit in turn.hits)
                for turn in rollout.turns
                if turn.searched_query is not None
            ),
            num_hits=sum(len(turn.observation.hits) for turn in rollout.turns if turn.observation),
            num_golden_hits=int(right),
            reward=float(right),
            parts=(RewardPart(part="f1", value=float(right)),),
            advantage=(0.7 if right else -0.7) if place == 0 else 0.0,
        )
        for place, group in enumerate(groups)
        for rollout in group.rollouts
        for right in [place == 0 and rollout.index == 0]
    ]


def make_blocks(groups: list[Group]) -> list[HindsightBlock]:
    """One block a group; only the first rollout of the first group is CORRECT."""
    return [
        HindsightBlock(
            group_id=group.id,
            focal_rollout=None,
            focal_turn=None,
            attempts=tuple(
                HindsightAttempt(
                    rollout_index=rollout.index,
                    label="CORRECT" if place == 0 and rollout.index == 0 else "INCORRECT",
                    contents=rollout.queries,
                )
                for rollout in group.rollouts
            ),
            num_dropped_attempts=0,
            homogeneous=place == 1,
            text="Earlier attempts",
            token_ids=(4, 5),
        )
        for place, group in enumerate(groups)
    ]


def make_credit(groups: list[Group]) -> list[QueryCredit]:
    """Query tokens of every search; the teacher favours those of the first rollout by 0.5, the others by -0.25."""
    return [
        QueryCredit(
            rollout_id=rollout.id,
            group_id=group.id,
            position=position,
            turn=0 if position < 7 else 1,
            token_id=rollout.token_ids[position],
            token="t",
            teacher_logprob=-1.0 + (0.5 if rollout.id.endswith("andorra/0") else -0.25),
            student_logprob=-1.0,
            jsd=0.125,
            divergence=0.1,
            teacher_entropy=1.0,
            student_entropy=1.25,
        )
        for group in groups
        for rollout in group.rollouts
        for position in rollout.query_positions
    ]


def make_targets(groups: list[Group]) -> list[TeacherTargets]:
    """One record a rollout, its rows one after another."""
    targets = []
    row = 0
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        positions = rollout.query_positions
        targets.append(
            TeacherTargets(
                rollout_id=rollout.id,
                group_id=rollout.group_id,
                row_start=row,
                num_rows=len(positions),
                positions=positions,
                support_size=50,
                context_shift=2,
                num_tokens=30,
                mean_jsd=0.125,
            )
        )
        row += len(positions)
    return targets


def make_update(iteration: int = 3) -> UpdateReport:
    """Two steps; the gradient's parts were measured on the first only."""
    steps = tuple(
        StepReport(
            step=2 * iteration + place,
            num_rollouts=2,
            num_completion_tokens=15,
            num_read_tokens=15,
            num_distilled_tokens=4,
            loss=0.5 + place,
            policy_loss=0.4,
            sd_loss=0.1,
            kl=0.01,
            alpha=0.001,
            entropy=1.5,
            grad_norm=2.0,
            grad_norm_grpo=2.0 if place == 0 else None,
            grad_norm_sd=0.5 if place == 0 else None,
            grad_noise=0.25 if place == 0 else None,
            clip_share=0.0,
            ratio_max=1.5 + place,
            truncated_share=0.0,
            sampler_kl=0.0,
            sampler_max_difference=0.0,
            num_missing_logprobs=0,
            learning_rate=1e-6,
        )
        for place in range(2)
    )
    return UpdateReport(
        iteration=iteration,
        policy_version=iteration + 1,
        policy_sha256="f" * 64,
        steps=steps,
        num_tokens=80,
    )


def make_evaluation(iteration: int = 3) -> tuple[EvaluationReport, list[EvaluationAnswer]]:
    """A greedy evaluation of one question."""
    answer = EvaluationAnswer(
        question_key="toy:andorra",
        question="What is the capital of Andorra?",
        golden_answers=("Andorra la Vella",),
        category="",
        answer=None,
        queries=("capital",),
        em=0.0,
        f1=0.25,
        valid_format=False,
        num_hits=2,
        num_golden_hits=1,
        num_completion_tokens=20,
        cover_em=0.0,
    )
    report = EvaluationReport(
        iteration=iteration + 1,
        policy_version=iteration + 1,
        mode="greedy",
        dataset="toy",
        split="dev",
        num_questions=1,
        em=0.0,
        f1=0.25,
        search_quality=0.5,
        searches_per_rollout=1.0,
        valid_share=0.0,
        completion_tokens_mean=20.0,
        cover_em=0.0,
    )
    return report, [answer]


def make_conditions() -> EvaluationConditions:
    """What that evaluation was made under."""
    return EvaluationConditions(
        mode="greedy",
        dataset="toy",
        split="dev",
        questions_sha256="1" * 64,
        corpus="world",
        retriever="dense, flat",
        encoder="lexical",
        index_hash="2" * 64,
        num_passages=3,
        protocol="tags compact",
        limits="3 searches",
        decoding="greedy, transformers, float32",
        code_version="0.1.0, 333333333333",
    )


def make_run(run: str = "first") -> RunRecord:
    """A run that has just begun."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return RunRecord(
        run=run,
        status="running",
        settings_json='{"seed": 1}',
        settings_hash="a" * 64,
        code_version="0.1.0",
        seed=1,
        num_iterations=10,
        kind=TrainingKind(),
        iterations_done=0,
        policy_version=0,
        policy_sha256="0" * 64,
        created_at=moment,
        updated_at=moment,
    )


def all_rows(groups: list[Group], run: str = "first", iteration: int = 3) -> StageRows:
    """The rows of every stage of an iteration."""
    tensors = ArtifactRef(path="artifacts/targets.safetensors", sha256="e" * 64, size_bytes=1)
    return {
        **score_rows(run, iteration, groups, make_scores(groups)),
        **hindsight_rows(run, iteration, make_blocks(groups)),
        **teacher_rows(run, iteration, make_targets(groups), make_credit(groups), tensors),
        **update_rows(run, iteration, make_update(iteration)),
        **evaluation_rows(run, iteration, [make_evaluation(iteration)], [make_conditions()]),
    }


def fill(database: Database, rows: StageRows, run: str = "first") -> None:
    """Insert rows, and two done stages of the run, of two seconds each, in the ledger."""
    with database.transaction() as connection:
        for table_name, table in rows.items():
            insert(connection, table_name, table)
        connection.execute(
            "INSERT INTO stages SELECT ?, 3, stage, 1, 'done', '', '', '', [], 0, 1, 'host', 1, now()::TIMESTAMP, "
            "now()::TIMESTAMP, 2.0, '', 1, NULL, NULL, NULL FROM (VALUES ('sample'), ('update')) AS stages (stage)",
            [run],
        )
