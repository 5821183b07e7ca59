"""Records survive the way to Arrow and parquet and back exactly."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import ArtifactRef, RunRecord, StageRecord
from schemas.records.passage import Passage, SearchHit
from schemas.records.rollout import Answer, Group, Malformed, Observation, Search
from storage.disk.codecs import record_schema, records_to_table, table_to_records
from storage.errors import RecordMismatchError
from tests.support.records import make_groups, make_run


class Circle(Record):
    kind: Literal["circle"] = "circle"
    radius: float
    tags: tuple[str, ...]


class Square(Record):
    kind: Literal["square"] = "square"
    side: int | None


class Point(Record):
    kind: Literal["point"] = "point"


Shape = Annotated[Circle | Square | Point, Field(discriminator="kind")]


class Inner(Record):
    flag: bool
    when: datetime | None
    grades: tuple[tuple[float, ...], ...]


class Everything(Record):
    text: str
    number: int
    real: float | None
    mode: Literal["on", "off"] | None
    inner: Inner | None
    inners: tuple[Inner, ...]
    shape: Shape
    shapes: tuple[Shape, ...]
    maybe: Shape | None
    gaps: tuple[int | None, ...]


TEXTS = st.text(max_size=8)
INTS = st.integers(-(2**63), 2**63 - 1)
REALS = st.floats(allow_nan=False)
MOMENTS = st.datetimes(timezones=st.just(UTC))
SHAPES = st.one_of(
    st.builds(Circle, radius=REALS, tags=st.lists(TEXTS, max_size=2).map(tuple)),
    st.builds(Square, side=st.none() | INTS),
    st.builds(Point),
)
INNERS = st.builds(
    Inner,
    flag=st.booleans(),
    when=st.none() | MOMENTS,
    grades=st.lists(st.lists(REALS, max_size=3).map(tuple), max_size=3).map(tuple),
)
EVERYTHING = st.builds(
    Everything,
    text=TEXTS,
    number=INTS,
    real=st.none() | REALS,
    mode=st.sampled_from(["on", "off", None]),
    inner=st.none() | INNERS,
    inners=st.lists(INNERS, max_size=2).map(tuple),
    shape=SHAPES,
    shapes=st.lists(SHAPES, max_size=3).map(tuple),
    maybe=st.none() | SHAPES,
    gaps=st.lists(st.none() | INTS, max_size=3).map(tuple),
)


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=2)
    return pq.ParquetFile(buffer).read()


@settings(max_examples=150, deadline=None)
@given(st.lists(EVERYTHING, max_size=5))
def test_every_kind_of_field_round_trips_through_parquet(records: list[Everything]) -> None:
    table = records_to_table(Everything, records)
    assert table.num_rows == len(records)
    assert table_to_records(Everything, through_parquet(table)) == records


@given(st.lists(EVERYTHING, min_size=2, max_size=5), st.data())
@settings(max_examples=50, deadline=None)
def test_a_slice_of_a_table_decodes_to_the_slice_of_the_records(records: list[Everything], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(records) - 1))
    table = records_to_table(Everything, records)
    assert table_to_records(Everything, table.slice(start)) == records[start:]


def test_groups_round_trip_with_their_tagged_actions() -> None:
    groups = make_groups()
    back = table_to_records(Group, through_parquet(records_to_table(Group, groups)))
    assert back == groups
    kinds = {type(turn.action) for group in back for rollout in group.rollouts for turn in rollout.turns}
    assert kinds == {Search, Answer, Malformed}


class Former(Record):
    text: str


class Later(Record):
    text: str
    inners: tuple[Inner, ...] = ()
    number: int = 7


def test_a_field_that_came_later_has_its_default_in_files_without_it() -> None:
    table = through_parquet(records_to_table(Former, [Former(text="a"), Former(text="b")]))
    assert table_to_records(Later, table) == [Later(text="a"), Later(text="b")]
    with pytest.raises(RecordMismatchError, match=r"differs in number"):
        table_to_records(Former, records_to_table(Later, [Later(text="a", number=8)]).drop_columns("inners"))


def test_times_in_another_zone_come_back_as_the_same_instant() -> None:
    record = make_run().model_copy(
        update={"created_at": datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))}
    )
    (back,) = table_to_records(RunRecord, records_to_table(RunRecord, [record]))
    assert back == record
    assert back.created_at.utcoffset() == timedelta(0)


def test_the_schema_follows_the_annotations() -> None:
    schema = record_schema(Observation)
    assert schema.field("kind").type == pa.string()
    assert not schema.field("kind").nullable
    hits = schema.field("hits").type
    assert hits == pa.list_(pa.field("element", pa.struct(list(record_schema(SearchHit))), nullable=False))
    assert hits.value_type.field("passage").type == pa.struct(list(record_schema(Passage)))
    assert record_schema(StageRecord).field("finished_at").nullable
    shape = record_schema(Everything).field("shape").type
    assert {field.name: str(field.type) for field in shape} == {
        "kind": "string",
        "radius": "double",
        "tags": "list<element: string not null>",
        "side": "int64",
    }


def test_a_value_beyond_64_bits_is_refused_by_name() -> None:
    reference = ArtifactRef(path="a", sha256="b", size_bytes=2**63)
    with pytest.raises(RecordMismatchError, match=r"ArtifactRef\.size_bytes"):
        records_to_table(ArtifactRef, [reference])


def test_a_table_of_other_records_is_refused_with_both_names() -> None:
    table = records_to_table(Passage, [Passage(id="1", title="t", text="x")])
    with pytest.raises(RecordMismatchError, match="does not hold SearchHit records: it was written as Passage"):
        table_to_records(SearchHit, table)


def test_a_renamed_column_is_named() -> None:
    table = records_to_table(Passage, [Passage(id="1", title="t", text="x")])
    with pytest.raises(RecordMismatchError, match="text, body"):
        table_to_records(Passage, table.rename_columns(["id", "title", "body"]))


class Step(Record):
    number: int
    share: float | None = None
    note: str = "none"


class Report(Record):
    steps: tuple[Step, ...]
    last: Step | None = None
    total: int = 7


def test_a_field_that_came_later_has_its_default_at_any_depth() -> None:
    """The table was written when a step had its number and its note alone, and a report its steps."""
    step = pa.struct([pa.field("number", pa.int64(), nullable=False), pa.field("note", pa.string(), nullable=False)])
    steps = pa.list_(pa.field("element", step, nullable=False))
    schema = pa.schema([pa.field("steps", steps, nullable=False)])
    table = pa.Table.from_pylist([{"steps": [{"number": 1, "note": "x"}, {"number": 2, "note": "y"}]}], schema=schema)
    (report,) = table_to_records(Report, through_parquet(table))
    assert report == Report(steps=(Step(number=1, note="x"), Step(number=2, note="y")))


@pytest.mark.parametrize(
    "fields",
    [
        [pa.field("note", pa.string(), nullable=False)],
        [pa.field("number", pa.int64(), nullable=False), pa.field("gone", pa.string())],
        [pa.field("number", pa.float64(), nullable=False)],
        [pa.field("number", pa.int64(), nullable=True)],
        [pa.field("note", pa.string(), nullable=False), pa.field("number", pa.int64(), nullable=False)],
    ],
    ids=["needed", "unknown", "type", "empty", "order"],
)
def test_what_is_needed_unknown_or_of_another_type_is_refused_at_any_depth(fields: list[pa.Field]) -> None:
    steps = pa.list_(pa.field("element", pa.struct(fields), nullable=False))
    inside = pa.Table.from_pylist([], schema=pa.schema([pa.field("steps", steps, nullable=False)]))
    for record_type, table in ((Report, inside), (Step, pa.Table.from_pylist([], schema=pa.schema(fields)))):
        with pytest.raises(RecordMismatchError, match=f"does not hold {record_type.__name__} records"):
            table_to_records(record_type, table)


def test_stored_rows_are_validated_on_reading() -> None:
    table = pa.Table.from_pylist([{"id": "", "title": "t", "text": "x"}], schema=record_schema(Passage))
    with pytest.raises(RecordMismatchError, match="at least 1 character"):
        table_to_records(Passage, table)


def test_annotations_without_an_arrow_form_are_refused() -> None:
    class Loose(Record):
        value: dict[str, int]

    class Ambiguous(Record):
        value: Passage | ArtifactRef

    class Round(Record):
        kind: Literal["round"]
        size: int

    class Long(Record):
        kind: Literal["long"]
        size: str

    class Clash(Record):
        value: Annotated[Round | Long, Field(discriminator="kind")]

    with pytest.raises(TypeError, match=r"Loose\.value"):
        record_schema(Loose)
    with pytest.raises(TypeError, match="no Literal field"):
        record_schema(Ambiguous)
    with pytest.raises(TypeError, match="disagree on the type of 'size'"):
        record_schema(Clash)
