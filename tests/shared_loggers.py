"""Shared by the tests of the loggers: configurations, and the numbers in TensorBoard's event files."""

from __future__ import annotations

import glob
import json
import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from syn4seg.config.loading import load
from syn4seg.config.tree import Config


def to(*names) -> Config:
    """Return a configuration with these loggers."""
    return load(None, [f"logging.to={json.dumps(list(names))}"])


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, tag, value) of all event files of a folder; checks lengths and checksums as TensorBoard does."""
    values = []
    for name in sorted(glob.glob(f"{folder}/events.out.tfevents.*")):
        data, start, first = Path(name).read_bytes(), 0, True
        while start < len(data):
            (size,) = struct.unpack("<Q", data[start : start + 8])
            body = data[start + 12 : start + 12 + size]
            assert struct.unpack("<I", data[start + 8 : start + 12])[0] == masked_crc32c(data[start : start + 8])
            assert struct.unpack("<I", data[start + 12 + size : start + 16 + size])[0] == masked_crc32c(body)
            messages: Any = event_pb2
            event = messages.Event.FromString(body)
            assert (event.file_version == "brain.Event:2") == first
            values += [(event.step, v.tag, round(v.simple_value, 5)) for v in event.summary.value]
            start, first = start + 16 + size, False
    return values
