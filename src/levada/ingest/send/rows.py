"""Rows of a CSV, NDJSON or Parquet file as JSON events, a block at a time.

A block is a stretch of the file that ends where a row ends. CSV is converted column by column by Arrow; a block with a
row that Arrow refuses, and a column with a value that is not of its type, take the slow way through Python. What cannot
be an event of the declared type is sent as the text it is: the collector's refusal is the one reason there is.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from levada.errors import UserError
from levada.pipeline import Pipeline

BLOCK_BYTES: Final = 1024 * 1024
MAX_ROW_BYTES: Final = 16 * 1024 * 1024
_PARQUET_ROWS: Final = 5000


class FileError(UserError):
    """The file cannot be sent as it is; the message says what to do."""


@dataclass(frozen=True)
class Unsendable:
    """A row that is no event at all, and why."""

    reason: str


Row = bytes | Unsendable | None
"""A JSON object without a newline; or why there is none; or None for a blank line."""


@dataclass(frozen=True)
class Place:
    """Where reading can begin."""

    row: int = 0
    """Rows before this place."""
    offset: int = 0
    """Bytes of the file before this place; of no use for Parquet."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows."""

    start: Place
    rows: Sequence[Row]
    read: int
    """Bytes of the file that were read up to the end of the block, for progress."""


class Reader(Protocol):
    """One way to read a file."""

    unit: str
    """What a row is called by its number: row, or line."""

    def blocks(self, start: Place) -> Iterator[Block]:
        """All blocks from a place on that an earlier block began at, or from the beginning."""
        ...


def reader(
    file: BufferedReader,
    path: Path,
    kind: str,
    pipeline: Pipeline,
    skip: Sequence[str] = (),
    delimiter: str = ",",
) -> Reader:
    """The reader for ``kind``: csv, ndjson or parquet.

    Raises:
        FileError: columns that are not declared, or missing, or of another type.
    """
    if kind == "ndjson":
        return Ndjson(file, path)
    if kind == "parquet":
        return Parquet(file, path, pipeline, skip)
    return Csv(file, path, pipeline, skip, delimiter)


def _columns(path: Path, names: Sequence[str], pipeline: Pipeline, skip: Sequence[str]) -> None:
    """Refuse before anything is sent what would be refused for every row."""
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise FileError(f"{path}: column {', '.join(doubles)} is there twice")
    if unknown := [name for name in names if name not in pipeline.fields and name not in skip]:
        options = " ".join(f"--skip {name!r}" for name in unknown)
        raise FileError(
            f"{path}: {', '.join(map(repr, unknown))} is not a field of pipeline {pipeline.name}, "
            f"which has {', '.join(pipeline.fields)}: to leave it out, add {options}"
        )
    sent = [name for name in names if name not in skip]
    if missing := [name for name, field in pipeline.fields.items() if field.required and name not in sent]:
        raise FileError(f"{path}: pipeline {pipeline.name} asks for {', '.join(missing)}, which the file does not have")


