"""A study's table, CSV and picture, from results drawn by hand."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from flows.study.plot import draw_curves
from flows.study.results import estimate
from flows.study.rewards import draw_rewards, reward_curves
from flows.study.show import curves_csv, print_results, table_markdown
from schemas.records.evaluation import EvaluationMode, EvaluationReport
from schemas.records.study import PairedDifference, RewardMean, RunOutcome, Study, StudyResults, Variant, VariantSummary
from tests.support.records import make_evaluation

DIFFERENCE = PairedDifference(mean=0.1, low=-0.05, high=0.25, num_seeds=2, num_questions=10)


def evaluation(updates: int, mode: EvaluationMode, em: float) -> EvaluationReport:
    report, _ = make_evaluation()
    figures = {"iteration": updates, "mode": mode, "em": em, "search_quality": 0.25, "searches_per_rollout": 1.5}
    return report.model_copy(update={**figures, "num_questions": 10})


def outcome(variant: str, seed: int, ems: tuple[float, ...], finished: bool = True) -> RunOutcome:
    modes: tuple[EvaluationMode, ...] = ("greedy", "sampled")
    return RunOutcome(
        run=f"toy-{variant}-s{seed}",
        variant=variant,
        seed=seed,
        finished=finished,
        updates_done=4 * (len(ems) - 1),
        num_iterations=4,
        evaluations=tuple(evaluation(4 * n, mode, em) for n, em in enumerate(ems) for mode in modes),
    )


def summary(
    variant: str, mode: EvaluationMode, ems: list[float], difference: PairedDifference | None
) -> VariantSummary:
    return VariantSummary(
        variant=variant,
        mode=mode,
        num_seeds=len(ems),
        final_em=estimate(ems),
        best_em=estimate(ems),
        search_quality=estimate([0.25] * len(ems)),
        searches_per_rollout=estimate([1.5] * len(ems)),
        difference=difference,
    )


def make_results(others: tuple[str, ...] = ("b|ar",)) -> StudyResults:
    """A baseline of two finished seeds and one that is not, and variants of two."""
    names = [f"v{number}" for number in range(len(others))]
    variants = {"grpo": Variant(title="GRPO")} | {n: Variant(title=t) for n, t in zip(names, others, strict=True)}
    study = Study(name="toy", base="tiny", baseline="grpo", seeds=(0, 1, 2), variants=variants)
    outcomes = [outcome("grpo", 0, (0.3, 0.5)), outcome("grpo", 1, (0.3, 0.6)), outcome("grpo", 2, (0.9,), False)]
    outcomes += [outcome(name, seed, (0.3, 0.6 + 0.1 * seed)) for name in names for seed in (0, 1)]
    summaries = [
        row
        for mode in ("greedy", "sampled")
        for row in (
            summary("grpo", mode, [0.5, 0.6], None),
            *(summary(name, mode, [0.6, 0.7], DIFFERENCE) for name in names),
        )
    ]
    return StudyResults(study=study, outcomes=tuple(outcomes), summaries=tuple(summaries))


def test_estimates_are_unbiased_and_one_seed_has_no_spread() -> None:
    assert estimate([0.4, 0.6]).std == pytest.approx(0.2 / 2**0.5)
    assert estimate([0.4]).std is None


def test_the_table_has_each_figure_and_what_is_not_finished() -> None:
    text = table_markdown(make_results(), picture="curves.svg")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][4] == "difference to GRPO"
    assert rows[2] == ["GRPO", "2", "0.550 ± 0.071", "0.550 ± 0.071", "–", "–", "0.250 ± 0.000", "1.500 ± 0.000"]
    assert rows[3][:2] == ["b&#124;ar", "2"]
    assert rows[3][4:6] == ["+0.100", "-0.050 … +0.250"]
    assert "Not finished, and not counted: toy-grpo-s2 (0 of 4 updates)." in text
    assert "4 of 5 runs finished, 10 dev questions of toy." in text
    assert "](curves.svg)" in text
    assert "](" not in table_markdown(make_results())


def test_a_variant_that_only_warms_up_is_called_plain_grpo() -> None:
    results = make_results()
    outcomes = tuple(o.model_copy(update={"only_warms_up": o.variant == "v0"}) for o in results.outcomes)
    warmed = results.model_copy(update={"outcomes": outcomes})
    assert "(all warm-up: plain GRPO)" not in table_markdown(results)
    rows = [line for line in table_markdown(warmed).splitlines() if line.startswith("| b&#124;ar")]
    assert rows
    assert all(line.startswith("| b&#124;ar (all warm-up: plain GRPO) |") for line in rows)
    assert "b|ar (all warm-up: plain GRPO)" in draw_curves(warmed, "svg").decode()


def test_learning_curves_are_means_over_finished_runs() -> None:
    text = table_markdown(make_results())
    curve = text[text.index("GRPO:") : text.index("b|ar:")].splitlines()
    assert curve[2].startswith("| updates | greedy EM | sampled EM | search quality, sampled |")
    assert curve[4].startswith("| 0 | 0.300 ± 0.000 | 0.300 ± 0.000 | 0.250 ± 0.000 |")
    assert curve[5].startswith("| 4 | 0.550 ± 0.071 | 0.550 ± 0.071 |")


def test_the_terminal_gets_the_same_rows() -> None:
    console = Console(file=io.StringIO(), width=160)
    print_results(make_results(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("-0.050 … +0.250") == 2
    assert "10 dev questions of toy, sampled" in text
    assert "toy-grpo-s2 (0 of 4 updates)" in text


def test_the_csv_has_every_evaluation() -> None:
    rows = list(csv.DictReader(io.StringIO(curves_csv(make_results()))))
    assert len(rows) == 4 * 4 + 2
    last = [row for row in rows if row["run"] == "toy-v0-s1" and row["updates_done"] == "4"]
    assert {(row["mode"], row["em"], row["searches_per_rollout"]) for row in last} == {
        ("greedy", "0.7", "1.5"),
        ("sampled", "0.7", "1.5"),
    }


def test_few_variants_share_a_panel_and_the_picture_is_the_same_twice() -> None:
    picture = draw_curves(make_results(("SD $x_1$", "other")), "svg")
    assert draw_curves(make_results(("SD $x_1$", "other")), "svg") == picture
    text = picture.decode()
    for label in ("greedy decoding", "sampled decoding", "SD $x_1$ (2 seeds)", "exact match (share of dev questions)"):
        assert f">{label}</text>" in text
    assert "updates done (iterations)" in text
    assert "<dc:date>" not in text
    assert draw_curves(make_results(), "png").startswith(b"\x89PNG")


def test_many_variants_get_a_panel_each_beside_the_baseline() -> None:
    names = tuple(f"variant {number}" for number in range(6))
    text = draw_curves(make_results(names), "svg").decode()
    assert text.count("GRPO (2 seeds)") == 6
    assert all(f"{name} (2 seeds)" in text for name in names)
    assert "questions, greedy)" in text


def test_the_parts_of_the_reward_are_drawn_for_finished_runs() -> None:
    plain = make_results()
    assert draw_rewards(plain) is None
    earned = {("grpo", 0): 0.5, ("grpo", 1): 0.75, ("grpo", 2): 9.0, ("v0", 0): 0.25}
    outcomes = [
        o.model_copy(
            update={
                "rewards": tuple(
                    RewardMean(iteration=iteration, part=part, mean=earned[o.variant, o.seed])
                    for part in ("f1", "price")
                    for iteration in (1, 2)
                )
            }
        )
        if (o.variant, o.seed) in earned
        else o
        for o in plain.outcomes
    ]
    results = plain.model_copy(update={"outcomes": tuple(outcomes)})
    curves = reward_curves(results)
    assert curves["f1"] == {"grpo": {1: [0.5, 0.75], 2: [0.5, 0.75]}, "v0": {1: [0.25], 2: [0.25]}}
    picture = draw_rewards(results)
    assert picture is not None
    assert picture == draw_rewards(results)
    for text in ("reward: f1", "reward: price", "GRPO (2 seeds)", "b|ar (1 seed)"):
        assert text in picture.decode()
