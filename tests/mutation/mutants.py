"""The list of small errors that the tests must notice, and which tests look at which file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

_LIST = Path(__file__).with_name("mutants.toml")
_LOSS_TESTS = (
    "tests/golden/test_what_is_read.py",
    "tests/golden/test_objective_against_naive.py",
    "tests/golden/test_steps_against_naive.py",
    "tests/golden/test_random_groups.py",
    "tests/golden/test_gates_and_form.py",
    "tests/sdsearch/training/test_update.py",
    "tests/golden/test_retries.py",
    "tests/golden/test_filter.py",
)
_TEACHER_TESTS = (
    "tests/sdsearch/credit/test_contrast.py",
    "tests/sdsearch/credit/test_teacher_weights.py",
    "tests/sdsearch/credit/test_teacher.py",
    "tests/golden/test_same_context.py",
    "tests/golden/test_objective_against_naive.py",
    "tests/golden/test_random_groups.py",
)
_TURN_TESTS = (
    "tests/sdsearch/sampling/test_stopping.py",
    "tests/property/test_rollout_limits.py",
    "tests/property/test_turn_ends.py",
    "tests/sdsearch/sampling/test_rollouts.py",
)
_TEXT_TESTS = ("tests/sdsearch/credit/test_hindsight.py", "tests/property/test_foreign_text.py")
_PROTOCOL_TESTS = (
    "tests/sdsearch/protocol/test_tool_call.py",
    "tests/sdsearch/protocol/test_public_protocols.py",
    "tests/sdsearch/protocol/test_conformance.py",
)
_GATES = ("sigmoid", "influence", "attenuation", "outcome")
_STRENGTH_TEST = "tests/sdsearch/training/test_strength.py"
_CARD_TESTS = ("tests/flows/run/test_cards.py",)
_TRACKING_TESTS = ("tests/flows/tracking/test_tracking.py",)
# Source file -> the tests that look at it, the likeliest to notice first.
TESTS: dict[str, tuple[str, ...]] = {
    "sdsearch/credit/divergence.py": (
        "tests/property/test_divergences.py",
        "tests/golden/test_divergences_against_formula.py",
    ),
    "flows/tracking/worker.py": _TRACKING_TESTS,
    "flows/tracking/steps.py": _TRACKING_TESTS,
    "flows/tracking/tracking.py": _TRACKING_TESTS,
    "schemas/settings/root.py": _TRACKING_TESTS,
    "sdsearch/plugins/blame.py": ("tests/flows/plugins/test_blame.py",),
    "sdsearch/evaluation/judge.py": ("tests/sdsearch/evaluation/test_judge.py",),
    "schemas/settings/added.py": ("tests/flows/evaluation/test_judging.py",),
    "sdsearch/evaluation/answerability.py": ("tests/sdsearch/evaluation/test_answerability.py",),
    "flows/evaluation/answerability.py": ("tests/flows/evaluation/test_answerability.py",),
    "sdsearch/evaluation/agreement.py": ("tests/sdsearch/evaluation/test_agreement.py",),
    "flows/screen/truth.py": ("tests/flows/screen/test_screen.py",),
    "sdsearch/training/information_gain.py": ("tests/golden/test_information_gain.py",),
    "sdsearch/evaluation/curves.py": ("tests/sdsearch/evaluation/test_curves.py",),
    "sdsearch/evaluation/intervals.py": ("tests/sdsearch/evaluation/test_intervals.py",),
    "flows/study/figures.py": ("tests/flows/study/test_figures.py",),
    "flows/study/answers.py": ("tests/flows/study/test_figures.py",),
    "flows/study/held_out.py": ("tests/flows/study/test_held_out.py",),
    "flows/evaluation/share.py": ("tests/flows/evaluation/test_evaluation_workers.py",),
    "schemas/records/evaluation.py": ("tests/flows/evaluation/test_compare.py",),
    "flows/retrieval/compare.py": ("tests/flows/retrieval/test_index_commands.py",),
    "flows/evaluation/compare.py": ("tests/flows/evaluation/test_compare.py",),
    "schemas/settings/evaluation.py": ("tests/flows/evaluation/test_further_sets.py",),
    "flows/jobs/processes.py": ("tests/flows/jobs/test_places.py",),
    "flows/doctor/footprint.py": ("tests/flows/doctor/test_footprint.py", "tests/flows/plan/test_plan.py"),
    "flows/doctor/needs.py": ("tests/flows/plan/test_plan.py",),
    "flows/doctor/together.py": ("tests/flows/doctor/test_together.py",),
    "flows/orchestration/pool.py": ("tests/flows/orchestration/test_pool.py",),
    "flows/training/checkpoints.py": ("tests/flows/training/test_checkpoint_retention.py",),
    "flows/training/ranks/machines.py": ("tests/flows/training/test_machines.py",),
    "flows/training/ranks/join.py": ("tests/flows/training/test_machines.py",),
    "flows/training/ranks/attendance.py": ("tests/flows/training/test_rank_failures.py",),
    "flows/training/ranks/launch.py": _CARD_TESTS,
    "flows/run/cards.py": _CARD_TESTS,
    "schemas/settings/cards.py": _CARD_TESTS,
    "schemas/settings/rules.py": _CARD_TESTS,
    "sdsearch/sampling/vllm_engine.py": _CARD_TESTS,
    "flows/training/ranks/program.py": ("tests/flows/training/test_rank_failures.py",),
    "storage/disk/spread.py": ("tests/storage/disk/test_spread.py",),
    "flows/run/reference.py": ("tests/flows/run/test_reference.py",),
    "sdsearch/training/lm_head.py": _LOSS_TESTS,
    "sdsearch/training/policy_gradient.py": _LOSS_TESTS,
    "sdsearch/training/weights.py": _LOSS_TESTS,
    "sdsearch/training/loss.py": (*_LOSS_TESTS, "tests/sdsearch/training/test_ranks.py"),
    "sdsearch/model/sharding.py": ("tests/sdsearch/training/test_ranks.py",),
    "sdsearch/model/ranks.py": ("tests/sdsearch/training/test_ranks.py",),
    "sdsearch/model/balance.py": ("tests/sdsearch/model/test_balance.py", "tests/sdsearch/training/test_ranks.py"),
    "sdsearch/training/gradient.py": ("tests/sdsearch/training/test_gradient.py", *_LOSS_TESTS),
    "sdsearch/training/logprobs.py": (
        *_LOSS_TESTS,
        "tests/sdsearch/model/test_reference.py",
        "tests/sdsearch/training/test_missing_logprobs.py",
    ),
    "sdsearch/credit/retries.py": ("tests/golden/test_retries.py",),
    "sdsearch/training/alarms.py": ("tests/sdsearch/training/test_alarms.py",),
    "sdsearch/credit/filtering.py": ("tests/golden/test_filter.py",),
    "sdsearch/data/curriculum.py": ("tests/sdsearch/data/test_curriculum.py",),
    "sdsearch/training/update.py": (
        "tests/golden/test_retries.py",
        "tests/golden/test_filter.py",
        "tests/golden/test_steps_against_naive.py",
        "tests/sdsearch/training/test_update.py",
    ),
    **dict.fromkeys(
        [
            *(
                f"sdsearch/credit/gates/{name}.py"
                for name in ("ports", "sigmoid", "influence", "attenuation", "outcome")
            ),
            "sdsearch/credit/turn_advantage.py",
            "sdsearch/training/training_set.py",
        ],
        ("tests/sdsearch/credit/test_gates.py", "tests/golden/test_gates_and_form.py"),
    ),
    "sdsearch/training/strength.py": (_STRENGTH_TEST,),
    "schemas/settings/strength.py": (_STRENGTH_TEST,),
    "sdsearch/training/step_gradient.py": ("tests/golden/test_step_gradient.py", _STRENGTH_TEST),
    "sdsearch/model/attention.py": (
        "tests/sdsearch/model/test_attention.py",
        "tests/sdsearch/model/test_families.py",
        *_LOSS_TESTS,
    ),
    "sdsearch/model/visibility.py": (
        "tests/sdsearch/model/test_attention.py",
        "tests/sdsearch/model/test_families.py",
        *_LOSS_TESTS,
    ),
    "sdsearch/model/dropout.py": ("tests/sdsearch/model/test_dropout.py",),
    "sdsearch/model/averages.py": ("tests/sdsearch/credit/test_teacher_weights.py",),
    "sdsearch/model/policy.py": ("tests/sdsearch/model/test_vocabulary.py", "tests/sdsearch/model/test_families.py"),
    "sdsearch/sampling/slots.py": ("tests/sdsearch/model/test_families.py",),
    "sdsearch/training/selfcheck.py": ("tests/sdsearch/model/test_families.py",),
    "sdsearch/training/trial.py": ("tests/sdsearch/model/test_families.py",),
    "sdsearch/model/batching.py": (
        "tests/sdsearch/model/test_batching.py",
        "tests/sdsearch/training/test_only_what_is_needed.py",
        *_LOSS_TESTS,
        "tests/sdsearch/credit/test_teacher.py",
    ),
    "sdsearch/training/training_set.py": _LOSS_TESTS,
    "sdsearch/credit/teacher.py": _TEACHER_TESTS,
    "sdsearch/credit/teacher_views.py": _TEACHER_TESTS,
    "sdsearch/credit/positions.py": _TEACHER_TESTS,
    "sdsearch/credit/hindsight.py": (
        "tests/sdsearch/credit/test_block_members.py",
        *_TEXT_TESTS,
        *_TEACHER_TESTS,
    ),
    "flows/training/memory.py": ("tests/flows/training/test_block_settings.py",),
    "sdsearch/credit/block_text.py": ("tests/sdsearch/credit/test_block_members.py", *_TEXT_TESTS),
    "sdsearch/credit/own_query.py": ("tests/sdsearch/credit/test_block_members.py",),
    "sdsearch/credit/contrast.py": ("tests/sdsearch/credit/test_contrast.py",),
    "sdsearch/protocol/fitting.py": ("tests/property/test_block_room.py", "tests/sdsearch/credit/test_hindsight.py"),
    "sdsearch/protocol/search_r1.py": _PROTOCOL_TESTS,
    "sdsearch/protocol/autorefine.py": _PROTOCOL_TESTS,
    "sdsearch/protocol/tool_call.py": _PROTOCOL_TESTS,
    "sdsearch/protocol/chat_template.py": _PROTOCOL_TESTS,
    "sdsearch/protocol/prompting.py": (*_PROTOCOL_TESTS, "tests/sdsearch/protocol/test_prompting.py"),
    "flows/warmup/correct.py": ("tests/flows/warmup/test_sources.py",),
    "flows/warmup/sources.py": ("tests/flows/warmup/test_sources.py",),
    "sdsearch/training/supervised.py": ("tests/sdsearch/training/test_supervised.py",),
    "sdsearch/protocol/tokens.py": (
        "tests/sdsearch/protocol/test_parsing.py",
        "tests/property/test_query_tokens.py",
        *_TEXT_TESTS,
    ),
    "sdsearch/protocol/parsing.py": ("tests/sdsearch/protocol/test_parsing.py", "tests/property/test_query_tokens.py"),
    "sdsearch/credit/advantage.py": ("tests/property/test_advantages.py",),
    "sdsearch/credit/rewards.py": ("tests/sdsearch/credit/test_scoring.py",),
    "sdsearch/credit/scoring.py": ("tests/sdsearch/credit/test_scoring.py", "tests/sdsearch/credit/test_hindsight.py"),
    "sdsearch/retrieval/vectors.py": ("tests/sdsearch/retrieval/test_vectors.py",),
    "sdsearch/retrieval/server.py": ("tests/sdsearch/retrieval/test_retriever_clients.py",),
    "sdsearch/retrieval/http.py": ("tests/sdsearch/retrieval/test_http_retriever.py",),
    "sdsearch/retrieval/dense.py": (
        "tests/sdsearch/retrieval/test_vectors.py",
        "tests/sdsearch/retrieval/test_retrieval.py",
    ),
    "flows/inspect/web/compare.py": ("tests/flows/inspect/test_compare.py",),
    "flows/inspect/web/charts.py": ("tests/flows/inspect/test_compare.py",),
    "storage/database/stage_rows.py": ("tests/faults/test_retriever.py",),
    "storage/database/query_results.py": ("tests/flows/inspect/test_sql_rows.py",),
    "storage/database/ddl/06_views.sql": (
        "tests/flows/inspect/test_two_runs.py",
        "tests/storage/database/test_tables.py",
    ),
    "storage/database/queries/rollout_text.sql": ("tests/flows/inspect/test_two_runs.py",),
    "schemas/records/hindsight.py": _TEXT_TESTS,
    "schemas/settings/void.py": ("tests/schemas/test_void_settings.py",),
    "sdsearch/sampling/transformers_sampler.py": (*_TURN_TESTS, "tests/sdsearch/sampling/test_sampler.py"),
    "sdsearch/sampling/stopping.py": _TURN_TESTS,
    "sdsearch/sampling/rollouts.py": _TURN_TESTS,
    "sdsearch/sampling/vllm_weights.py": ("tests/flows/run/test_sampler.py",),
    "flows/run/sampler.py": ("tests/flows/run/test_sampler.py",),
    "sdsearch/sampling/homes.py": ("tests/sdsearch/sampling/test_homes.py",),
    "sdsearch/sampling/vllm_server.py": ("tests/sdsearch/sampling/test_vllm_server.py",),
    "sdsearch/sampling/vllm_client.py": ("tests/sdsearch/sampling/test_vllm_server.py",),
    "sdsearch/sampling/vllm_turns.py": (*_TURN_TESTS, "tests/sdsearch/sampling/test_overlapping_sampler.py"),
    "sdsearch/training/nothing_learnt.py": ("tests/sdsearch/training/test_nothing_learnt.py",),
    "flows/api/method.py": ("tests/flows/api/test_by_hand.py",),
    "flows/api/iteration.py": ("tests/flows/api/test_by_hand.py",),
    "flows/ask/plan.py": ("tests/flows/ask/test_plan.py",),
    "flows/ask/steps.py": ("tests/flows/ask/test_steps.py",),
    "flows/ask/blocks.py": ("tests/flows/ask/test_ask.py",),
    "flows/ask/work.py": ("tests/flows/ask/test_ask.py",),
    "flows/ask/show.py": ("tests/flows/ask/test_ask.py",),
    "flows/console/bars.py": ("tests/flows/console/test_bars.py",),
    "flows/run/progress.py": ("tests/flows/console/test_bars.py",),
    "flows/settings/load.py": ("tests/flows/settings/test_model_folder.py",),
    "flows/settings/model_folder.py": ("tests/flows/settings/test_model_folder.py",),
    "flows/training/watch.py": ("tests/flows/training/test_nothing_learnt.py",),
    "schemas/records/rollout.py": ("tests/sdsearch/sampling/test_rollouts.py", *_LOSS_TESTS),
}


@dataclass(frozen=True)
class Mutant:
    """One error: in `file`, `old` (which stands there once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    @property
    def tests(self) -> tuple[str, ...]:
        return TESTS[self.file]

    def apply(self, source: str) -> str:
        """Return the source with the error; ValueError when `old` does not stand there exactly once."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"mutation '{self.name}': its text stands {count} times in {self.file}, expected once")
        return source.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """Return every mutation, by file."""
    rows = tomllib.loads(_LIST.read_text(encoding="utf-8"))["mutants"]
    return [Mutant(**row) for row in rows]


def check(root: Path) -> list[str]:
    """Return what is wrong with the list itself, a sentence a mutation that does not fit the sources under `root`."""
    problems = []
    for mutant in mutants():
        try:
            mutated = mutant.apply((root / mutant.file).read_text(encoding="utf-8"))
            if mutant.file.endswith(".py"):
                compile(mutated, mutant.file, "exec")
        except (ValueError, SyntaxError) as error:
            problems.append(str(error))
    names = [mutant.name for mutant in mutants()]
    return problems + [f"two mutations are called '{name}'" for name in {n for n in names if names.count(n) > 1}]
