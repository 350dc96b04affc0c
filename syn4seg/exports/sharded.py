"""Files of many samples each: WebDataset's tars, Parquet, and Parquet as the Hugging Face `datasets` read it."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from syn4seg.exports.info import ExportInfo, Parts
from syn4seg.exports.lineage import LINEAGE
from syn4seg.store.files import map_threads
from syn4seg.store.images import encode_image

if TYPE_CHECKING:
    from syn4seg.exports.samples import ExportSample
    from syn4seg.exports.target import Target

GROUP = 64
"""Rows of a row group in Parquet."""


@dataclass(frozen=True)
class EncodedSample:
    """A sample: its row of `LINEAGE`, image and label as PNG."""

    row: dict[str, Any]
    image: bytes
    label: bytes


def split_shards(parts: Parts, limit: int) -> Iterator[tuple[str, Iterator[EncodedSample]]]:
    """Yield the samples in order, cut into shards "SPLIT-00000", "SPLIT-00001"... of about `limit` bytes."""
    split, number, size = "", 0, 0

    def encode(item: ExportSample) -> EncodedSample:
        return EncodedSample(item.row, encode_image(item.image), encode_image(item.label))

    def name(sample: EncodedSample) -> str:
        nonlocal split, number, size
        if sample.row["split"] != split:
            split, number, size = sample.row["split"], 0, 0
        elif size >= limit:
            number, size = number + 1, 0
        size += len(sample.image) + len(sample.label)
        return f"{split}-{number:05d}"

    yield from itertools.groupby((sample for _, items in parts for sample in map_threads(encode, items)), key=name)


def webdataset(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write SPLIT-00000.tar...: KEY.image.png, KEY.label.png and KEY.json (the lineage); KEY is the sample id, its dots as %2E."""
    for name, samples in split_shards(parts, info.shard_bytes):
        with target.published(f"{name}.tar") as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                key = sample.row["sample_id"].replace(".", "%2E")  # a key ends at the first dot
                _add_member(tar, f"{key}.image.png", sample.image)
                _add_member(tar, f"{key}.json", json.dumps(sample.row, sort_keys=True).encode())
                _add_member(tar, f"{key}.label.png", sample.label)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group stay 0
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def parquet(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write data/SPLIT-00000.parquet...: the columns of the lineage, and `image` and `label` as PNG bytes."""
    schema = pa.schema([*LINEAGE, ("image", pa.binary()), ("label", pa.binary())])
    _tables(parts, target, info, schema, lambda data, _: data)


def huggingface(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write data/SPLIT-00000.parquet..., with Image features `image` and `label`; `class_id` has the class names by label value."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [
        field.with_type(pa.int64()) if field.name == "class_id" else field for field in LINEAGE
    ]  # a ClassLabel is 64 bits wide
    schema = pa.schema([*columns, ("image", kind), ("label", kind)])
    features: dict[str, Any] = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in LINEAGE}
    features |= {name: {"_type": "Image"} for name in ("image", "label")}
    features["class_id"] = {"names": list(info.classes), "_type": "ClassLabel"}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    _tables(parts, target, info, schema, lambda data, name: {"bytes": data, "path": name})


def _tables(parts: Parts, target: Target, info: ExportInfo, schema: pa.Schema, cell: Any) -> None:
    """Write the shards.

    Args:
        cell: makes the value of an image column of PNG bytes and a file name.
    """
    for name, samples in split_shards(parts, info.shard_bytes):
        with target.published(f"data/{name}.parquet") as partial, pq.ParquetWriter(partial, schema) as writer:
            while group := list(itertools.islice(samples, GROUP)):
                rows = []
                for s in group:
                    name = s.row["sample_id"]
                    rows.append(s.row | {"image": cell(s.image, f"{name}.png"), "label": cell(s.label, f"{name}.label.png")})
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
