"""A prepared folder: what `syn4seg prepare` makes beside the official files, and how a data set reads it.

    FOLDER/masks/ID.png     dataset ids, plain 8-bit index PNG
    FOLDER/index.parquet    per image: id, height, width, classes and their pixel counts, digest of the mask
    FOLDER/lists/NAME.txt   derived lists, one id per line
    FOLDER/manifest.json    written last: format, variant, counts, digests, the official files it was made from
    FOLDER/begun.json       written first: the official files that the masks on disk were begun from

Nothing official is copied: images are read where their archive put them. Opening a data set reads the index, no mask.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.data.photos import decode_mask, decode_photo
from syn4seg.data.published import ids_digest
from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.store.files import write_atomically, write_json
from syn4seg.store.images import pixel_digest

FORMAT = 1
_HASHED = 1_000_000  # bytes; larger official files are compared by their size when a data set is opened


class PreparedDataset(ABC):
    """What PASCAL and COCO share: images in their official place, everything else in a prepared folder.

    Args:
        root: folder of the official files.
        folder: the prepared folder.
        train_list: name of the train list under lists/; the val list is `val`.
        remedy: the command that prepares the folder, for messages.

    Raises:
        UserError: not prepared, damaged, of an older format, or made from other official files; the remedy is named.
    """

    classes: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]

    def __init__(self, root: Path, folder: Path, train_list: str, remedy: str):
        self.root, self.folder, self.remedy = root, folder, f"run `{remedy}`"
        manifest = self._checked_manifest()
        self.train, self.val = (self._read_list(manifest, name) for name in (train_list, "val"))
        self.unpublished = [
            f"list {name}: {len(ids)} ids, not the published list"
            for name, ids in ((train_list, self.train), ("val", self.val))
            if not manifest["lists"][name]["published"]
        ]
        """A line for each list that is not the published one."""
        table = self._checked_index(manifest)
        self._row = {sample_id: i for i, sample_id in enumerate(table["id"].to_pylist())}
        self._shape = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1)
        lists = table["classes"].combine_chunks()
        self._start = lists.offsets.to_numpy()
        self._classes, self._counts = (c.flatten().to_numpy() for c in (lists, table["pixels"].combine_chunks()))

    @property
    def manifest(self) -> Path:
        """Path of the file that is written last when the folder is prepared."""
        return self.folder / "manifest.json"

    @abstractmethod
    def image_path(self, sample_id: str) -> Path:
        """Return the official path of an image."""

    def _checked_manifest(self) -> dict[str, Any]:
        path = self.manifest
        if not path.is_file():
            raise UserError(f"{self.folder} is not prepared (no manifest.json); {self.remedy}")
        try:
            manifest = json.loads(path.read_text())
            format_number, sources, _, _ = (manifest[key] for key in ("format", "sources", "lists", "index"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); {self.remedy} again") from error
        if format_number != FORMAT:
            raise UserError(f"{path} has format {format_number}, expected {FORMAT}; {self.remedy} again")
        for name, facts in sources.items():
            if _changed(self.root / name, facts):
                raise UserError(
                    f"{self.folder} is stale: {self.root / name} has changed since it was prepared; {self.remedy} again"
                )
        return manifest

    def _read_list(self, manifest: dict[str, Any], name: str) -> list[str]:
        if name not in manifest["lists"]:
            raise UserError(f"list {name!r} is none of {self.folder}; it has {', '.join(sorted(manifest['lists']))}")
        path = self.folder / "lists" / f"{name}.txt"
        ids = path.read_text().split("\n")[:-1] if path.is_file() else []
        if ids_digest(ids) != manifest["lists"][name]["digest"]:
            raise UserError(f"{path} is not the list that was prepared; {self.remedy} again")
        return ids

    def _checked_index(self, manifest: dict[str, Any]) -> Any:
        import pyarrow.parquet as parquet

        path = self.folder / "index.parquet"
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != manifest["index"]:
            raise UserError(f"{path} is missing or damaged; {self.remedy} again")
        return parquet.read_table(io.BytesIO(data))

    def _row_of(self, sample_id: str) -> int:
        row = self._row.get(sample_id)
        if row is None:
            raise UserError(f"id {sample_id!r} is not in {self.folder}/index.parquet; {self.remedy} again")
        return row

    def check(self) -> None:
        """Look for every listed image and mask; open none.

        Raises:
            UserError: files are missing; the first of them, how many, and the remedy.
        """
        ids = [*self.train, *self.val]
        for paths in ([self.image_path(s) for s in ids], [self._mask_path(s) for s in ids]):
            names = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in paths}}
            missing = [path for path in paths if path.name not in names[path.parent]]
            if missing:
                raise UserError(f"{missing[0]} is missing, and {len(missing) - 1} more; {self.remedy}, which names the archive")

    def _mask_path(self, sample_id: str) -> Path:
        return self.folder / "masks" / f"{sample_id}.png"

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (H, W, 3), also of grey and CMYK files.

        Pixels stay as they are stored unless only the image turned by EXIF fits the mask.

        Raises:
            UserError: missing, unreadable, truncated or too large; the file is named.
        """
        height, width = self._shape[self._row_of(sample_id)]
        return decode_photo(self.image_path(sample_id), (int(width), int(height)), "unpack its archive again", "stored_first")

    def mask(self, sample_id: str) -> np.ndarray:
        """Return dataset ids uint8 (H, W).

        Raises:
            UserError: missing or damaged; the file is named.
        """
        self._row_of(sample_id)
        return decode_mask(self._mask_path(sample_id), len(self.classes), f"{self.remedy} again")

    def pixels(self, sample_id: str) -> dict[int, int]:
        """Return the pixels per dataset id (background and unlabeled left out), from the index."""
        row = self._row_of(sample_id)
        part = slice(self._start[row], self._start[row + 1])
        return dict(zip(self._classes[part].tolist(), self._counts[part].tolist(), strict=True))

    def areas(self, sample_id: str) -> dict[int, float]:
        """Return the share of the image per dataset id, from the index."""
        size = int(np.prod(self._shape[self._row_of(sample_id)]))
        return {k: count / size for k, count in self.pixels(sample_id).items()}


