"""The formats that `syn4seg export` writes: one line each. See docs/extending.md for how one is added."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from syn4seg.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from syn4seg.exports.info import ExportInfo, Parts
    from syn4seg.exports.target import Target

    Writer = Callable[[Parts, Target, ExportInfo], None]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        writer: "MODULE:FUNCTION" of a function (parts, target, info) that writes the samples; imported when it is used.
        sharded: whether it writes files of many samples, of about `info.shard_bytes` each.
    """

    writer: str
    sharded: bool = False

    def load(self) -> Writer:
        """Import the function that writes this format."""
        return pkgutil.resolve_name(self.writer)


FORMATS = {
    "voc": Format("syn4seg.exports.folders:voc"),
    "coco": Format("syn4seg.exports.coco:coco"),
    "hf": Format("syn4seg.exports.sharded:huggingface", sharded=True),
    "webdataset": Format("syn4seg.exports.sharded:webdataset", sharded=True),
    "mmseg": Format("syn4seg.exports.folders:mmseg"),
    "yolo": Format("syn4seg.exports.yolo:yolo"),
    "parquet": Format("syn4seg.exports.sharded:parquet", sharded=True),
}
"""Name in `--format` -> how it is written."""


def export_format(name: str, shard_mb: int | None) -> Format:
    """Return the format of a name.

    Raises:
        UserError: there is none, or it has no shards and `shard_mb` is given.
    """
    if name not in FORMATS:
        raise UserError(f"--format {name}: expected one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    if shard_mb is not None and not FORMATS[name].sharded:
        sharded = " or ".join(other for other, entry in FORMATS.items() if entry.sharded)
        raise UserError(
            f"--shard-mb {shard_mb}: {name} is a folder of images and has no shards; leave it out, or use --format {sharded}"
        )
    return FORMATS[name]
