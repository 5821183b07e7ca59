"""What a warm-up shows: the CORRECT rollouts of an export in the words of any protocol, and how often a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from flows.warmup.correct import Shown, correct_rollouts, fingerprint
from flows.warmup.sources import make_batches, open_source
from schemas.errors import UserError
from schemas.records.conversation import Conversation, Message, SaidTurn
from schemas.records.rollout import Group, Rollout
from schemas.settings.root import Settings
from sdsearch.protocol.prompting import render_frame
from sdsearch.protocol.tokens import decode
from sdsearch.training.supervised import Demonstration, Layout
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.builders import make_groups, make_tokenizer
from tests.support.protocols import ROWS

BY_ID = {row.id: row for row in ROWS}
SEARCH, ANSWER = "<think> a </think><search> capital </search>", "<answer> Andorra la Vella </answer>"
TEXTS = (
    (SEARCH, ANSWER),
    ("<search> river </search>", "<answer> tree </answer>"),
    ("hello", ANSWER),
    ("<search> state </search>", "<search> b </search>", "<search> c </search>", "<search> not sent </search>"),
)
CORRECT = {0, 2}


def conversation(group: Group, rollout: Rollout) -> Conversation:
    messages = [Message(role="user", content=group.question.question)]
    for turn in rollout.turns:
        messages.append(Message(role="assistant", content=turn.generation.text))
        messages += [Message(role="tool", content=turn.observation.text)] if turn.observation else []
    right = rollout.index in CORRECT
    return Conversation(
        messages=tuple(messages),
        turns=tuple(SaidTurn.of(turn) for turn in rollout.turns),
        em=float(right),
        f1=float(right),
        reward=float(right),
        advantage=0.0,
        outcome="CORRECT" if right else "INCORRECT",
        answer=rollout.answer,
        golden_answers=group.question.golden_answers,
        question_key=group.question.key,
        run="elsewhere",
        iteration=1,
        group_id=group.id,
        rollout_id=rollout.id,
    )


def write_export(folder: Path) -> Path:
    """A folder as `sdsearch export --rollouts` writes it: two groups of four, in each two CORRECT, one well-formed."""
    folder.mkdir()
    groups = make_groups(make_tokenizer("text"), texts=TEXTS)
    lines = [conversation(group, rollout).model_dump_json() for group in groups for rollout in group.rollouts]
    (folder / "conversations.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "export")


def settings(folder: Path, **warmup: object) -> Settings:
    return Settings.model_validate({"model": {"path": "mini"}, "warmup": {"demonstrations": str(folder), **warmup}})


def layout_of(name: str) -> Layout:
    row = BY_ID[name]
    own, tokenizer = row.open(), row.make()
    return Layout(tokenizer, own, render_frame(tokenizer, "compact", own), 300, 400)


def shown_by(folder: Path, name: str = "tags") -> list[Shown]:
    chosen = settings(folder)
    return correct_rollouts(chosen.warmup, Storage(Workspace(folder), 1.0), layout_of(name))


def test_correct_rollouts_without_an_ill_formed_turn_are_shown(export: Path) -> None:
    shown = shown_by(export)
    assert [one.question for one in shown] == ["What is the capital of Andorra?", "What is the capital of Andorra??"]
    for one in shown:
        (search, hits), (answer, nothing) = one.turns
        assert (search, answer, nothing) == (SEARCH, ANSWER, None), "as they were sampled"
        assert [hit.passage.title for hit in hits or ()] == ["Andorra"]
        said = [(each.rollout_index, each.label, each.contents) for each in one.attempts]
        assert said == [
            (0, "CORRECT", ("capital",)),
            (1, "INCORRECT", ("river",)),
            (2, "CORRECT", ()),
            (3, "INCORRECT", ("state", "b", "c")),
        ]


@pytest.mark.parametrize("name", ["search_r1", "qwen25", "qwen3", "llama"])
def test_they_are_told_in_the_words_of_the_protocol(export: Path, name: str) -> None:
    layout = layout_of(name)
    for one in shown_by(export, name):
        said = [layout.protocol.parse(text) for text, _ in one.turns]
        assert [action.model_dump() for action in said] == [
            {"kind": "search", "query": "capital"},
            {"kind": "answer", "answer": "Andorra la Vella"},
        ]
        assert all(text.endswith(layout.protocol.turn_end(layout.tokenizer)) for text, _ in one.turns)


@pytest.mark.parametrize(("share", "lowest", "highest"), [(0.0, 0, 0), (1.0, 200, 200), (0.3, 40, 80)])
def test_a_share_of_them_begins_with_a_block(export: Path, share: float, lowest: int, highest: int) -> None:
    layout = layout_of("tags")
    chosen = settings(export, block_share=share, tokens_per_batch=100_000)
    batch = next(make_batches(chosen, open_source(chosen, Storage(Workspace(export), 1.0), layout).draw, 1000))
    texts = [decode(layout.tokenizer, row.tolist()) for row in batch.ids_BT]
    assert len(texts) == 200
    assert lowest <= sum("Attempt 1 (CORRECT): capital" in text for text in texts) <= highest


def test_batches_depend_on_the_seed_alone(export: Path) -> None:
    chosen, layout = settings(export, block_share=0.5), layout_of("tags")
    draw = open_source(chosen, Storage(Workspace(export), 1.0), layout).draw
    first, again = (next(make_batches(chosen, draw, 1000)) for _ in range(2))
    other = next(make_batches(chosen.model_copy(update={"seed": chosen.seed + 1}), draw, 1000))
    assert first.ids_BT.equal(again.ids_BT)
    assert first.weights_BT.equal(again.weights_BT)
    assert not (first.ids_BT.shape == other.ids_BT.shape and first.ids_BT.equal(other.ids_BT))


def test_what_has_no_room_is_left_out(export: Path) -> None:
    def draw(with_block: bool, random: Random) -> Demonstration:
        length = random.choice((5, 50))
        return Demonstration((7,) * length, (1.0,) * length)

    batch = next(make_batches(settings(export), draw, 49))
    assert batch.ids_BT.shape[1] == 5
    with pytest.raises(UserError, match="the shortest demonstration has 5 tokens, the model's context 4"):
        next(make_batches(settings(export), draw, 4))


def test_the_fingerprint_follows_what_is_shown(export: Path) -> None:
    shown = shown_by(export)
    assert fingerprint(shown) == fingerprint(shown_by(export)) != fingerprint(shown[:1])
    assert fingerprint(shown) != fingerprint(shown_by(export, "qwen25"))
    relabelled = [one._replace(attempts=one.attempts[:1]) for one in shown]
    assert fingerprint(shown) != fingerprint(relabelled)


def cut(text: str) -> str:
    return text[:-20]


def of_an_earlier_version(text: str) -> str:
    return text.replace('"turns":', '"spans":')


def hopeless(text: str) -> str:
    return text.replace('"outcome":"CORRECT"', '"outcome":"INCORRECT"')


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            cut,
            r"line 8 of .*conversations.jsonl is no rollout of this version's export .*sdsearch export RUN --rollouts",
        ),
        (of_an_earlier_version, r"line 1 of .*\(turns: Field required\)"),
        (hopeless, r"export '.*' has no well-formed CORRECT rollout \(8 are scored\)"),
    ],
)
def test_an_export_that_shows_nothing_is_refused(export: Path, spoil: Callable[[str], str], told: str) -> None:
    file = export / "conversations.jsonl"
    file.write_text(spoil(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=told) as caught:
        shown_by(export)
    assert "\n" not in str(caught.value)


def test_a_folder_without_rollouts_and_turns_that_do_not_fit_are_refused(export: Path) -> None:
    with pytest.raises(UserError, match=r"conversations.jsonl cannot be read \(No such file"):
        shown_by(export / "elsewhere")
    file = export / "conversations.jsonl"
    one = Conversation.model_validate_json(file.read_text(encoding="utf-8").splitlines()[0])
    file.write_text(one.model_copy(update={"turns": one.turns[:1]}).model_dump_json() + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has 2 messages of the assistant and 1 turns, expected as many"):
        shown_by(export)
