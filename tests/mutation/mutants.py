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
    "tests/unit/test_update.py",
)
_TEACHER_TESTS = (
    "tests/unit/test_teacher.py",
    "tests/golden/test_same_context.py",
    "tests/golden/test_objective_against_naive.py",
    "tests/golden/test_random_groups.py",
)
_TURN_TESTS = (
    "tests/unit/test_stopping.py",
    "tests/property/test_rollout_limits.py",
    "tests/property/test_turn_ends.py",
    "tests/unit/test_rollouts.py",
)
_TEXT_TESTS = ("tests/unit/test_hindsight.py", "tests/property/test_foreign_text.py")
# Source file -> the tests that look at it, the likeliest to notice first.
TESTS: dict[str, tuple[str, ...]] = {
    "sdsearch/objective/divergence.py": (
        "tests/property/test_divergences.py",
        "tests/golden/test_divergences_against_formula.py",
    ),
    "sdsearch/objective/heads.py": _LOSS_TESTS,
    "sdsearch/objective/policy_gradient.py": _LOSS_TESTS,
    "sdsearch/objective/weights.py": _LOSS_TESTS,
    "sdsearch/loss.py": _LOSS_TESTS,
    "sdsearch/gradient.py": ("tests/unit/test_gradient.py", *_LOSS_TESTS),
    "sdsearch/logprobs.py": (*_LOSS_TESTS, "tests/unit/test_reference.py", "tests/unit/test_missing_logprobs.py"),
    "sdsearch/update.py": ("tests/golden/test_steps_against_naive.py", "tests/unit/test_update.py"),
    "sdsearch/attention.py": ("tests/unit/test_attention.py", "tests/unit/test_families.py", *_LOSS_TESTS),
    "sdsearch/visibility.py": ("tests/unit/test_attention.py", "tests/unit/test_families.py", *_LOSS_TESTS),
    "sdsearch/dropout.py": ("tests/unit/test_dropout.py",),
    "sdsearch/policy.py": ("tests/unit/test_vocabulary.py", "tests/unit/test_families.py"),
    "sdsearch/sampling/slots.py": ("tests/unit/test_families.py",),
    "sdsearch/selfcheck.py": ("tests/unit/test_families.py",),
    "sdsearch/trial.py": ("tests/unit/test_families.py",),
    "sdsearch/batching.py": (
        "tests/unit/test_batching.py",
        "tests/unit/test_only_what_is_needed.py",
        *_LOSS_TESTS,
        "tests/unit/test_teacher.py",
    ),
    "sdsearch/training_set.py": _LOSS_TESTS,
    "sdsearch/teacher.py": _TEACHER_TESTS,
    "sdsearch/hindsight.py": (*_TEXT_TESTS, *_TEACHER_TESTS),
    "sdsearch/fitting.py": ("tests/property/test_block_room.py", "tests/unit/test_hindsight.py"),
    "sdsearch/tokens.py": ("tests/unit/test_parsing.py", "tests/property/test_query_tokens.py", *_TEXT_TESTS),
    "sdsearch/parsing.py": ("tests/unit/test_parsing.py", "tests/property/test_query_tokens.py"),
    "sdsearch/advantage.py": ("tests/property/test_advantages.py",),
    "sdsearch/scoring.py": ("tests/unit/test_scoring.py", "tests/unit/test_hindsight.py"),
    "sdsearch/retrieval/vectors.py": ("tests/unit/test_vectors.py",),
    "sdsearch/retrieval/server.py": ("tests/integration/test_retriever_clients.py",),
    "sdsearch/retrieval/http.py": ("tests/integration/test_http_retriever.py",),
    "sdsearch/retrieval/dense.py": ("tests/unit/test_vectors.py", "tests/unit/test_retrieval.py"),
    "storage/answers.py": ("tests/integration/test_sql_rows.py",),
    "storage/ddl/06_views.sql": ("tests/integration/test_two_runs.py",),
    "storage/queries/rollout_text.sql": ("tests/integration/test_two_runs.py",),
    "schemas/hindsight.py": _TEXT_TESTS,
    "schemas/void.py": ("tests/unit/test_void_settings.py",),
    "sdsearch/sampling/transformers_sampler.py": (*_TURN_TESTS, "tests/integration/test_sampler.py"),
    "sdsearch/sampling/stopping.py": _TURN_TESTS,
    "sdsearch/sampling/rollouts.py": _TURN_TESTS,
    "sdsearch/sampling/vllm_turns.py": (*_TURN_TESTS, "tests/unit/test_overlapping_sampler.py"),
    "sdsearch/nothing_learnt.py": ("tests/unit/test_nothing_learnt.py",),
    "flows/settings.py": ("tests/unit/test_model_settings.py",),
    "flows/model_settings.py": ("tests/unit/test_model_settings.py",),
    "flows/watch.py": ("tests/integration/test_nothing_learnt.py",),
    "schemas/rollout.py": ("tests/unit/test_rollouts.py", *_LOSS_TESTS),
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
