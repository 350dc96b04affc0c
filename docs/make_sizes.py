"""Writes syn4seg/planning/counted.json: the sizes of published and packaged models, which `syn4seg plan` then need not build."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from syn4seg.planning.sizes import COUNTED, call_text
from syn4seg.planning.sizes_generators import SD3_VAE, TRANSFORMERS, _decode_flops, _published
from syn4seg.planning.sizes_vision import sam_size, segmenter_size

BINS = (1, 2, 3, 6)
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    *((segmenter_size, ("resnet50", 1 + base, 512, BINS, 417)) for base in (15, 60)),
    (segmenter_size, ("embedded", 13, 128, BINS, 64)),
    *((_published, (name,)) for name in TRANSFORMERS),
    *((_decode_flops, (json.dumps(SD3_VAE), size)) for size in (512, 1024)),
    *((sam_size, (name,)) for name in ("vit-b", "vit-l", "vit-h", "embedded-sam")),
]
"""Function and arguments: those of the packaged configurations, and other published models."""


def count() -> dict[str, Any]:
    """Count all of them anew."""
    found = {call_text(function, args): function.__wrapped__(*args) for function, args in CALLS}
    return {key: asdict(size) if is_dataclass(size) and not isinstance(size, type) else size for key, size in found.items()}


if __name__ == "__main__":
    COUNTED.write_text(json.dumps(count(), indent=1) + "\n")
