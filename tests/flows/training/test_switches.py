"""Every switch of the method through the whole flow, sampling to evaluation, by what it leaves in the database.

A few runs of one or two iterations hold every value of every switch; each test looks at what one switch must change.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import stdev
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

import sdsearch.credit.teacher
import sdsearch.training.logprobs
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.settings.method import (
    DistillationSettings,
    GrpoSettings,
    HindsightSettings,
    RewardSettings,
    UpdateSettings,
)
from sdsearch.world import load_questions
from storage.storage import Storage
from tests.support.ledger import attempts_of

# Two questions that the mini policy answers now and then, and one whose golden answer it always meets in part.
QUESTIONS = {"q2199": None, "q442": None, "q1093": "{} Proper"}
BASE = [
    "data.questions_per_iteration=3",
    "rollout.group_size=3",
    "rollout.max_searches=2",
    "rollout.max_new_tokens=20",
    "iterations=1",
    "distillation.warmup_iterations=0",
    "update.rollouts_per_step=9",
    "update.gradient_parts_every=0",
    "evaluation.num_questions=1",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
]
RUNS = {
    "plain": ["iterations=2", "distillation.warmup_iterations=1", "update.gradient_parts_every=1"],
    "lora": [
        "model.tuning=lora",
        "model.lora_rank=4",
        "model.lora_targets=['q_proj', 'down_proj']",
        "reward.metric=em",
        "grpo.advantage_scale=batch",
        "grpo.old_logprobs=trainer",
        "grpo.kl_coefficient=0",
        "hindsight.masking=none",
        "hindsight.labels=none",
        "hindsight.members=leave_one_out",
        "distillation.positions=completion",
        "distillation.divergence=forward_kl",
        "distillation.support=student",
        "distillation.teacher=initial",
        "distillation.top_k=7",
        "update.epochs=2",
        "update.rollouts_per_step=5",
        "update.schedule=linear",
        "update.warmup_steps=1",
    ],
    "documents": [
        "reward.format_bonus=0.25",
        "rollout.temperature=0.7",
        "grpo.advantage_scale=none",
        "grpo.aggregation=constant",
        "hindsight.masking=current_documents",
        "distillation.divergence=mse",
        "distillation.support=full",
        "update.max_grad_norm=0",
        "update.weight_decay=0.1",
    ],
    "shuffled": [
        "grpo.aggregation=sequence_mean",
        "grpo.clip_low=0.0",
        "grpo.clip_high=0.0",
        "hindsight.labels=shuffled",
        "hindsight.members=focal_only",
        "hindsight.homogeneous=skip",
        "hindsight.unsent_queries=keep",
        "hindsight.label_metric=em",
        "distillation.divergence=reverse_kl",
        "distillation.tail=renormalise",
        "distillation.top_k=3",
        "update.epochs=3",
        "update.schedule=cosine",
        "update.head_chunk=7",
        "update.max_tokens_per_microbatch=700",
    ],
    "correct": [
        "reward.turn=information_gain",
        "reward.turn_discount=0.9",
        "hindsight.members=correct_only",
        "hindsight.rho=0.7",
        "hindsight.max_block_tokens=32",
        "grpo.importance_cap=1.0",
    ],
    "grpo": ["distillation.enabled=false"],
    "contrasted": [
        "hindsight.contrast=flipped",
        "hindsight.labels=random",
        "hindsight.own_query=paraphrase",
        "distillation.teacher=ema",
        "distillation.clip=own",
        "grpo.filter=zero_advantage",
    ],
    "unlabelled": [
        "reward.metric=cover_em",
        "hindsight.contrast=unlabelled",
        "hindsight.own_query=drop",
        "distillation.form=advantage",
        "grpo.filter=resample",
    ],
}


@dataclass
class Trained:
    """The runs, and each one's passes without gradient: over whole rollouts by whose weights, and the teacher's."""

    storage: Storage
    passes: dict[str, Counter[str]]
    read: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rows(self, run: str, table: str, where: str = "true") -> list[dict[str, Any]]:
        sql = f"SELECT * FROM {table} WHERE run = '{run}' AND {where} ORDER BY ALL"
        if sql not in self.read:
            self.read[sql] = self.storage.database.query(sql).to_pylist()
        return self.read[sql]

    def steps(self, run: str, column: str) -> list[Any]:
        return [row[column] for row in sorted(self.rows(run, "v_steps"), key=lambda row: row["step"])]

    def rollouts(self, run: str, where: str = "iteration = 1") -> dict[str, dict[str, Any]]:
        return {row["rollout_id"]: row for row in self.rows(run, "rollouts", where)}

    def distributions(self, run: str, iteration: int = 1) -> dict[str, torch.Tensor]:
        """What the teacher stage stored: ids (Q, K) and log-probabilities (Q, C)."""
        (record,) = [
            r for r in attempts_of(self.storage.ledger, run) if (r.stage, r.iteration) == ("teacher", iteration)
        ]
        return self.storage.artifacts.read_tensors(next(ref for ref in record.outputs if "distributions" in ref.path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("switches")
    questions = folder / "questions.jsonl"
    chosen = [question for question in load_questions("train") if question.id in QUESTIONS]
    golden = {q.id: (QUESTIONS[q.id] or "{}").format(q.golden_answers[0]) for q in chosen}
    rows = [{"id": q.id, "question": q.question, "golden_answers": [golden[q.id]]} for q in chosen]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    passes: dict[str, Counter[str]] = {run: Counter() for run in RUNS}
    real, real_read = sdsearch.training.logprobs.sequence_logprobs, sdsearch.credit.teacher.read_logprobs
    for run, overrides in RUNS.items():

        def counted(model: torch.nn.Module, *rest: Any, run: str = run) -> list[torch.Tensor]:
            trains = any(parameter.requires_grad for parameter in model.parameters())
            passes[run]["policy" if trains else "reference"] += 1
            return real(model, *rest)

        def counted_read(*arguments: Any, run: str = run) -> torch.Tensor:
            passes[run]["teacher"] += 1
            return real_read(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sdsearch.training.logprobs, "sequence_logprobs", counted)
            patch.setattr(sdsearch.credit.teacher, "read_logprobs", counted_read)
            settings = load_settings("tiny", [*BASE, f"data.questions={questions}", *overrides])
            train_plain(settings, run, folder, SilentReporter())
    return Trained(open_storage(folder), passes)


def test_every_value_of_every_switch_is_in_a_run() -> None:
    """A switch that comes later has to come here too."""
    sections = (RewardSettings, GrpoSettings, HindsightSettings, DistillationSettings, UpdateSettings)
    settings = [load_settings("tiny", [*BASE, *overrides]) for overrides in RUNS.values()]
    for name, section in zip(("reward", "grpo", "hindsight", "distillation", "update"), sections, strict=True):
        for switch, info in section.model_fields.items():
            if get_origin(info.annotation) is Literal:
                values = {getattr(getattr(item, name), switch) for item in settings}
                assert values == set(get_args(info.annotation)), f"{name}.{switch}"
    assert {item.model.tuning for item in settings} == {"full", "lora"}


def test_rewards(trained: Trained) -> None:
    for run, reward in {
        "plain": lambda row: row["f1"],
        "lora": lambda row: row["em"],
        "documents": lambda row: row["f1"] + 0.25 * row["valid_format"],
    }.items():
        rows = trained.rollouts(run).values()
        assert [row["reward"] for row in rows] == [reward(row) for row in rows], run
    assert any(row["f1"] not in (0.0, row["em"]) for row in trained.rollouts("lora").values())


def test_advantages(trained: Trained) -> None:
    for run, scale in {
        "plain": lambda group, batch: stdev(group) + 1e-6,
        "lora": lambda group, batch: stdev(batch) + 1e-6,
        "documents": lambda group, batch: 1.0,
    }.items():
        rows = list(trained.rollouts(run).values())
        groups = {row["group_id"]: [r["reward"] for r in rows if r["group_id"] == row["group_id"]] for row in rows}
        assert any(len(set(rewards)) > 1 for rewards in groups.values()), f"{run}: the comparison needs a mixed group"
        for row in rows:
            group, batch = groups[row["group_id"]], [r["reward"] for r in rows]
            flat = len(set(group)) == 1
            expected = 0.0 if flat else (row["reward"] - sum(group) / len(group)) / scale(group, batch)
            assert row["advantage"] == pytest.approx(expected), run


def test_turn_rewards(trained: Trained) -> None:
    rewards = {name: row["reward"] for name, row in trained.rollouts("correct").items()}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in rewards}
    for row in sorted(trained.rows("correct", "turns"), key=lambda row: row["turn"]):
        turns[row["rollout_id"]].append(row)
    for name, rows in turns.items():
        found = [row["answer_probability"] for row in rows]
        gains = [after - before for before, after in pairwise(found)]
        assert [row["turn_reward"] for row in rows] == pytest.approx([*gains, rewards[name]])
        assert all(0 < probability <= 1 for probability in found)
    credit = [(len(row["token_ids"]), row["turn_advantage"]) for rows in turns.values() for row in rows]
    assert len({advantage for _, advantage in credit}) > len(rewards)
    per_token = sum(n * a for n, a in credit) / sum(n for n, _ in credit)
    assert trained.steps("correct", "policy_loss")[0] == pytest.approx(-per_token, abs=2e-2), "a cap of 1 cuts a little"
    assert all(row["turn_reward"] is None for row in trained.rows("plain", "turns"))


def test_aggregation_of_a_step_at_the_weights_that_sampled(trained: Trained) -> None:
    """All ratios are 1 there: each sampled token's loss is minus its advantage."""
    for run, mean in {
        "plain": lambda rows: sum(n * a for n, a in rows) / sum(n for n, _ in rows),
        "shuffled": lambda rows: sum(a for _, a in rows) / len(rows),
        "documents": lambda rows: sum(n * a for n, a in rows) / (len(rows) * 1024),
    }.items():
        rows = [(row["num_completion_tokens"], row["advantage"]) for row in trained.rollouts(run).values()]
        assert abs(sum(n * a for n, a in rows)) > 1, f"{run}: the comparison needs long rollouts that differ"
        assert trained.steps(run, "policy_loss")[0] == pytest.approx(-mean(rows), abs=2e-6), run


