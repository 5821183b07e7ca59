"""What the mini policy would reach if it searched perfectly: a scripted oracle asks the gold queries, the policy reads.

    python benchmarks/oracle_search.py [--questions 400] [--policy mini] [--split dev] [--results benchmarks/README.md]

For each fact that a question needs, in order, the oracle writes the wording that brings its passage to the best place;
it knows the entity in between. Then the policy goes on by itself: it may answer, or search on until its searches are
used up. The gap between the two ways is what better searching can gain; what the oracle does not reach is the
retriever's (nothing found) or the reader's (found, not read).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from results import machine, put_results
from transformers import PreTrainedTokenizerBase

from flows.run.model_files import model_folder
from schemas.records.evaluation import EvaluationAnswer
from sdsearch.evaluation.answering import Asking, answer_questions, fixed_sample
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.protocol.tokens import encode
from sdsearch.sampling.ports import Respond, SampledTurn, Sampler, TurnRequest
from sdsearch.world import load_evidence, load_passages, load_questions
from sdsearch.world.build import make_loop, make_retriever
from sdsearch.world.demonstrations import turn_text
from sdsearch.world.markup import QuestionPlan, load_marked_world, unmark
from sdsearch.world.scripts import QueryBook

COLUMNS = ("passages", "queries", "decoding", "EM", "found", "read", "all evidence", "searches")


@dataclass(frozen=True)
class ScriptedSampler:
    """A `Sampler` that writes given turns first; then the policy's own sampler goes on with the conversation."""

    policy: Sampler
    tokenizer: PreTrainedTokenizerBase
    scripts: dict[str, tuple[str, ...]]  # By the question's key.

    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        """As of `Sampler`."""
        waiting = list(openings)
        so_far = {request.key: request.token_ids for request in openings}
        handed_over = []
        for place in range(max(map(len, self.scripts.values()))):
            scripted = [request for request in waiting if place < len(self._script(request))]
            handed_over += [request for request in waiting if place >= len(self._script(request))]
            turns = [self._turn(request, self._script(request)[place]) for request in scripted]
            waiting = list(respond(turns))
            for turn in turns:
                so_far[turn.key] += turn.token_ids
            for request in waiting:
                so_far[request.key] += request.token_ids
        opened = [replace(request, token_ids=so_far[request.key]) for request in [*handed_over, *waiting]]
        self.policy.converse(opened, respond)

    def _script(self, request: TurnRequest) -> tuple[str, ...]:
        return self.scripts[request.key.split("/")[1]]

    def _turn(self, request: TurnRequest, text: str) -> SampledTurn:
        ids = tuple(encode(self.tokenizer, text))
        return SampledTurn(request.key, ids, (0.0,) * len(ids), "search_closed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--policy", default="mini")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--results")
    options = parser.parse_args()
    lines = [
        f"`python benchmarks/oracle_search.py --questions {options.questions} --policy {options.policy} --split "
        f"{options.split}`, {machine()}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *(f"| {' | '.join(row)} |" for row in measure(options.policy, options.split, options.questions)),
    ]
    print("\n".join(lines))
    if options.results:
        put_results(options.results, "oracle_search", lines)


def measure(policy: str, split: str, num_questions: int) -> list[tuple[str, ...]]:
    """Return the table's rows."""
    path = model_folder(policy)
    model, tokenizer = load_model(path, "float32"), load_tokenizer(path)
    retriever, world = make_retriever(load_passages()), load_marked_world()
    questions = fixed_sample(load_questions(split), num_questions, 0)
    plans = {f"world:{plan.id}": plan for plan in world.plans if plan.split == split}
    book = QueryBook(world, list(plans.values()), retriever, Random(0))
    evidence, rows = load_evidence(split), []
    for num_passages in (1, 3):
        loop = make_loop(model, tokenizer, retriever)
        loop = replace(loop, limits=replace(loop.limits, num_passages=num_passages))
        scripts = {q.key: gold_turns(book, plans[q.key], num_passages) for q in questions}
        oracle = replace(loop, sampler=ScriptedSampler(loop.sampler, tokenizer, scripts))
        for name, asked in (("its own", loop), ("gold", oracle)):
            for mode in ("greedy", "sampled"):
                answers = answer_questions(asked, questions, Asking(mode, 1.0, 0, 0))
                rows.append((str(num_passages), name, mode, *figures(answers, evidence)))
    return rows


def gold_turns(book: QueryBook, plan: QuestionPlan, num_passages: int) -> tuple[str, ...]:
    """Return a search turn for each fact of the question: the wording whose evidence comes first."""
    turns = []
    for place, hop in enumerate(plan.hops):
        candidates = book.at(plan, place).all
        ranks = [min((n for n, hit in enumerate(c.hits) if hit in hop.gold), default=99) for c in candidates]
        best = min(range(len(candidates)), key=lambda number: ranks[number])
        turns.append(turn_text(unmark(candidates[best].query), place == 0))
    return tuple(turns)


def figures(answers: Sequence[EvaluationAnswer], evidence: dict[str, tuple[frozenset[str], ...]]) -> tuple[str, ...]:
    """Return EM, its parts, the share of questions with all evidence, and searches."""
    found = [answer for answer in answers if answer.num_golden_hits]
    shown = [{passage for search in answer.found for passage in search} for answer in answers]
    has_all = [all(f & s for f in evidence[a.question_key]) for a, s in zip(answers, shown, strict=True)]
    values = (
        sum(answer.em for answer in answers) / len(answers),
        len(found) / len(answers),
        sum(answer.em for answer in found) / max(1, len(found)),
        sum(has_all) / len(answers),
        sum(len(answer.queries) for answer in answers) / len(answers),
    )
    return tuple(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
