"""Documents in Parquet files and in TensorFlow Datasets, without TensorFlow.

Parquet is read by row group; the last row group stays in memory. A TFDS builder must be prepared in the random-access
format `array_record`.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.documents import BadRecordError, Documents, checked_text
from lmjax.data.open_files import find_files
from lmjax.data.record_files import damaged_parquet
from lmjax.data.text_sources import checksum
from lmjax.errors import UserError, nearest, shortened
from lmjax.files import user_path
from lmjax.settings import SourceSettings


class ParquetDocuments(Documents):
    """The string column `settings.field` of Parquet files, sorted by path."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.paths, self.left_out = find_files(settings.path, (".parquet",))
        self._group: tuple[int, Any] | None = None  # the last row group, or its BadRecordError
        self._groups: list[tuple[int, int]] = []  # file and row group within it
        self._in_file: list[int] = []  # the row group's first row in its file
        first_rows = [0]
        self._sizes = []
        for number, path in enumerate(self.paths):
            metadata = self._checked_file(path).metadata
            self._sizes.append(path.stat().st_size)
            row = 0
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if sum(counts) != metadata.num_rows or min(counts, default=0) < 0:
                counted = f"row groups of {shortened(counts)} rows make up no {metadata.num_rows:,}"
                raise UserError(str(damaged_parquet(path, ValueError(counted))))
            for group, rows in enumerate(counts):
                self._groups.append((number, group))
                self._in_file.append(row)
                row += rows
                first_rows.append(first_rows[-1] + rows)
        self._first_rows = first_rows
        super().__init__(settings, first_rows[-1])

    @property
    def size_bytes(self) -> int:
        return 2 * sum(self._sizes)  # text in Parquet has about half the size of plain text

    @property
    def contents(self) -> list[list[object]]:
        return [[path.name, checksum(path)] for path in self.paths]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_group": None}

    def _checked_file(self, path: Path) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            schema = file.schema_arrow
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(str(damaged_parquet(path, error))) from None
        field = self.settings.field
        if schema.names.count(field) != 1:
            problem = "two columns" if field in schema.names else "no column"
            raise UserError(f"{path}: {problem} source.field = {field!r}; {nearest(field, schema.names)}")
        kind = schema.field(field).type
        value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if str(value) not in _TEXT_TYPES:
            raise UserError(f"{path}: column {field!r} is {kind}, expected string; choose another source.field")
        return file

    def _record(self, index: int) -> str:
        group = bisect_right(self._first_rows, index) - 1
        number, group_in_file = self._groups[group]
        if self._group is None or self._group[0] != group:
            rows = self._first_rows[group + 1] - self._first_rows[group]
            self._group = (group, self._column(self.paths[number], group_in_file, rows))
        row = index - self._first_rows[group]
        where = f"{self.paths[number]}:{self._in_file[group] + row + 1}"
        column = self._group[1]
        if isinstance(column, BadRecordError):
            raise BadRecordError(f"{where}: {column}")
        try:
            return checked_text(_value(column[row]), self.settings.field)
        except BadRecordError as error:
            raise BadRecordError(f'{where}: {error}; fix it, or set source.on_bad_record = "skip"') from None

    def _column(self, path: Path, group: int, rows: int) -> Any:
        """The column of a row group, or a BadRecordError for all its rows where a page is damaged."""
        import pyarrow

        try:
            column = self._checked_file(path).read_row_group(group, [self.settings.field]).column(0)
            if len(column) != rows:
                raise ValueError(f"{len(column):,} rows, expected the {rows:,} of its metadata")
            return column
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            return damaged_parquet(path, error)


_TEXT_TYPES = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}


def _value(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error.object  # the bytes, of which checked_text names the error


class TfdsDocuments(Documents):
    """The text feature `settings.field` of a split of a TFDS builder, by name or by prepared folder."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self._data: Any = None
        data = self._data_source()
        record = data[0] if len(data) else {settings.field: ""}
        if settings.field not in record:
            raise UserError(
                f"{self.name}: no feature source.field = {settings.field!r}; {nearest(settings.field, record)}"
            )
        sample = len(record[settings.field]) if isinstance(record[settings.field], bytes | str) else 0
        self._size = len(data) * sample
        super().__init__(settings, len(data))

    @property
    def size_bytes(self) -> int:
        return self._size

    @property
    def contents(self) -> list[list[object]]:
        data = self._data_source()
        ends = [repr(data[at][self.settings.field]) for at in (0, len(data) - 1)]
        return [[len(data), *ends]]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_data": None}

    def _data_source(self) -> Any:
        if self._data is None:
            self._data = _open_tfds(self.settings.path, self.settings.split)
        return self._data

    def _record(self, index: int) -> str:
        value = self._data_source()[index][self.settings.field]
        try:
            return checked_text(value.item() if isinstance(value, np.generic) else value, self.settings.field)
        except BadRecordError as error:
            where = f"{self.settings.path}, split {self.settings.split!r}, record {index + 1}"
            raise BadRecordError(f'{where}: {error}; fix it, or set source.on_bad_record = "skip"') from None


def _open_tfds(path: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    folder = user_path(path, "source.path")
    try:
        if (folder / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(folder)
        elif folder.is_dir():
            raise UserError(
                f"source.path = {path!r}: expected a prepared TFDS builder's folder, with dataset_info.json"
            )
        else:
            builder = tfds.builder(path, file_format="array_record")
            builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"source.path = {path!r}: no TFDS builder of that name and no folder ({error})") from None
    try:
        return builder.as_data_source(split=split)
    except ValueError as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"source.split = {split!r}: {path} has {splits} ({error}); choose from these") from None
    except NotImplementedError as error:
        raise UserError(f"source.path = {path!r}: expected file_format array_record ({error}); prepare it so") from None
