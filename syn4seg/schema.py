"""The record: the columns of a synthetic sample, who adds them, and the two label values that mean something special."""

from __future__ import annotations

BACKGROUND = 0
"""Label value of every pixel that belongs to no class."""

UNLABELED = 255
"""Label value that every loss and every metric ignores."""

PLAN = ("sample_id", "class_id", "prompt", "prompt_row", "noise_seed", "batch", "todo", "reason", "traceback")
"""Columns with which a row enters the stream (`prompt_row` is the row of the prompt in the embedding store, `batch` the generator
batch that the sample belongs to, `todo` whether this pass still has to finish it; `reason` and `traceback` are empty until some
stage fills them, and a row with a reason is passed through untouched)."""

LABEL_STAGES = ("draft", "kept", "relabeled", "label")
"""The four label columns, uint8 (H, W), in the order in which they are made; a stage never rewrites another's column."""
