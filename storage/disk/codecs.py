"""Records to Arrow tables and back, derived from the records' annotations.

str, int (int64), float (float64), bool, datetime (microseconds, UTC), Literal of strings, `X | None`,
`tuple[X, ...]` (list), a Record (struct) and a union of Records told apart by a Literal field (a struct with the
fields of all; a row fills those of its own kind).
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, reduce
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from schemas.base import Record
from storage.errors import RecordMismatchError

R = TypeVar("R", bound=Record)

_UNIONS = (Union, types.UnionType)
_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
}


@cache
def record_schema(record_type: type[Record]) -> pa.Schema:
    """Return the Arrow schema of a record type; TypeError for an annotation that has no Arrow form."""
    return pa.schema(_record_fields(record_type), metadata={"record": record_type.__name__})


def records_to_table(record_type: type[R], records: Sequence[R]) -> pa.Table:
    """Return a table with a row a record; datetimes without a zone count as UTC.

    Raises RecordMismatchError for a value that Arrow cannot hold, such as an int beyond 64 bits.
    """
    schema = record_schema(record_type)
    rows = [record.model_dump() for record in records]
    columns = []
    for field in schema:
        try:
            columns.append(pa.array([row[field.name] for row in rows], type=field.type))
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise RecordMismatchError(
                f"{record_type.__name__}.{field.name}: a value cannot be stored as {field.type} ({error})"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def table_to_records(record_type: type[R], table: pa.Table) -> list[R]:
    """Return the table's rows as validated records; a field that came after the table was written has its default.

    So a field that a record type gets once files were written needs one.
    Raises RecordMismatchError when the columns are not the record type's, or a row breaks its rules.
    """
    expected = record_schema(record_type)
    if not (table.schema.remove_metadata().equals(expected.remove_metadata()) or _holds(record_type, table.schema)):
        raise RecordMismatchError(_describe_difference(record_type, expected, table.schema))
    names = table.column_names
    columns = [
        _decode(table.column(name).combine_chunks(), record_type.model_fields[name].annotation) for name in names
    ]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    try:
        return TypeAdapter(list[record_type]).validate_python(rows)  # type: ignore[valid-type]
    except ValidationError as error:
        raise RecordMismatchError(f"a stored {record_type.__name__} breaks its rules: {error}") from error


def _holds(record_type: type[Record], fields: Iterable[pa.Field]) -> bool:
    """Whether columns are a record type's, in its order, but for fields with a default, which may be absent."""
    written = {field.name: field for field in fields}
    expected = {field.name: field for field in _record_fields(record_type)}
    if list(written) != [name for name in expected if name in written]:
        return False
    known = record_type.model_fields
    return all(
        _holds_value(written[name], expected[name], known[name].annotation)
        if name in written
        else not known[name].is_required()
        for name in expected
    )


def _holds_value(written: pa.Field, expected: pa.Field, annotation: Any) -> bool:
    """Whether a column is as expected, or its records are but for absent fields with a default."""
    if written.equals(expected):
        return True
    inner, _ = _split_optional(annotation)
    if written.nullable != expected.nullable or written.type.id != expected.type.id:
        return False
    if pa.types.is_list(expected.type):
        return _holds_value(written.type.value_field, expected.type.value_field, get_args(inner)[0])
    return _is_record(inner) and _holds(inner, written.type)


def _record_fields(record_type: type[Record]) -> list[pa.Field]:
    if not record_type.model_fields:
        raise TypeError(f"{record_type.__name__} has no fields, so no Arrow form")
    return [
        _arrow_field(name, field.annotation, f"{record_type.__name__}.{name}")
        for name, field in record_type.model_fields.items()
    ]


def _arrow_field(name: str, annotation: Any, where: str) -> pa.Field:
    inner, nullable = _split_optional(annotation)
    return pa.field(name, _arrow_type(inner, where), nullable=nullable)


