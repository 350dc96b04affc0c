"""The rows of the ablation table (method.md 5.5): which prompt bank and which label column each one trains on."""

from __future__ import annotations

from syn4seg.config.tree import Config
from syn4seg.stages.setup import draws_of

HDIG, CLASS_NAME = "hdig", "class_name"
"""The two prompt banks: de-duplicated diverse prompts, and one prompt with nothing but the class name (an ablation)."""
IMAGE_LABEL, SWAPPED, NAMED, TRUTH = "image_label", "swapped", "named", "truth"
"""Label columns of the controls; they are computed while rows train and are never written (`stages/controls.py`)."""
ROWS = {
    "support_only": ("", ""),
    "class_name_raw": (CLASS_NAME, "draft"),
    "hdig_raw": (HDIG, "draft"),
    "apf": (HDIG, "kept"),
    "apf_apr": (HDIG, "relabeled"),
    "syn4seg": (HDIG, "label"),
    "control_image_label": (HDIG, IMAGE_LABEL),
    "control_swapped": (HDIG, SWAPPED),
    "control_by_name": (HDIG, NAMED),
    "oracle": (HDIG, TRUTH),
}
"""Ablation row or control -> (prompt bank, label column) of the synthetic samples that it trains on."""
CONTROLS: tuple[str, ...] = ("control_image_label", "control_swapped", "control_by_name", "oracle")
"""Rows that could refute the method: what the image's class alone gives, what a wrong prototype gives, what another network gives
that is asked for the class by its name, and what true masks give."""
WITHOUT_VERDICT = ("draft", "kept", IMAGE_LABEL, NAMED, TRUTH)
"""Label columns that rejected samples have too."""
RESULT_NAMES = {row: "apr" if row == "apf_apr" else row for row in ROWS}
"""Ablation row -> its name in results.json."""
BASELINE = "baseline/"
"""Prefix of a baseline's name among the rows of a confusion.json."""


def rows_of(config: Config) -> list[str]:
    """Return the ablation rows and controls that a configuration produces."""
    from syn4seg.stages.truth import is_truth_known

    without = set() if config.evaluation.controls else set(CONTROLS) - {"control_by_name"}  # which has a key of its own
    if not config.evaluation.by_name:
        without.add("control_by_name")
    if chosen := config.evaluation.rows:
        without |= {row for row, name in RESULT_NAMES.items() if name not in ("support_only", *chosen) and row not in CONTROLS}
    if not (config.synthesis.from_prompts and config.synthesis.class_name_bank):
        without.add("class_name_raw")
    if "oracle" not in without and not is_truth_known(config):
        without.add("oracle")
    return [row for row in ROWS if row not in without]


def joint_rows(config: Config) -> dict[str, str]:
    """Return name among the results -> ablation row, of every network that the joint stage trains: "syn4seg_all" -> "syn4seg"."""
    trains, rows = config.novel.trains, {RESULT_NAMES[row]: row for row in rows_of(config)}
    if trains == "classifier":
        return {}
    return {f"{name}_{trains}": rows[name] for name in config.novel.rows if name in rows}


def joint_names(config: Config) -> list[tuple[int, str]]:
    """Return (draw, name) of every network that the joint stage of a configuration trains."""
    return [(draw, name) for draw in draws_of(config) for name in joint_rows(config)]


def scored_rows(config: Config) -> list[str]:
    """Return the rows of a table: those of the ablation by their own names, then the networks of the joint stage."""
    return [*rows_of(config), *joint_rows(config)]