def test_steps_epochs_and_rates(trained: Trained) -> None:
    assert trained.steps("plain", "num_rollouts") == [9, 9]
    assert trained.steps("plain", "learning_rate") == [3e-4, 3e-4]
    assert trained.steps("lora", "num_rollouts") == [5, 4, 5, 4], "two epochs"
    assert trained.steps("lora", "learning_rate") == pytest.approx([3e-4, 3e-4, 2e-4, 1e-4])
    assert trained.steps("shuffled", "num_rollouts") == [9, 9, 9], "three epochs"
    assert trained.steps("shuffled", "learning_rate") == pytest.approx([3e-4, 2.25e-4, 0.75e-4])


def test_ratios_clips_and_importance_weights(trained: Trained) -> None:
    assert trained.steps("plain", "clip_share") == trained.steps("plain", "truncated_share") == [0.0, 0.0]
    assert trained.steps("shuffled", "clip_share")[1] > 0.1, "clips at 1 + 0 once the weights have moved"
    assert 0.01 < trained.steps("correct", "truncated_share")[0] < 0.9, "a cap of 1 cuts every ratio above 1"
    assert max(trained.steps("documents", "sampler_max_difference")) < 1e-4, "read at the sampling temperature"


def test_reference_and_trainer_passes_are_made_where_they_are_read_alone(trained: Trained) -> None:
    assert trained.passes["plain"]["reference"] == 2, "one an iteration"
    assert trained.passes["plain"]["policy"] == 0
    assert trained.passes["lora"]["policy"] == 1, "the trainer's own"
    assert trained.passes["lora"]["reference"] == 0, "no KL"
    assert set(trained.steps("lora", "kl")) == {0.0}
    assert trained.steps("plain", "kl")[1] > 0