class _Cut:
    """A file in stretches of about :data:`BLOCK_BYTES` that end where a row ends."""

    def __init__(self, file: BufferedReader, path: Path, end_of_row: Callable[[bytes], int]) -> None:
        self._file, self._path, self._end_of_row = file, path, end_of_row

    def stretches(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of each stretch; only the last one may lack its newline."""
        self._file.seek(offset)
        rest = b""
        while more := self._file.read(BLOCK_BYTES):
            rest += more
            end = self._end_of_row(rest)
            if end:
                yield offset, rest[:end]
                offset, rest = offset + end, rest[end:]
            elif len(rest) > MAX_ROW_BYTES:
                raise FileError(
                    f"{self._path}: no row ends within {MAX_ROW_BYTES >> 20} MiB after byte {offset}; "
                    "is a quotation mark open there?"
                )
        if rest:
            yield offset, rest


def _last_newline(text: bytes) -> int:
    return text.rfind(b"\n") + 1


def _last_end_of_record(text: bytes) -> int:
    """Where the last record ends: after a newline that no quotation marks enclose."""
    end = len(text)
    quotes = text.count(b'"')
    while (newline := text.rfind(b"\n", 0, end)) >= 0:
        quotes -= text.count(b'"', newline, end)
        if quotes % 2 == 0:
            return newline + 1
        end = newline
    return 0


class Ndjson:
    """A JSON object a line; lines go as they are."""

    unit = "line"

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self._cut = _Cut(file, path, _last_newline)

    def blocks(self, start: Place) -> Iterator[Block]:
        """See :class:`Reader`."""
        row = start.row
        for offset, text in self._cut.stretches(start.offset):
            lines = text.removesuffix(b"\n").split(b"\n")
            rows = [line.rstrip(b"\r") if line.strip() else None for line in lines]
            yield Block(Place(row, offset), rows, offset + len(text))
            row += len(rows)


class Csv:
    """CSV (RFC 4180, UTF-8) with a header; row 1 is the first after it. An empty cell is null."""

    unit = "row"

    def __init__(
        self, file: BufferedReader, path: Path, pipeline: Pipeline, skip: Sequence[str], delimiter: str
    ) -> None:
        self._delimiter = delimiter
        self._cut = _Cut(file, path, _last_end_of_record)
        file.seek(0)
        head = file.read(BLOCK_BYTES)
        self._begin, self._names = self._header(head, path)
        _columns(path, self._names, pipeline, skip)
        self._fields = [(name, pipeline.fields[name].type) for name in self._names if name not in skip]
        self._parse_options = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        self._convert_options = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(self._names, pa.string()),
            include_columns=[name for name, _ in self._fields],
            null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True,
        )  # fmt: skip

    def _header(self, head: bytes, path: Path) -> tuple[int, list[str]]:
        begin = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        end = begin
        while True:  # the first newline that no quotation marks enclose
            end = head.find(b"\n", end) + 1
            if end == 0:
                end = len(head)
                break
            if head.count(b'"', begin, end) % 2 == 0:
                break
        try:
            names = next(csv.reader(io.StringIO(head[begin:end].decode(), newline=""), delimiter=self._delimiter), [])
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: the header is not UTF-8: {error}") from None
        if not names:
            raise FileError(f"{path} has no header: the first line must name the columns")
        return end, names

    def blocks(self, start: Place) -> Iterator[Block]:
        """See :class:`Reader`."""
        row = start.row
        for offset, text in self._cut.stretches(max(start.offset, self._begin)):
            try:
                # One block for Arrow, too: it would look for the end of a row by itself otherwise.
                whole = pa.csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(text) + 1)
                table = pa.csv.read_csv(pa.BufferReader(text), whole, self._parse_options, self._convert_options)
                rows = _json_lines(table, self._fields, _TEXT)
            except pa.ArrowInvalid:  # a row of another length, or what is not UTF-8
                rows = self._one_by_one(text)
            yield Block(Place(row, offset), rows, offset + len(text))
            row += len(rows)

    def _one_by_one(self, text: bytes) -> list[Row]:
        csv.field_size_limit(MAX_ROW_BYTES)
        lines = io.StringIO(text.decode(errors="surrogateescape"), newline="")
        return [self._row(cells) for cells in csv.reader(lines, delimiter=self._delimiter) if cells]

    def _row(self, cells: list[str]) -> Row:
        if len(cells) != len(self._names):
            return Unsendable(f"has {len(cells)} columns, the header has {len(self._names)}")
        of = dict(zip(self._names, cells, strict=True))
        try:
            pieces = [
                orjson.dumps(name) + b":" + (_one(kind, of[name]).encode() if of[name] else b"null")
                for name, kind in self._fields
            ]
        except (UnicodeEncodeError, orjson.JSONEncodeError):
            return Unsendable("is not UTF-8")
        return b"{" + b",".join(pieces) + b"}"


class Parquet:
    """Parquet; row 1 is the first."""

    unit = "row"

    def __init__(self, file: BufferedReader, path: Path, pipeline: Pipeline, skip: Sequence[str]) -> None:
        try:
            # A buffer instead of whole column chunks: a row group may be large.
            self._file = pa.parquet.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise FileError(f"{path} is not Parquet: {error}") from None
        schema = self._file.schema_arrow
        _columns(path, schema.names, pipeline, skip)
        self._size = path.stat().st_size
        self._fields = [(name, pipeline.fields[name].type) for name in schema.names if name not in skip]
        for name, kind in self._fields:
            found = schema.field(name).type
            if pa.types.is_dictionary(found):
                found = found.value_type
            if not _FITS[kind](found):
                raise FileError(f"{path}: column {name} is a {found}, pipeline {pipeline.name} declares a {kind}")
            if pa.types.is_timestamp(found) and found.tz is None:
                raise FileError(f"{path}: column {name} is a timestamp without a zone: write it with one, such as UTC")

    def blocks(self, start: Place) -> Iterator[Block]:
        """See :class:`Reader`."""
        row, total = 0, self._file.metadata.num_rows
        for group in range(self._file.num_row_groups):
            held = self._file.metadata.row_group(group).num_rows
            if row + held <= start.row:
                row += held
                continue
            columns = [name for name, _ in self._fields]
            for batch in self._file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns, use_threads=False):
                if row >= start.row:
                    rows = _json_lines(pa.Table.from_batches([batch]), self._fields, _TYPED)
                    yield Block(Place(row), rows, self._size * (row + len(rows)) // total)
                row += batch.num_rows


# --- values as JSON text -----------------------------------------------------------------------------------------

_INTEGER: Final = r"^-?(0|[1-9][0-9]{0,18})$"
_NUMBER: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_ESCAPED: Final = r'[\x00-\x1f"\\]'
_LOOSE_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LOOSE_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_BOOLEANS: Final = {"true": "true", "false": "false", "1": "true", "0": "false"}


def _one(kind: str, text: str) -> str:
    """One cell as JSON; what is not of the type stays the text that it is."""
    bare = text.strip()
    if kind == "long" and _LOOSE_INTEGER.fullmatch(bare):
        return str(int(bare))
    if kind == "double" and re.search(_NUMBER, bare):
        return bare
    if kind == "double" and _LOOSE_NUMBER.fullmatch(bare) and (number := float(bare)) - number == 0:
        return repr(number)
    if kind == "boolean" and bare.lower() in _BOOLEANS:
        return _BOOLEANS[bare.lower()]
    return orjson.dumps(text).decode()


def _slowly(kind: str, column: Any) -> Any:
    return pa.array([None if text is None else _one(kind, text) for text in column.to_pylist()], pa.string())


def _quoted(column: Any) -> Any:
    return pc.binary_join_element_wise('"', column, '"', "")


def _matches(column: Any, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(column, pattern)).as_py() in (True, None)


def _text_string(column: Any) -> Any:
    if pc.any(pc.match_substring_regex(column, _ESCAPED)).as_py():
        return _slowly("string", column)
    return _quoted(column)


def _text_number(kind: str, pattern: str) -> Callable[[Any], Any]:
    return lambda column: column if _matches(column, pattern) else _slowly(kind, column)


def _text_boolean(column: Any) -> Any:
    return column if _matches(column, "^(true|false)$") else _slowly("boolean", column)


def _typed_double(column: Any) -> Any:
    number = pc.cast(column, pa.float64())
    return pc.if_else(pc.is_finite(number), pc.cast(number, pa.string()), '"not finite"')


def _typed_timestamp(column: Any) -> Any:
    if pa.types.is_timestamp(column.type):
        moment = pc.cast(column, pa.timestamp("us", "UTC"), safe=False)
        column = pc.strftime(moment, "%Y-%m-%dT%H:%M:%SZ")
    return _text_string(pc.cast(column, pa.string()))


_Convert = dict[str, Callable[[Any], Any]]
_TEXT: Final[_Convert] = {
    "string": _text_string,
    "timestamp": _text_string,
    "long": _text_number("long", _INTEGER),
    "double": _text_number("double", _NUMBER),
    "boolean": _text_boolean,
}
"""From the text of a CSV cell."""
_TYPED: Final[_Convert] = {
    "string": lambda column: _text_string(pc.cast(column, pa.string())),
    "timestamp": _typed_timestamp,
    "long": lambda column: pc.cast(column, pa.string()),
    "double": _typed_double,
    "boolean": lambda column: pc.cast(column, pa.string()),
}
"""From a typed column."""


def _is_text(found: Any) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def _is_number(found: Any) -> bool:
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found))


_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    "string": _is_text,
    "long": pa.types.is_integer,
    "double": _is_number,
    "boolean": pa.types.is_boolean,
    "timestamp": lambda found: pa.types.is_timestamp(found) or _is_text(found),
}


def _json_lines(table: Any, fields: Sequence[tuple[str, str]], convert: _Convert) -> list[Row]:
    pieces: list[Any] = []
    for number, (name, kind) in enumerate(fields):
        pieces.append(("{" if number == 0 else ",") + orjson.dumps(name).decode() + ":")
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # pyarrow keeps a table without rows chunked
            column = pa.array([], column.type)
        pieces.append(convert[kind](column))
    lines = pc.binary_join_element_wise(*pieces, "}", "", null_handling="replace", null_replacement="null")
    found: list[Row] = lines.cast(pa.binary()).to_pylist()
    return found
