"""README.md of an export: samples, classes, how to load it, lineage, licences. For Hugging Face it is the data set card, whose
front matter says which files are which split."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

import yaml

from syn4seg.exports.info import ExportInfo

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**12, "n>1M"))
TITLES = {
    "prompts_by": "prompts by",
    "generator": "image model",
    "generator_revision": "its revision",
    "segmenter": "segmenter",
    "refiner": "boundary refinement",
    "config_digest": "configuration",
}


def card(info: ExportInfo, counts: Counter, loading: str = "", *, front_matter: bool = True) -> str:
    """Return README.md of a data set.

    Args:
        counts: samples by (split, class name).
        loading: Markdown that shows how the format is loaded; empty for none.
        front_matter: begin with the YAML that Hugging Face reads.
    """
    lineage = [(TITLES[key], info.common[key]) for key in TITLES if info.common[key]]
    lineage += [(key.replace("_", " "), value) for key, value in info.common.items() if key.endswith("fingerprint")]
    return "\n".join(
        [
            *(_front_matter(info, counts) if front_matter else []),
            f"# {escape(info.name)}",
            "",
            "Synthetic images with segmentation labels, made and exported by Syn4Seg on Ray. Nobody has drawn or checked these "
            "labels: `label` holds class indices, 0 for background and 255 for unlabeled pixels, which are to be ignored. "
            "Samples whose id begins with `real-` are real images with the annotations of their data set.",
            "",
            *(["## Load it", "", loading.strip(), ""] if loading else []),
            "## Samples",
            "",
            *table(("split", "class", "samples"), ((*key, n) for key, n in sorted(counts.items()))),
            "",
            "## Classes",
            "",
            *table(("label value", "class"), enumerate(info.classes)),
            "",
            "## Lineage",
            "",
            "Every row has prompt, noise seed, reason, model, revision and the fingerprint of each stage; `audit` is JSON. "
            "`lineage.parquet` has a row per sample, `classes.json` the names and colours by label value, `label_maps/` the same "
            "for CVAT (the raw form of a task's labels) and for datumaro (its dataset_meta.json).",
            "",
            *table(("what", "value"), lineage),
            "",
            "## Licences of the models that made it",
            "",
            *table(("model", "licence"), info.licences.items()),
            "",
        ]
    )


def _front_matter(info: ExportInfo, counts: Counter) -> list[str]:
    splits = sorted({split for split, _ in counts})
    open_licence = all(licence.startswith("Apache-2.0") for licence in info.licences.values())
    head = {
        "pretty_name": info.name,
        "license": "apache-2.0" if open_licence else "other",
        "task_categories": ["image-segmentation"],
        "tags": ["synthetic", "few-shot-segmentation"],
        "size_categories": [next(name for limit, name in SIZES if counts.total() < limit)],
        "configs": [
            {"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]}
        ],
    }
    return ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table; what is in its cells is shown as it is."""
    lines = [" | ".join(escape(cell) for cell in row) for row in rows]
    return [f"| {line} |" for line in (" | ".join(head), " | ".join("---" for _ in head), *lines)]


def escape(text: object) -> str:
    """Return a text that Markdown and HTML show as it is, in one line."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\|`*_[]#" else c for c in html.escape(line, quote=False))