def test_lora_and_full_tuning(trained: Trained) -> None:
    folders = {run: trained.storage.checkpoints.verify(run, 1) for run in ("plain", "lora")}
    assert [(folder / "adapter_model.safetensors").is_file() for folder in folders.values()] == [False, True]
    assert [(folder / "model.safetensors").is_file() for folder in folders.values()] == [True, False]
    assert all(trained.rows(run, "evaluations", "updates_done > 0") for run in RUNS), "the result is evaluated"


def test_gradients(trained: Trained) -> None:
    for norm, grpo, sd, ratio in zip(
        *(trained.steps("plain", name) for name in ("grad_norm", "grad_norm_grpo", "grad_norm_sd", "grad_norm_ratio")),
        strict=True,
    ):
        assert ratio == pytest.approx(sd / grpo)
        assert abs(grpo - sd) <= norm <= grpo + sd
    assert set(trained.steps("lora", "grad_norm_grpo")) == {None}, "never measured"


def test_warm_up_and_plain_grpo_have_no_teacher(trained: Trained) -> None:
    assert trained.steps("plain", "alpha") == [0.0, 0.1]
    assert trained.rows("plain", "teacher_targets", "iteration = 1") == []
    assert trained.rows("plain", "teacher_targets", "iteration = 2")
    taught = len(trained.rows("plain", "teacher_targets"))
    assert trained.passes["plain"]["teacher"] == 2 * taught, "teacher and student, in the second iteration alone"
    assert trained.passes["grpo"]["teacher"] == 0
    assert trained.steps("plain", "sd_loss")[0] == 0.0 < trained.steps("plain", "sd_loss")[1]
    for table in ("hindsight_blocks", "teacher_targets", "query_credit"):
        assert trained.rows("grpo", table) == []
    assert trained.steps("grpo", "loss") == trained.steps("plain", "loss")[:1], "the warm-up is plain GRPO"


