"""Which images the words of a command mean: files, folders, globs, object stores, Parquet and WebDataset shards.

Every image gets a name, the path of its mask below the output folder: the path below the folder or the fixed part of the glob that
was given, without the suffix; of a shard, the name that the shard gives it. Names that occur twice keep their suffix.
"""

from __future__ import annotations

import bisect
import functools
import glob
import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from syn4seg.data.photos import MAX_FILE, PHOTO_SUFFIXES
from syn4seg.errors import DamagedError, UserError
from syn4seg.exports.target import lies_in
from syn4seg.store.files import as_path, check_reachable, exists, explain_errors, open_regular, read_bytes
from syn4seg.store.listing import list_files
from syn4seg.store.samples import escape_name

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

SHARDS = (".parquet", ".tar")
NAME_COLUMNS = ("sample_id", "id", "image_id", "name", "file_name", "filename", "__key__")
"""Columns of Parquet that name an image, the first one that is there."""
IMAGE_COLUMNS = ("image", "img", "photo", "jpg", "jpeg", "png", "bytes")
"""Columns of Parquet that hold an image's bytes, or a struct with a field `bytes`; else the only column of that kind."""
NO_IMAGE = ("label", "mask", "seg")
"""Beginnings of the kinds of members in a tar that are pictures, but no images."""


@dataclass(frozen=True)
class ImageSource:
    """An image that is to be segmented.

    Attributes:
        name: of its mask, without a suffix; safe as a path.
        place: path or URL of its file or shard.
        row: of a Parquet file; -1 for another one.
        offset, size: of the bytes in a tar; -1 for another one.
    """

    name: str
    place: str
    row: int = -1
    offset: int = -1
    size: int = -1

    @property
    def label(self) -> str:
        """What a person calls it."""
        return f"{self.place}#{self.row}" if self.row >= 0 else f"{self.place}#{self.name}" if self.offset >= 0 else self.place

    def read(self) -> bytes:
        """Return the bytes of the picture.

        Raises:
            UserError: they cannot be read.
        """
        path = as_path(self.place)
        try:
            if self.row >= 0:
                return _read_row(self.place, self.row)
            if self.offset < 0:
                return read_bytes(path, MAX_FILE)
            with explain_errors(path, "read"), open_regular(path) as file:
                file.seek(self.offset)
                return file.read(self.size)
        except FileNotFoundError:
            raise UserError(f"{self.label} is missing; put it back, or leave it out") from None


def find_images(words: Iterable[str], apart: AnyPath | None = None) -> list[ImageSource]:
    """Return the images that words mean, in the order of the words; inside of a folder or glob by path.

    Args:
        words: files, folders, globs (** for folders below), `s3://` and `gs://` URLs of each, .parquet and .tar shards.
        apart: a folder of which nothing is taken: that of the predictions may lie among the images.

    Raises:
        UserError: nothing is there, a shard is damaged, or two images would get one name.
    """
    found: list[ImageSource] = []
    for word in words:
        part = [source for source in _find(word) if apart is None or not lies_in(as_path(source.place), apart)]
        if not part:
            raise UserError(
                f"{word}: holds no image; expected {', '.join(PHOTO_SUFFIXES)}, .parquet or .tar, or a folder or glob of them"
            )
        found += part
    return _named(list(dict.fromkeys(found)))


def _find(word: str) -> Iterator[ImageSource]:
    path = as_path(word)
    check_reachable(path)
    if exists(path):
        yield from _of_file(path, PurePosixPath(path.name))
    elif re.search(r"[*?\[]", word) and not path.is_dir():
        for match, below in _matches(path):
            yield from _of_file(match, below)
    else:
        for below in sorted(list_files(path)):
            if Path(below).suffix.lower() in (*PHOTO_SUFFIXES, *SHARDS):
                yield from _of_file(path / below, PurePosixPath(below))


def _matches(path: AnyPath) -> Iterator[tuple[AnyPath, PurePosixPath]]:
    """Yield the files of a glob, each with its path below the part of the glob that is no pattern."""
    parts = PurePosixPath(str(path) if isinstance(path, Path) else path.path).parts
    fixed = PurePosixPath(*(parts[: next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))] or (".",)))
    if isinstance(path, Path):
        names = sorted(name for name in glob.iglob(str(path), recursive=True) if Path(name).is_file())
        found: list[tuple[AnyPath, str]] = [(Path(name), name) for name in names]
    else:
        stored: list[str] = sorted(str(name) for name in path.fs.glob(path.path))
        found = [(as_path(f"{path.protocol}://{name.lstrip('/')}"), name) for name in stored if path.fs.isfile(name)]
    for match, name in found:
        if Path(name).suffix.lower() in (*PHOTO_SUFFIXES, *SHARDS):
            yield match, PurePosixPath(name).relative_to(fixed) if str(fixed) != "." else PurePosixPath(name)


def _of_file(path: AnyPath, below: PurePosixPath) -> Iterator[ImageSource]:
    suffix = below.suffix.lower()
    if suffix == ".parquet":
        yield from _of_parquet(path, below.with_suffix(""))
    elif suffix == ".tar":
        yield from _of_tar(path)
    else:
        yield ImageSource(_safe(str(below)), str(path))