def _arrow_type(annotation: Any, where: str) -> pa.DataType:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if _is_record(annotation):
        return pa.struct(_record_fields(annotation))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal and all(isinstance(value, str) for value in arguments):
        return pa.string()
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return pa.list_(_arrow_field("element", arguments[0], where))
    if origin in _UNIONS and all(_is_record(variant) for variant in arguments):
        _discriminator(arguments, where)
        fields = [pa.field(name, _arrow_type(kind, where)) for name, kind in _merged(arguments, where).items()]
        return pa.struct(fields)
    raise TypeError(f"{where}: {annotation!r} has no Arrow form")


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Record)


def _split_optional(annotation: Any) -> tuple[Any, bool]:
    """Return the annotation without Annotated and None, and whether None was there."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in _UNIONS:
        return annotation, False
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    nullable = len(kinds) < len(get_args(annotation))
    if len(kinds) > 1:
        return reduce(operator.or_, kinds), nullable
    inner, inner_nullable = _split_optional(kinds[0])
    return inner, nullable or inner_nullable


def _merged(variants: tuple[type[Record], ...], where: str) -> dict[str, Any]:
    """Return the annotation of every field that some variant has, without None."""
    merged: dict[str, Any] = {}
    for variant in variants:
        for name, field in variant.model_fields.items():
            kind = _split_optional(field.annotation)[0]
            known = merged.setdefault(name, kind)
            if _arrow_type(known, where) != _arrow_type(kind, where):
                raise TypeError(f"{where}: the kinds of this union disagree on the type of '{name}'")
    return merged


def _discriminator(variants: tuple[type[Record], ...], where: str) -> tuple[str, dict[str, list[str]]]:
    """Return the field that tells the variants apart, and the field names of each of its values."""
    for name in variants[0].model_fields:
        names_by_value: dict[str, list[str]] = {}
        num_values = 0
        for variant in variants:
            field = variant.model_fields.get(name)
            values = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
            num_values += len(values) or len(variants) + 1
            names_by_value.update({value: list(variant.model_fields) for value in values})
        if len(names_by_value) == num_values:
            return name, names_by_value
    raise TypeError(f"{where}: no Literal field tells the kinds of this union apart")


def _decode(array: pa.Array, annotation: Any) -> list[Any]:
    """Turn a column into Python values, nested values into dicts and lists."""
    inner, _ = _split_optional(annotation)
    if pa.types.is_list(array.type):
        return _decode_lists(array, get_args(inner)[0])
    if pa.types.is_struct(array.type):
        return _decode_structs(array, inner)
    if array.null_count == 0 and (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        values: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
        return values
    return list(array.to_pylist())


def _decode_lists(array: pa.Array, element: Any) -> list[Any]:
    values = _decode(array.flatten(), element)
    lists: list[Any] = []
    start = 0
    for length in array.value_lengths().to_pylist():
        lists.append(None if length is None else values[start : start + length])
        start += length or 0
    return lists


def _decode_structs(array: pa.Array, annotation: Any) -> list[Any]:
    if _is_record(annotation):
        kinds = {name: field.annotation for name, field in annotation.model_fields.items()}
    else:
        kinds = _merged(get_args(annotation), "union")
    children = [_decode(child, kinds[field.name]) for child, field in zip(array.flatten(), array.type, strict=True)]
    names = [field.name for field in array.type]
    rows: list[Any] = [dict(zip(names, values, strict=True)) for values in zip(*children, strict=True)]
    if not _is_record(annotation):
        tag, names_by_value = _discriminator(get_args(annotation), "union")
        rows = [{name: row[name] for name in names_by_value.get(row[tag], ())} for row in rows]
    if array.null_count == 0:
        return rows
    return [row if valid else None for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)]


def _describe_difference(record_type: type[Record], expected: pa.Schema, got: pa.Schema) -> str:
    written_as = (got.metadata or {}).get(b"record", b"unknown records").decode()
    differing = [
        name
        for name in dict.fromkeys([*expected.names, *got.names])
        if name not in got.names or name not in expected.names or got.field(name) != expected.field(name)
    ]
    return (
        f"the table does not hold {record_type.__name__} records: it was written as {written_as} and differs in "
        f"{', '.join(differing) or 'the order of its columns'}; write it again with this version"
    )
