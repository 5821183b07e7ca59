"""The six stages of an iteration as the graph they are: where each stands, and which of the others it reads."""

from __future__ import annotations

from typing import Final, NamedTuple

from flows.inspect.web.source import Source
from schemas.records.ledger import STAGES, RunRecord, StageKey, StageName, StageRecord

READS: Final[dict[StageName, tuple[StageName, ...]]] = {
    "sample": (),
    "score": ("sample",),
    "hindsight": ("sample", "score"),
    "teacher": ("sample", "hindsight"),
    "update": ("sample", "score", "teacher"),
    "evaluate": ("update",),
}
"""The stages of the same iteration whose outputs a stage reads; the first one reads the update before it."""
_WIDTH: Final = 120  # From one stage to the next in the drawing.
_MIDDLE: Final = 96
_BEND: Final = 26  # How much farther from the line an arc bends that passes one more stage.


class Node(NamedTuple):
    """A stage in the drawing: the middle of its box, and its newest attempt, None where it was never begun."""

    stage: StageName
    x: int
    y: int
    attempt: StageRecord | None


class Graph(NamedTuple):
    """An iteration's stages in their order from left to right, and the lines between them as SVG paths."""

    iteration: int
    nodes: list[Node]
    edges: list[str]

    @property
    def errors(self) -> list[Node]:
        """The stages whose newest attempt did not do it, with what it says."""
        return [node for node in self.nodes if node.attempt is not None and node.attempt.error]


def graph_of(source: Source, run: str, iteration: int) -> Graph:
    """Return an iteration's stages as the files tell them: what is under way stands in them first."""
    nodes = []
    for place, stage in enumerate(STAGES):
        key = StageKey(run=run, iteration=iteration, stage=stage)
        attempts = source.ledger.history(key).attempts
        nodes.append(Node(stage, _WIDTH // 2 + place * _WIDTH, _MIDDLE, attempts[-1] if attempts else None))
    return Graph(iteration, nodes, [_edge(STAGES.index(a), STAGES.index(b)) for b in STAGES for a in READS[b]])


def newest_graph(source: Source, record: RunRecord) -> Graph:
    """Return the iteration under way, or the last one that is done."""
    graph = graph_of(source, record.run, record.iterations_done + 1)
    if any(node.attempt for node in graph.nodes):
        return graph
    return graph_of(source, record.run, record.iterations_done)


def _edge(start: int, end: int) -> str:
    """Return a line from one stage to the next, or an arc over those between; one from `score` passes below."""
    left, right = _WIDTH // 2 + start * _WIDTH, _WIDTH // 2 + end * _WIDTH
    if end == start + 1:
        return f"M{left + 46} {_MIDDLE} L{right - 48} {_MIDDLE}"
    side = 1 if STAGES[start] == "score" else -1
    y, bend = _MIDDLE + side * 21, _MIDDLE + side * (30 + _BEND * (end - start - 1))
    return f"M{left} {y} C{left + 30} {bend} {right - 30} {bend} {right} {y + side * 2}"