def _of_parquet(path: AnyPath, below: PurePosixPath) -> Iterator[ImageSource]:
    with _open_parquet(str(path)) as file:
        _image_column(file.schema_arrow, str(path))
        column = next((name for name in NAME_COLUMNS if name in file.schema_arrow.names), None)
        if column is None:
            names = [f"{below}-{row:06d}" for row in range(file.metadata.num_rows)]
        else:
            names = [str(value) for value in file.read([column])[column].to_pylist()]
    for row, name in enumerate(names):
        yield ImageSource(_safe(name), str(path), row=row)


def _of_tar(path: AnyPath) -> Iterator[ImageSource]:
    """Yield one picture per key of a WebDataset shard: that called image or img, else a plain one, never a label or mask."""
    best: dict[str, tuple[int, tarfile.TarInfo]] = {}
    with explain_errors(path, "read"), open_regular(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, _, last = member.name.rpartition("/")
                    key, _, kind = last.partition(".")
                    pictures = kind and f".{kind.rpartition('.')[2].lower()}" in PHOTO_SUFFIXES
                    if member.isfile() and pictures and not kind.lower().startswith(NO_IMAGE) and not last.startswith("."):
                        rank = 0 if kind.lower().startswith(("image", "img")) else 1 if "." not in kind else 2
                        name = f"{folder}/{key}" if folder else key
                        if name not in best or rank < best[name][0]:
                            best[name] = rank, member
        except tarfile.TarError as error:
            raise DamagedError(f"{path}: not a readable tar ({error}); replace the shard, or leave it out") from None
    for name, (_, member) in best.items():
        yield ImageSource(_safe(name), str(path), offset=member.offset_data, size=min(member.size, MAX_FILE))


def _safe(name: str) -> str:
    """Return a name as a path below a folder, each part of it safe, none of them leading out of it."""
    parts = [part if _is_plain(part) else escape_name(part) for part in name.split("/") if part]
    return "/".join(parts) or "image"


def _is_plain(part: str) -> bool:
    return part.isprintable() and not part.startswith(".") and not set(part) & set('\\:*?"<>|') and len(part.encode()) <= 200


def _named(sources: list[ImageSource]) -> list[ImageSource]:
    """Return sources without the suffixes of pictures in their names, but for names that would then occur twice."""
    bare = [re.sub(rf"({'|'.join(map(re.escape, PHOTO_SUFFIXES))})$", "", source.name, flags=re.IGNORECASE) for source in sources]
    bare = [name if name and not name.endswith("/") else source.name for name, source in zip(bare, sources, strict=True)]
    twice = {name for name, count in Counter(name.lower() for name in bare).items() if count > 1}
    named = [replace(s, name=s.name if name.lower() in twice else name) for name, s in zip(bare, sources, strict=True)]
    seen: dict[str, ImageSource] = {}
    for source in named:
        other = seen.setdefault(source.name.lower(), source)
        if other is not source:
            raise UserError(
                f"{other.label} and {source.label} would both be written to {source.name}.png; predict them in two commands, each "
                "with its own --to, or give the folder above both"
            )
    return named


def _open_parquet(place: str) -> pq.ParquetFile:
    path = as_path(place)
    try:
        return pq.ParquetFile(path if isinstance(path, Path) else path.fs.open(path.path, "rb"))
    except pa.ArrowInvalid as error:
        raise DamagedError(f"{place}: not a readable Parquet file ({str(error)[:100]}); replace it, or leave it out") from None


def _image_column(schema: pa.Schema, place: str) -> str:
    """Return the column that holds the bytes of images.

    Raises:
        UserError: there is none, or it is not clear which one.
    """

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    able = [field.name for field in schema if holds_bytes(field.type)]
    for name in (*(name for name in IMAGE_COLUMNS if name in able), *(able if len(able) == 1 else ())):
        return name
    raise UserError(
        f"{place}: has no column of images (columns {', '.join(schema.names[:20])}); expected bytes, or a struct with `bytes`, "
        f"in a column called {', '.join(IMAGE_COLUMNS)}"
    )


def _read_row(place: str, row: int) -> bytes:
    ends = _group_ends(place)
    group = bisect.bisect_right(ends, row)
    try:
        value = _row_group(place, group)[row - (ends[group - 1] if group else 0)].as_py()
    except (pa.ArrowException, IndexError) as error:
        raise DamagedError(f"{place}#{row}: cannot be read ({str(error)[:100]}); replace the shard") from None
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise UserError(f"{place}#{row}: holds no bytes of an image; write the images into the shard, not their paths")
    return value


@functools.lru_cache(maxsize=64)
def _group_ends(place: str) -> list[int]:
    """Return the row behind each row group."""
    with _open_parquet(place) as file:
        return list(itertools.accumulate(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)))


@functools.lru_cache(maxsize=2)
def _row_group(place: str, group: int) -> pa.ChunkedArray:
    with _open_parquet(place) as file:
        name = _image_column(file.schema_arrow, place)
        return file.read_row_group(group, [name])[name]
