"""Scripted rollouts: what a searcher of mixed skill would ask, what the real retriever replies, how it answers.

Everything here is marked text (see `markup`), so that one script can be told with many names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

from schemas.records.hindsight import Label, label_outcome
from sdsearch.credit.scoring import f1_score
from sdsearch.retrieval.ports import Retriever
from sdsearch.world.markup import Hop, MarkedWorld, QuestionPlan, slots, unmark

PASSAGES_PER_QUERY = 3
_SEARCH_BATCH = 4096
_GOOD_SHARE, _RETRY_SHARE = 0.5, 0.45


class Candidate(NamedTuple):
    """A query that a searcher might try at some hop, and what the retriever returns for it."""

    query: str
    hits: tuple[str, ...]


class HopQueries(NamedTuple):
    """A hop's candidates: those that find its evidence, and those that do not."""

    good: tuple[Candidate, ...]
    bad: tuple[Candidate, ...]

    @property
    def all(self) -> tuple[Candidate, ...]:
        return self.good + self.bad


class ScriptedTurn(NamedTuple):
    """One search; `found` says whether it brought the evidence that was wanted then."""

    query: str
    hits: tuple[str, ...]
    found: bool


class Script(NamedTuple):
    """One scripted rollout."""

    turns: tuple[ScriptedTurn, ...]
    answer: str

    @property
    def queries(self) -> tuple[str, ...]:
        return tuple(turn.query for turn in self.turns)


def label_script(script: Script, plan: QuestionPlan) -> Label:
    """Label a script by its answer's F1, as the method labels rollouts (rho = 0)."""
    return label_outcome(f1_score(unmark(script.answer), [unmark(golden) for golden in plan.golden_answers]), 0.0)


class QueryBook:
    """Every plan's candidate queries with the retriever's replies, searched once in large batches.

    `num_passages`: how many passages a reply has; a query is good when one of them is the evidence.
    """

    def __init__(
        self,
        world: MarkedWorld,
        plans: Sequence[QuestionPlan],
        retriever: Retriever,
        random: Random,
        num_passages: int = PASSAGES_PER_QUERY,
    ) -> None:
        self._passages = world.passages
        relations = _relations_by_kind(plans)
        worded = {
            (plan.id, position): tuple(
                dict.fromkeys((*_good_wordings(plan.hops[position]), *_bad_wordings(plan, position, relations, random)))
            )
            for plan in plans
            for position in range(len(plan.hops))
        }
        asked = {unmark(query) for queries in worded.values() for query in queries}
        hits = _search_all(retriever, asked, num_passages)
        self._queries = {
            (plan.id, position): _sort_out(worded[plan.id, position], hits, hop)
            for plan in plans
            for position, hop in enumerate(plan.hops)
        }

    def at(self, plan: QuestionPlan, position: int) -> HopQueries:
        """Return the candidates for the plan's hop number `place`."""
        return self._queries[plan.id, position]

    def names_in(self, hits: Iterable[str]) -> list[str]:
        """Return the marked names in the passages, as they could be guessed as an answer."""
        return [slot for hit in hits for slot in slots(self._passages[hit].title + self._passages[hit].text)]


def write_script(book: QueryBook, plan: QuestionPlan, random: Random, max_searches: int) -> Script:
    """Search hop by hop with good and bad queries; after a miss try again or guess from what was read."""
    turns: list[ScriptedTurn] = []
    for position in range(len(plan.hops)):
        found = False
        while not found:
            if len(turns) == max_searches:
                return Script(tuple(turns), _guess(book, plan, turns))
            turns.append(_try_once(book.at(plan, position), turns, random))
            found = turns[-1].found
            if not found and random.random() > _RETRY_SHARE:
                return Script(tuple(turns), _guess(book, plan, turns))
    return Script(tuple(turns), plan.golden_answers[0])


def follow_queries(book: QueryBook, plan: QuestionPlan, turns: Sequence[ScriptedTurn]) -> Script:
    """Repeat given searches and answer from them: rightly when the last hop's evidence came, else a guess."""
    read = {hit for turn in turns for hit in turn.hits}
    right = all(read & hop.gold for hop in plan.hops)
    answer = plan.golden_answers[0] if right else _guess(book, plan, turns)
    return Script(tuple(turns), answer)


def _try_once(queries: HopQueries, past: Sequence[ScriptedTurn], random: Random) -> ScriptedTurn:
    tried = {turn.query for turn in past}
    wanted = queries.good if random.random() < _GOOD_SHARE else queries.bad
    fresh = [candidate for candidate in wanted or queries.all if candidate.query not in tried]
    chosen = random.choice(fresh or queries.all)
    return ScriptedTurn(chosen.query, chosen.hits, chosen in queries.good)


def _guess(book: QueryBook, plan: QuestionPlan, turns: Sequence[ScriptedTurn]) -> str:
    """Take a name from the best passage of the last search; what is at hand, were it of the wrong kind."""
    names = book.names_in(turns[-1].hits[:1]) or book.names_in(turns[-1].hits)
    return names[-1] if names else plan.hops[0].subject


def _relations_by_kind(plans: Sequence[QuestionPlan]) -> dict[str, list[str]]:
    """Return for each relation the relations that are asked of the same kind of thing."""
    kinds: dict[str, set[str]] = {}
    for plan in plans:
        if plan.category.startswith("1hop"):
            kinds.setdefault(plan.category, set()).add(plan.hops[0].relation)
    return {relation: sorted(kind) for kind in kinds.values() for relation in sorted(kind)}


def _good_wordings(hop: Hop) -> list[str]:
    relation, subject = hop.relation, hop.subject
    if hop.bridge is None:
        return [
            f"{relation} of {subject}",
            f"{subject} {relation}",
            f"{relation} {subject}",
            f"the {relation} of {subject}",
            f"{relation} in {subject}",
        ]
    described = hop.bridge.removeprefix("the ")
    return [
        described,
        f"{relation} {subject}",
        f"{subject} {relation}",
        f"{subject} {described.split()[0]}",
        f"which {described.split()[0]} has {subject}",
    ]


def _bad_wordings(plan: QuestionPlan, position: int, relations: dict[str, list[str]], random: Random) -> list[str]:
    """Word what goes wrong: the bare entity or relation, another relation, a hop skipped."""
    hop, last = plan.hops[position], plan.hops[-1]
    others = [r for r in relations.get(last.relation, sorted(relations)) if r not in (hop.relation, last.relation)]
    wrong = random.sample(others, k=min(2, len(others)))
    worded = [hop.subject, hop.relation, *(f"{relation} of {hop.subject}" for relation in wrong)]
    if len(plan.hops) == 2 and last.bridge is None and plan.category != "comparison":
        first = plan.hops[0].subject
        worded += [f"{last.relation} of {first}", f"{first} {last.relation}"]
    return worded


def _search_all(retriever: Retriever, queries: set[str], num_passages: int) -> dict[str, tuple[str, ...]]:
    ordered, found = sorted(queries), {}
    for start in range(0, len(ordered), _SEARCH_BATCH):
        batch = ordered[start : start + _SEARCH_BATCH]
        replies = retriever.search(batch, num_passages)
        found.update({query: tuple(hit.passage.id for hit in hits) for query, hits in zip(batch, replies, strict=True)})
    return found


def _sort_out(worded: Sequence[str], hits: dict[str, tuple[str, ...]], hop: Hop) -> HopQueries:
    candidates = [Candidate(query, hits[unmark(query)]) for query in worded]
    good = tuple(candidate for candidate in candidates if hop.gold & set(candidate.hits))
    return HopQueries(good, tuple(candidate for candidate in candidates if candidate not in good))
