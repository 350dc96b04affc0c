"""The classes of an export as CVAT and datumaro take them: names and colours by label value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syn4seg.exports.info import palette
from syn4seg.schema import BACKGROUND


def cvat_labels(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the labels of a CVAT task, to be pasted into its "Raw" form; the background is no label there."""
    colours = palette(len(classes)).tolist()
    return [
        {"name": name, "color": "#" + bytes(colours[value]).hex(), "type": "any", "attributes": []}
        for value, name in enumerate(classes)
        if value != BACKGROUND
    ]


def datumaro_meta(classes: Sequence[str]) -> dict[str, Any]:
    """Return datumaro's dataset_meta.json, which it takes beside folders of index masks."""
    return {
        "label_map": {str(value): name for value, name in enumerate(classes)},
        "segmentation_colors": palette(len(classes)).tolist(),
        "background_label": str(BACKGROUND),
    }
