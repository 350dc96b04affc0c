"""The record: the columns of a synthetic sample, who adds them, and the two label values that mean something special."""

from __future__ import annotations

import pyarrow as pa

BACKGROUND = 0
"""Label value of every pixel that belongs to no class."""

UNLABELED = 255
"""Label value that every loss and every metric ignores."""

PLAN_FILE = pa.schema(
    [
        ("sample_id", pa.string()),
        ("class_id", pa.int32()),
        ("bank", pa.string()),
        ("prompt", pa.string()),
        ("prompt_row", pa.int32()),
        ("noise_seed", pa.int64()),
        ("batch", pa.int32()),
        ("padding", pa.bool_()),
    ]
)
"""Columns of plan.parquet: every sample that a run will make, and the padding of the last generator batch."""

PROMPTS_FILE = pa.schema(
    [
        ("class", pa.string()),
        ("class_id", pa.int64()),
        ("bank", pa.string()),
        ("prompt", pa.string()),
        ("order", pa.int64()),
        ("accepted", pa.bool_()),
        ("similarity", pa.float64()),
        ("nearest", pa.string()),
        ("why", pa.string()),
    ]
)
"""Columns of prompts.parquet: every candidate of every class with its verdict."""

PLAN = ("sample_id", "class_id", "prompt", "prompt_row", "noise_seed", "batch", "todo", "image_at", "reason", "traceback")
"""Columns with which a row enters the stream: `prompt_row` is the row of the prompt in the embedding store, `batch` the generator
batch that the sample belongs to, `todo` whether this pass still has to finish it, `image_at` where its image lies, empty if
there is none yet. `reason` and `traceback` are empty until some stage fills them; a row with a reason is passed through
untouched."""

LABEL_COLUMNS = ("draft", "kept", "relabeled", "label")
"""The four label columns, uint8 (H, W), in the order in which they are made; a stage never rewrites another's column."""

FAULT = "fault: "
"""Prefix of the `reason` of a quarantined row; other reasons are rejections by the method."""

RECORD = pa.schema(
    [
        ("sample_id", pa.string()),
        ("class", pa.string()),
        ("class_id", pa.int32()),
        ("prompt", pa.string()),
        ("noise_seed", pa.int64()),
        ("batch", pa.int32()),
        ("reason", pa.string()),
        ("image", pa.string()),
        *((stage, pa.string()) for stage in LABEL_COLUMNS),
        ("audit", pa.string()),
    ]
)
"""Columns of a sample's record, and of the manifest: `image` and the label stages hold digests of the pixels, null where there
are none; `reason` is empty for an accepted sample; `audit` is JSON."""

NULLABLE = frozenset({"image", *LABEL_COLUMNS, "similarity"})
"""Columns of these tables in which null may stand; anywhere else it is damage."""
