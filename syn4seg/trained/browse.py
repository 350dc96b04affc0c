"""The page of a folder of predictions: every picture with its classes, areas and confidence, to filter by class; from the disk.

index.html holds the facts of the first `MOST` pictures, index-2.html those of the next, and so on. Pictures are those in the folder
and load when they come into view, so neither a page nor a browser grows with the number of predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from syn4seg.report.html import as_json, environment, filters, style
from syn4seg.store.files import write_atomically

if TYPE_CHECKING:
    from syn4seg.segmenter.model_folder import ModelConfig
    from syn4seg.store.files import AnyPath
    from syn4seg.trained.prediction import Line

PAGES = Path(__file__).with_name("page")
MOST = 5000
"""Pictures of one file."""


def page_name(number: int) -> str:
    """Return the name of a file, from 1 on."""
    return "index.html" if number == 1 else f"index-{number}.html"


def write_pages(folder: AnyPath, lines: Sequence[Line], config: ModelConfig, *, is_palette: bool = False, most: int = MOST) -> None:
    """Write the pages of a folder of predictions; the same lines give the same bytes.

    Args:
        lines: of predictions.jsonl.
        is_palette: whether masks are palette PNGs, which show their colours themselves.
        most: pictures of one file.
    """
    names = [entry.name for entry in config.classes]
    colors = [f"#{bytes(entry.color).hex()}" for entry in config.classes]
    index, total = {name: k for k, name in enumerate(names)}, max(1, -(-len(lines) // most))
    counts = Counter(name for line in lines for name in line.get("classes", ()))
    bad = sum("error" in line for line in lines)
    common = {
        "style": style() + Markup((PAGES / "predictions.css").read_text()),
        "gallery": True,
        "script": Markup((PAGES / "predictions.js").read_text()),
        "filters": filters(colors),
        "name": config.provenance.get("run", "model"),
        "row": config.provenance.get("row", ""),
        "total": len(lines),
        "bad": bad,
        "pages": [page_name(number) for number in range(1, total + 1)],
        "classes": [(name, color, counts[name]) for name, color in zip(names, colors, strict=True) if counts[name]],
    }
    template = environment(PAGES).get_template("predictions.html")
    for number in range(total):
        part = lines[number * most : (number + 1) * most]
        facts = {"names": names, "colors": colors, "palette": is_palette, "items": [_item(line, index) for line in part]}
        span = (number * most + 1, number * most + len(part))
        html = template.render(common | {"number": number + 1, "span": span, "gallery_json": as_json(facts)})
        write_atomically(folder / page_name(number + 1), html.encode())


def _item(line: Line, index: dict[str, int]) -> dict[str, Any]:
    """Return the facts about a picture; keys are short, since there may be many."""
    if "error" in line:
        return {"name": str(line["name"]), "image": str(line["image"]), "error": str(line["error"])}
    found = [[index[k], v["share"], v["confidence"]] for k, v in line["classes"].items() if k in index]
    item = {key: line[key] for key in ("name", "image", "mask", "overlay", "confidence") if key in line}
    return item | {"size": [line["width"], line["height"]], "classes": sorted(found, key=lambda row: (-row[1], row[0]))}