def test_blocks_show_what_masking_and_labels_say(trained: Trained) -> None:
    (plain,) = trained.rows("plain", "hindsight_blocks", "iteration = 1 AND group_id LIKE '%q2199'")
    queries = [
        row["queries"] for row in trained.rollouts("plain", "iteration = 1 AND rollout_id LIKE '%q2199/%'").values()
    ]
    assert plain["text"].splitlines()[1:4] == [
        f"Attempt {place} ({label}): {' | '.join(query)}"
        for place, (label, query) in enumerate(zip(["CORRECT", "INCORRECT", "INCORRECT"], queries, strict=True), 1)
    ]
    for row in trained.rows("lora", "hindsight_blocks"):
        assert "CORRECT" not in row["text"]
        shown = trained.rows("lora", "hindsight_attempts", f"block_index = {row['block_index']}")
        assert [attempt["rollout_index"] for attempt in shown] == [i for i in range(3) if i != row["focal_rollout"]]
    assert any("Doc 1(Title" in row["text"] for row in trained.rows("lora", "hindsight_blocks")), "whole trajectories"
    documents = trained.rows("documents", "hindsight_blocks")
    found = {(r["rollout_id"], r["turn"]): r["observation_text"] for r in trained.rows("documents", "turns")}
    for row in documents:
        text = found[f"{row['group_id']}/{row['focal_rollout']}", row["focal_turn"]]
        assert (
            row["text"].split()
            == text.replace("<documents>", "(documents)").replace("</documents>", "(/documents)").split()
        )
    assert len(documents) == sum("Doc 1" in (text or "") for text in found.values())


def test_labels_follow_metric_threshold_and_seed(trained: Trained) -> None:
    partly = "group_id LIKE '%q1093'"
    assert {row["label"] for row in trained.rows("plain", "hindsight_attempts", f"iteration = 1 AND {partly}")} == {
        "CORRECT"
    }
    assert {row["label"] for row in trained.rows("shuffled", "hindsight_attempts", partly)} == {"INCORRECT"}, "by EM"
    assert trained.rows("correct", "hindsight_attempts", partly) == [], "F1 of 2/3 is not above 0.7"
    shown = {(r["group_id"], r["rollout_index"]): r["label"] for r in trained.rows("shuffled", "hindsight_attempts")}
    outcome = {(r["group_id"], r["rollout_index"]): r["outcome"] for r in trained.rollouts("shuffled").values()}
    assert shown != outcome
    assert Counter((group, label) for (group, _), label in shown.items()) == Counter(
        (group, label) for (group, _), label in outcome.items()
    )
    for row in trained.rows("shuffled", "hindsight_blocks"):
        (attempt,) = trained.rows("shuffled", "hindsight_attempts", f"block_index = {row['block_index']}")
        assert attempt["rollout_index"] == row["focal_rollout"]


def test_random_labels_do_not_follow_the_number_of_correct_rollouts(trained: Trained) -> None:
    labels: dict[str, dict[tuple[str, int], str]] = {}
    for table in ("hindsight_attempts", "rollouts"):
        column = "outcome" if table == "rollouts" else "label"
        labels[table] = {
            (r["group_id"], r["rollout_index"]): r[column] for r in trained.rows("contrasted", table, "iteration = 1")
        }
    shown, outcomes = labels["hindsight_attempts"], labels["rollouts"]
    assert set(shown.values()) == {"CORRECT", "INCORRECT"}
    counts = [Counter((group, label) for (group, _), label in found.items()) for found in (shown, outcomes)]
    assert counts[0] != counts[1]


def test_groups_with_one_outcome_are_skipped_where_the_settings_say_so(trained: Trained) -> None:
    same = {row["group_id"]: row["homogeneous"] for row in trained.rows("shuffled", "hindsight_blocks")}
    assert sorted(same.values()) == [False, False, True]
    distilled = {row["group_id"] for row in trained.rows("shuffled", "teacher_targets")}
    assert distilled == {group for group, homogeneous in same.items() if not homogeneous}
    assert len({row["group_id"] for row in trained.rows("plain", "teacher_targets")}) == 3, "kept by default"


