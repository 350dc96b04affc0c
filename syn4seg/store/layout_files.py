"""Samples as files, `layout: files`: a PNG per image and label, a JSON record per sample and draw.

    RUN/images/CLASS/ID.png (CLASS as `escape_name` writes it; and ID.json, if there is anything to say about how it was made)
    RUN/draws/K/labels/CLASS/ID.png  stages/{draft,kept,relabeled}/CLASS/ID.png  records/CLASS/ID.json

The record is written last: it says that the sample is done in that draw, labelled or rejected with its reason. A record of a
fault counts only while its note lies in quarantined/: delete the note, and the sample is made again.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.errors import DamagedError
from syn4seg.schema import FAULT, LABEL_COLUMNS, RECORD
from syn4seg.store.files import map_threads, read_json, write_json
from syn4seg.store.images import pixel_digest, read_image, write_image
from syn4seg.store.listing import list_files
from syn4seg.store.samples import (
    _SAFE,
    Pair,
    StoredImage,
    StoredSample,
    catch_damaged,
    check_run_exists,
    drop_retried,
    escape_name,
    notes_file,
    read_notes,
    record_table,
    require_undamaged,
)
from syn4seg.store.tables import check_columns

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath


class FileSamples:
    """Samples of a run as files. `ShardSamples` has the same methods."""

    def __init__(self, root: AnyPath):
        self.root = root
        self._faults: dict[int, dict[str, bool]] = {}  # by draw: finished samples, and whether they are faults

    def image(self, class_name: str, sample_id: str) -> AnyPath:
        """Return the path of a synthetic image."""
        return self.root / "images" / escape_name(class_name) / f"{sample_id}.png"

    def label(self, draw: int, stage: str, class_name: str, sample_id: str) -> AnyPath:
        """Return the path of a label image; `stage` is one of `schema.LABEL_COLUMNS`."""
        assert stage in LABEL_COLUMNS, stage
        folder = "labels" if stage == "label" else f"stages/{stage}"
        return self.root / "draws" / str(draw) / folder / escape_name(class_name) / f"{sample_id}.png"

    def record(self, draw: int, class_name: str, sample_id: str) -> AnyPath:
        """Return the path of a sample's record; its existence means done."""
        return self.root / "draws" / str(draw) / "records" / escape_name(class_name) / f"{sample_id}.json"

    def images(self) -> pa.Table:
        """Return `sample_id` and `image_at` (which `read_images` needs) of every image that is there."""
        names = _by_class(list_files(self.root / "images"), ".png")
        return pa.table(
            {
                "sample_id": pa.array([s for _, s in names], pa.string()),
                "image_at": pa.array([f"{c}/{s}" for c, s in names], pa.string()),
            }
        )

    def read_images(self, images: Sequence[StoredImage]) -> list[StoredImage | None]:
        """Read images by id and location; None for one that is missing or damaged."""

        def read(image: StoredImage) -> StoredImage | None:
            path = self.image(image.class_name, image.sample_id)
            try:
                return StoredImage(
                    image.sample_id, image.class_name, image.batch, read_image(path), read_notes(path), image.location
                )
            except DamagedError:
                return None

        return map_threads(read, images)

    def find_written(self, images: Sequence[StoredImage]) -> list[StoredImage | None]:
        """Return the stored copy of each image that an earlier call with the same ones may have kept, None for the others."""
        return self.read_images(images)

    def write_images(self, images: Sequence[StoredImage]) -> None:
        """Keep images: what there is to say about one first, the image last. Writing the same again leaves the same.

        Raises:
            StoreError: they cannot be written.
        """
        check_run_exists(self.root)

        def write(image: StoredImage) -> None:
            path = self.image(image.class_name, image.sample_id)
            if read_notes(path) != image.audit:
                write_json(notes_file(path), image.audit)
            write_image(path, image.pixels)

        map_threads(write, images)

    def image_digests(self) -> list[str]:
        """Return the digest of the pixels of every image, recomputed.

        Raises:
            DamagedError: an image is damaged.
        """
        names = _by_class(list_files(self.root / "images"), ".png")
        return map_threads(lambda name: pixel_digest(read_image(self.root / "images" / name[0] / f"{name[1]}.png")), sorted(names))

    def write(self, draw: int, samples: Sequence[StoredSample]) -> None:
        """Keep what a draw knows of samples: labels first, the record last.

        Raises:
            StoreError: they cannot be written.
        """
        check_run_exists(self.root)

        def write(sample: StoredSample) -> None:
            name, sample_id = sample.record["class"], sample.record["sample_id"]
            for stage, label in sample.labels.items():
                write_image(self.label(draw, stage, name, sample_id), label)
            write_json(self.record(draw, name, sample_id), sample.record)

        map_threads(write, samples)

    def records(self, draw: int) -> pa.Table:
        """Return every record of a draw, once each, sorted by sample id: columns `schema.RECORD`; damaged ones are left out."""
        names = _by_class(list_files(self.root / "draws" / str(draw) / "records"), ".json")
        rows = [row for row in map_threads(lambda name: self._record(draw, *name), names) if row]
        return record_table(sorted(rows, key=lambda row: row["sample_id"]))

    def _record_file(self, draw: int, folder: str, sample_id: str) -> AnyPath:
        return self.root / "draws" / str(draw) / "records" / folder / f"{sample_id}.json"

    def _record(self, draw: int, folder: str, sample_id: str) -> dict[str, Any] | None:
        """Return the record that lies in the folder of a class (`escape_name`); None if it is damaged, or of another program."""
        try:
            row = read_json(self._record_file(draw, folder, sample_id))
            if (escape_name(row["class"]), row["sample_id"]) != (folder, sample_id) or not isinstance(row["reason"], str):
                return None
            check_columns(self._record_file(draw, folder, sample_id), record_table([row]), RECORD)
        except (FileNotFoundError, DamagedError, TypeError, KeyError, ValueError, AttributeError, OverflowError, pa.ArrowException):
            return None
        return row

    def complete(self, draw: int, notes: Sequence[str]) -> pa.Table:
        """Return columns sample_id, reason and image of the samples that are complete: every file of their record exists.

        Args:
            notes: ids of the samples with a note in quarantined/.
        """
        records = drop_retried(self.records(draw), notes)
        paths = pc.binary_join_element_wise(_folders_of(records["class"]), records["sample_id"], "/")
        whole = pa.array(np.ones(len(records), bool))
        for key, folder in self._folders(draw).items():
            present = pa.array([f"{c}/{s}" for c, s in _by_class(list_files(folder), ".png")], pa.string())
            whole = pc.and_(whole, pc.or_(pc.is_null(records[key]), pc.is_in(paths, present)))
        return records.filter(whole).select(["sample_id", "reason", "image"])

    def _folders(self, draw: int) -> dict[str, AnyPath]:
        """Return the folder of the images and of each label column, by column."""
        folders = {stage: self.root / "draws" / str(draw) / f"stages/{stage}" for stage in LABEL_COLUMNS}
        return folders | {"image": self.root / "images", "label": self.root / "draws" / str(draw) / "labels"}

    def finished(self, draw: int, ids: Iterable[str], notes: Sequence[str]) -> set[str]:
        """Return which of `ids` are done in a draw by now; each record is read once, so asking again costs a listing."""
        faults = self._faults.setdefault(draw, {})
        names = _by_class(list_files(self.root / "draws" / str(draw) / "records"), ".json")
        new = [name for name in names if faults.get(name[1], True)]  # faults may have been made again
        for (_, sample), row in zip(new, map_threads(lambda name: self._record(draw, *name), new), strict=True):
            if row:
                faults[sample] = row["reason"].startswith(FAULT)
        return {sample for sample in ids if sample in faults and (not faults[sample] or sample in notes)}

    def read(self, draw: int, rows: Sequence[dict[str, Any]]) -> list[Pair]:
        """Return what a draw knows of finished samples, and their images (None for a fault, which has none).

        Args:
            rows: sample_id and class (name) of each; `image_at` and `label_at` are not needed.

        Raises:
            DamagedError: a record, label or image is missing or damaged.
        """
        return require_undamaged(self.read_or_errors(draw, rows))

    def read_or_errors(self, draw: int, rows: Sequence[dict[str, Any]]) -> list[Pair | DamagedError]:
        """Read finished samples as `read` does, but return the error of a damaged one in its place."""

        @catch_damaged
        def read(row: dict[str, Any]) -> Pair:
            name, sample = row["class"], row["sample_id"]
            record = self._record(draw, escape_name(name), sample)
            if record is None:
                raise DamagedError(
                    f"{self.record(draw, name, sample)}: missing or damaged; delete it and run the same command again"
                )
            labels = {s: read_image(self.label(draw, s, name, sample)) for s in LABEL_COLUMNS if record.get(s)}
            return StoredSample(record, labels), read_image(self.image(name, sample)) if record.get("image") else None

        return map_threads(read, rows)

    def locations(self, draw: int) -> pa.Table:
        """Return `sample_id` and `label_at` of finished samples: here the names say it, so there is nothing to look up."""
        return pa.table({"sample_id": pa.array([], pa.string()), "label_at": pa.array([], pa.string())})

    def digests(self, draw: int, manifest: pa.Table, quick: bool) -> tuple[pa.Table, list[str]]:
        """Return what is there of what a manifest names: digests of the pixels by column, "" where nothing can be read.

        Args:
            quick: do not decode; take the manifest's word for what is there at all.

        Returns:
            Columns image and `LABEL_COLUMNS`, a row per row of the manifest; and one line per file that is damaged.
        """
        if quick:
            return self._present_digests(draw, manifest), []
        columns, names = {}, list(zip(manifest["class"].to_pylist(), manifest["sample_id"].to_pylist(), strict=True))
        for key in ("image", *LABEL_COLUMNS):
            expected = manifest[key].is_valid().to_pylist()

            def digest(name: tuple[str, str], key: str = key) -> str:
                with contextlib.suppress(DamagedError):
                    return pixel_digest(read_image(self.image(*name) if key == "image" else self.label(draw, key, *name)))
                return ""

            results = iter(map_threads(digest, [name for name, is_expected in zip(names, expected, strict=True) if is_expected]))
            columns[key] = pa.array([next(results) if w else None for w in expected], pa.string())
        return pa.table(columns), []

    def _present_digests(self, draw: int, manifest: pa.Table) -> pa.Table:
        paths = pc.binary_join_element_wise(_folders_of(manifest["class"]), manifest["sample_id"], "/")
        columns = {}
        for key, folder in self._folders(draw).items():
            present = pa.array([f"{c}/{s}" for c, s in _by_class(list_files(folder), ".png")], pa.string())
            columns[key] = pc.if_else(pc.or_(pc.is_in(paths, present), pc.is_null(manifest[key])), manifest[key], "")
        return pa.table(columns)

    def compact(self, draw: int | None, whole: bool = True) -> None:
        """Do nothing: files stay files."""


def _folders_of(classes: pa.ChunkedArray) -> pa.Array:
    """Return the folder of each class of a column."""
    return pa.array([escape_name(name) for name in classes.to_pylist()], pa.string())


def _by_class(sizes: dict[str, int], suffix: str) -> list[tuple[str, str]]:
    """Return (folder of a class, sample id) of every file FOLDER/ID.suffix that is not empty and has safe names."""
    names = []
    for path, size in sizes.items():
        parts = path.removesuffix(suffix).split("/")
        if size and path.endswith(suffix) and len(parts) == 2 and all(map(_SAFE.fullmatch, parts)):
            names.append((parts[0], parts[1]))
    return names
