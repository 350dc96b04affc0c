"""Samples in Parquet files, `layout: sharded`, for runs of more files than a file system likes. Same methods as `FileSamples`.

    RUN/images/part-HASH.parquet              sample_id, class, batch, audit, image (digest), image_png
    RUN/draws/K/labels/part-HASH.parquet      the columns of the record, and draft_png, kept_png, relabeled_png, label_png
    RUN/.../shard-HASH.parquet                many parts in one file; its metadata name the parts that it replaces

Every finished call of an actor is one part, written in one step, named by what is in it: a retry overwrites itself. `compact`
merges parts into shards of about `SHARD_BYTES`; `parquet_parts.py` says why nothing is lost or doubled meanwhile.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.errors import DamagedError
from syn4seg.schema import LABEL_COLUMNS, RECORD
from syn4seg.store.files import map_threads, parse_json, to_json
from syn4seg.store.images import decode_image, encode_image, pixel_digest
from syn4seg.store.parquet_parts import PartStore
from syn4seg.store.samples import (
    Pair,
    StoredImage,
    StoredSample,
    catch_damaged,
    check_run_exists,
    drop_retried,
    record_table,
    require_undamaged,
)

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

SHARD_BYTES = 512 * 2**20
"""Size at which parts become a shard."""
SHARD_PARTS = 4096
"""Number of parts that become a shard whatever their size: looking into each of many small files is what takes long."""
IMAGES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("class", pa.string()),
        ("batch", pa.int32()),
        ("audit", pa.string()),
        ("image", pa.string()),
        ("image_png", pa.binary()),
    ]
)
LABELS = pa.schema([*RECORD, *((f"{stage}_png", pa.binary()) for stage in LABEL_COLUMNS)])


class ShardSamples:
    """Samples of a run in Parquet files; the methods are those of `FileSamples`, and so are their meanings.

    Args:
        shard_bytes, shard_parts: size and number of parts at which they become a shard.
    """

    def __init__(self, root: AnyPath, shard_bytes: int = SHARD_BYTES, shard_parts: int = SHARD_PARTS):
        self.root, self.limits = root, (shard_bytes, shard_parts)
        self._images = PartStore(root / "images", IMAGES)
        self._draws: dict[int, PartStore] = {}
        self._done: dict[int, tuple[dict[str, bool], set[str]]] = {}
        self._image_table: pa.Table | None = None

    def _labels(self, draw: int) -> PartStore:
        return self._draws.setdefault(draw, PartStore(self.root / "draws" / str(draw) / "labels", LABELS))

    def images(self) -> pa.Table:
        """Return `sample_id` and `image_at` of every image that is there."""
        table = self._images.locations()
        return pa.table({"sample_id": table["sample_id"], "image_at": table["location"]})

    def read_images(self, images: Sequence[StoredImage]) -> list[StoredImage | None]:
        """Read images by id and location; None for one that is missing or damaged."""
        rows = self._images.rows([image.sample_id for image in images], [image.location for image in images])
        return map_threads(lambda pair: _image(*pair), list(zip(images, rows, strict=True)))

    def find_written(self, images: Sequence[StoredImage]) -> list[StoredImage | None]:
        """Return the images of the part that an earlier call with exactly these ones kept, if it has not been merged since."""
        rows = {row["sample_id"]: row for row in self._images.part([image.sample_id for image in images])}
        return [_image(image, rows.get(image.sample_id)) for image in images]

    def write_images(self, images: Sequence[StoredImage]) -> None:
        """Keep images as one part."""
        check_run_exists(self.root)
        if images:
            rows = [
                {
                    "sample_id": image.sample_id,
                    "class": image.class_name,
                    "batch": image.batch,
                    "audit": json.dumps(to_json(image.audit), sort_keys=True),
                    "image": pixel_digest(image.pixels),
                    "image_png": encode_image(image.pixels),
                }
                for image in images
            ]
            self._images.write(rows, [image.sample_id for image in images])

    def image_digests(self) -> list[str]:
        """Return the digest of the pixels of every image, recomputed.

        Raises:
            DamagedError: an image is damaged.
        """
        digests = self._images.recomputed(["image"])["image"].to_pylist()
        broken = [*self._images.damaged.values(), *([f"{self.root}: an image is damaged"] if "" in digests else [])]
        if broken:
            raise DamagedError(f"{broken[0]}; `syn4seg verify` names it")
        return digests

    def write(self, draw: int, samples: Sequence[StoredSample]) -> None:
        """Keep what a draw knows of samples as one part."""
        check_run_exists(self.root)
        if samples:
            records = record_table(sample.record for sample in samples).to_pylist()
            rows = [
                record | {f"{stage}_png": encode_image(label) for stage, label in sample.labels.items()}
                for record, sample in zip(records, samples, strict=True)
            ]
            name = [f"{r['sample_id']} {r['reason']} {r['image']} {r['label']}" for r in records]
            self._labels(draw).write(rows, name)

    def records(self, draw: int) -> pa.Table:
        """Return every record of a draw, once each, sorted by sample id: columns `schema.RECORD`."""
        return self._labels(draw).table(RECORD.names)

    def complete(self, draw: int, notes: Sequence[str]) -> pa.Table:
        """Return columns sample_id, reason and image of the samples that are complete: they and their images exist."""
        records = drop_retried(self._labels(draw).table(["sample_id", "reason", "image"]), notes)
        present = pc.is_in(records["sample_id"], self._images.locations()["sample_id"].combine_chunks())
        return records.filter(pc.or_(pc.is_null(records["image"]), present))

    def finished(self, draw: int, ids: Iterable[str], notes: Sequence[str]) -> set[str]:
        """Return which of `ids` are done in a draw by now; only files that are new since the last call are opened."""
        labels = self._labels(draw)
        faults, seen = self._done.setdefault(draw, ({}, set()))
        for name, file in labels.look().items():
            if name in seen:
                continue
            seen.add(name)
            for sample, fault in zip(file.ids.to_pylist(), file.faults.to_pylist(), strict=True):
                faults[sample] = faults.get(sample, True) and fault
        return {sample for sample in ids if sample in faults and (not faults[sample] or sample in notes)}

    def read(self, draw: int, rows: Sequence[dict[str, Any]]) -> list[Pair]:
        """Return what a draw knows of finished samples, and their images (None for a fault, which has none).

        Args:
            rows: sample_id and class (name) of each, and where they lie (`image_at`, `label_at`) if that is known.

        Raises:
            DamagedError: a record, label or image is missing or damaged.
        """
        return require_undamaged(self.read_or_errors(draw, rows))

    def read_or_errors(self, draw: int, rows: Sequence[dict[str, Any]]) -> list[Pair | DamagedError]:
        """Read finished samples as `read` does, but return the error of a damaged one in its place."""
        ids = [row["sample_id"] for row in rows]
        records = self._labels(draw).rows(ids, [row.get("label_at") or "" for row in rows])
        requests = [
            StoredImage(row["sample_id"], row["class"], 0, np.zeros(0), {}, row.get("image_at") or "")
            for row, record in zip(rows, records, strict=True)
            if record and record["image"]
        ]
        images = {image.sample_id: stored for image, stored in zip(requests, self.read_images(requests), strict=True)}

        @catch_damaged
        def read(pair: tuple[str, dict[str, Any] | None]) -> Pair:
            sample, row = pair
            what, image = f"{self._labels(draw).folder}: {sample}", images.get(sample)
            if row is None:
                raise DamagedError(f"{what} is missing or damaged; `syn4seg verify` names the file")
            labels = {s: decode_image(row[f"{s}_png"], what) for s in LABEL_COLUMNS if row[f"{s}_png"]}
            if row["image"] and image is None:
                raise DamagedError(f"{self._images.folder}: {sample} is missing or damaged; `syn4seg verify` names the file")
            record = {key: row[key] for key in RECORD.names if row[key] is not None} | {"audit": parse_json(row["audit"], what)}
            return StoredSample(record, labels), None if image is None else image.pixels

        return map_threads(read, list(zip(ids, records, strict=True)))

    def locations(self, draw: int) -> pa.Table:
        """Return `sample_id` and `label_at` of finished samples."""
        table = self._labels(draw).locations()
        return pa.table({"sample_id": table["sample_id"], "label_at": table["location"]})

    def digests(self, draw: int, manifest: pa.Table, quick: bool) -> tuple[pa.Table, list[str]]:
        """Return what is there of what a manifest names; `quick` reads the digests that were written beside the pixels."""
        labels, images = self._labels(draw), self._images
        stored = labels.table(["sample_id", "reason", *LABEL_COLUMNS]) if quick else labels.recomputed(LABEL_COLUMNS)
        columns = {key: _digest_column(manifest, key, stored) for key in LABEL_COLUMNS}
        if self._image_table is None:  # the same for every draw
            self._image_table = images.table(["sample_id", "image"]) if quick else images.recomputed(["image"])
        columns["image"] = _digest_column(manifest, "image", self._image_table)
        return pa.table(columns), sorted({*labels.damaged.values(), *images.damaged.values()})

    def compact(self, draw: int | None, whole: bool = True) -> None:
        """Merge the parts of the images and of a draw into shards; run by the driver, also while a stream runs.

        Args:
            whole: also merge what is too little for a full shard.
        """
        for shards in (self._images, *([] if draw is None else [self._labels(draw)])):
            shards.compact(whole, *self.limits)


def _image(request: StoredImage, row: dict[str, Any] | None) -> StoredImage | None:
    try:
        pixels = decode_image(row["image_png"]) if row else None
        audit = parse_json(row["audit"], request.sample_id) if row else {}
    except (DamagedError, TypeError):
        return None
    if row is None or pixels is None or pixel_digest(pixels) != row["image"]:
        return None
    return StoredImage(request.sample_id, request.class_name, request.batch, pixels, audit, request.location)


def _digest_column(manifest: pa.Table, key: str, table: pa.Table) -> pa.Array | pa.ChunkedArray:
    """Return a column of digests, row for row of the manifest: null where it names none, "" where there is none."""
    index = pc.index_in(manifest["sample_id"], value_set=table["sample_id"].combine_chunks())
    return pc.if_else(pc.is_null(manifest[key]), None, pc.fill_null(table[key].take(index), ""))