def test_queries_that_were_never_sent(trained: Trained) -> None:
    """They are written on a last turn, count as no search, and are shown where the settings ask for it."""
    for run, shown in {"plain": False, "shuffled": True}.items():
        unsent = trained.rows(run, "turns", "query IS NOT NULL AND observation_kind IS NULL")
        attempts = {(row["group_id"], row["rollout_index"]): row for row in trained.rows(run, "hindsight_attempts")}
        assert unsent, run
        for turn in unsent:
            assert turn["turn"] == 2, "after two searches"
            group, _, index = turn["rollout_id"].rpartition("/")
            contents = attempts[group, int(index)]["contents"]
            assert len(contents) == (3 if shown else 2)
            row = trained.rollouts(run, "true")[turn["rollout_id"]]
            assert (len(row["queries"]), turn["query"] in row["queries"][2:]) == (2, False)
        searches = {(row["rollout_id"], row["turn"]) for row in trained.rows(run, "searches")}
        assert not searches & {(turn["rollout_id"], turn["turn"]) for turn in unsent}


def test_attempts_that_are_cut_are_counted(trained: Trained) -> None:
    """A block beyond its length shows the beginning of its attempts; one without any teaches nothing."""
    blocks = trained.rows("correct", "hindsight_blocks")
    assert sorted(row["num_shortened_attempts"] for row in blocks) == [0, 0, 1]
    assert [row["num_dropped_attempts"] for row in blocks] == [0, 0, 0]
    assert all(len(row["token_ids"]) <= 32 for row in blocks)
    assert all((row["num_cut_tokens"] > 0) == (" …\n" in row["text"]) for row in blocks)
    distilled = {row["group_id"] for row in trained.rows("correct", "teacher_targets")}
    assert distilled == {row["group_id"] for row in blocks if row["num_attempts"]}
    (iteration,) = trained.rows("correct", "v_iterations", "iteration = 1")
    assert (iteration["dropped_attempt_share"], iteration["shortened_attempt_share"]) == (0.0, 0.5)
    cut, left = (
        sum(values) for values in zip(*((r["num_cut_tokens"], len(r["token_ids"])) for r in blocks), strict=True)
    )
    assert iteration["cut_token_share"] == pytest.approx(cut / (cut + left))
    assert iteration["empty_block_share"] == pytest.approx(1 / 3)


def test_positions(trained: Trained) -> None:
    for run, column in {"correct": "num_query_tokens", "lora": "num_completion_tokens"}.items():
        counts = {row["rollout_id"]: row["num_rows"] for row in trained.rows(run, "teacher_targets")}
        rollouts = trained.rollouts(run)
        assert {name: rollouts[name][column] for name in counts} == counts
        assert len(counts) == {"correct": 6, "lora": 9}[run]


def test_support_and_tail(trained: Trained) -> None:
    vocabulary = 2048
    shapes = {"plain": (50, 51), "lora": (7, 8), "documents": (vocabulary, vocabulary), "shuffled": (3, 3)}
    for run, (support, outcomes) in shapes.items():
        stored = trained.distributions(run, iteration=2 if run == "plain" else 1)
        assert (stored["ids"].shape[1], stored["logprobs"].shape[1]) == (support, outcomes), run
        assert {row["support_size"] for row in trained.rows(run, "teacher_targets")} == {support}
        assert stored["logprobs"].dtype == torch.float32
        torch.testing.assert_close(stored["logprobs"].exp().sum(1), torch.ones(len(stored["ids"])))
        falling = (stored["logprobs"][:, :support].diff(dim=1) <= 1e-6).all(1)
        assert bool(falling.all()) == (run in ("plain", "shuffled")), "the teacher's own top-k falls"


def test_divergences_as_logged(trained: Trained) -> None:
    """At the weights that sampled, L_SD is the stored divergence: the mean over a rollout, then over rollouts."""
    for run in ("documents", "shuffled", "correct"):
        of_rollout: dict[str, list[float]] = {}
        for row in trained.rows(run, "query_credit"):
            of_rollout.setdefault(row["rollout_id"], []).append(row["divergence"])
        means = [sum(values) / len(values) for values in of_rollout.values()]
        assert trained.steps(run, "sd_loss")[0] == pytest.approx(sum(means) / len(means), rel=1e-3), run
    jsd = [row["jsd"] for run in RUNS for row in trained.rows(run, "query_credit")]
    assert 0 <= min(jsd) < max(jsd) <= 0.6932