def index_row(sample_id: str, mask: np.ndarray) -> dict[str, Any]:
    """Return the row of the index for the uint8 (H, W) mask of an image."""
    counts = np.bincount(mask.ravel(), minlength=256)
    classes = [int(k) for k in np.flatnonzero(counts) if k not in (BACKGROUND, UNLABELED)]
    return {
        "id": sample_id,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "classes": classes,
        "pixels": [int(counts[k]) for k in classes],
        "digest": pixel_digest(mask),
    }


def write_index(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write index.parquet from `index_row`s, sorted by id; return the file's SHA-256."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lists = [("classes", pa.list_(pa.uint8())), ("pixels", pa.list_(pa.int32()))]
    schema = pa.schema([("id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), *lists, ("digest", pa.string())])
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema), buffer)
    write_atomically(folder / "index.parquet", buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def write_list(folder: Path, name: str, ids: Iterable[str]) -> None:
    """Write lists/NAME.txt."""
    write_atomically(folder / "lists" / f"{name}.txt", "".join(f"{s}\n" for s in ids).encode())


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write manifest.json, which makes the folder valid."""
    write_json(folder / "manifest.json", {"format": FORMAT, **facts})


def file_facts(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of an official file."""
    with path.open("rb") as f:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def _changed(path: Path, facts: dict[str, Any]) -> bool:
    """Return whether an official file exists and differs from `file_facts`; a file that was removed since is no change."""
    if not path.is_file():
        return False
    size = path.stat().st_size
    return size != facts["bytes"] or (size <= _HASHED and file_facts(path)["sha256"] != facts["sha256"])
