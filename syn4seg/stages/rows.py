"""The rows of the ablation table (method.md 5.4): which prompt bank and which label column each one trains on."""

from __future__ import annotations

from syn4seg.config.tree import Config

HDIG, CLASS_NAME = "hdig", "class_name"
"""The two prompt banks: de-duplicated diverse prompts, and one prompt with nothing but the class name (an ablation)."""
ROWS = {
    "support_only": ("", ""),
    "class_name_raw": (CLASS_NAME, "draft"),
    "hdig_raw": (HDIG, "draft"),
    "apf": (HDIG, "kept"),
    "apf_apr": (HDIG, "relabeled"),
    "syn4seg": (HDIG, "label"),
}
"""Ablation row -> (prompt bank, label column) of the synthetic samples that it trains on."""
RESULT_NAMES = {row: "apr" if row == "apf_apr" else row for row in ROWS}
"""Ablation row -> its name in results.json."""
BASELINE = "baseline/"
"""Prefix of a baseline's name among the rows of a confusion.json."""


def rows_of(config: Config) -> list[str]:
    """Return the ablation rows that a configuration produces."""
    has_class_name = config.synthesis.source == "generate" and config.synthesis.class_name_bank
    return [row for row in ROWS if row != "class_name_raw" or has_class_name]
