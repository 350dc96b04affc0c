"""How a page of this package is put together, safely: escaping, charts, the gallery's markup, script and filters.

Nothing of a run reaches a page unescaped: words go through Jinja's escaping or, as JSON, through `as_json`; control characters
and marks that turn the direction of text are made visible first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from syn4seg.report.gallery import Gallery
from syn4seg.report.sheets import ROW, WHO_COLORS
from syn4seg.report.style import STYLE

PAGES = Path(__file__).with_name("page")
WORDS = {
    "area": "too small an area",
    "similarity": "too little similarity",
    "other_novel": "being another novel class",
    "confidence": "too little confidence",
    "no_evidence": "no region and no pixel is similar enough to the class's prototype",
    "target_too_small": "the class covers too small a share of the image",
    "target_too_large": "the class covers too large a share",
}
"""Reasons as the records have them, in words."""
_MARKS = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def escape_invisible(text: str) -> str:
    """`text` with control characters, invisible ones and marks of direction written out, as \\u202e."""
    return _MARKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _all_visible(value: Any) -> Any:
    if isinstance(value, str):
        return escape_invisible(value)
    if isinstance(value, Mapping):
        return {escape_invisible(str(key)): _all_visible(inner) for key, inner in value.items()}
    return [_all_visible(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_json(value: Any) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(_all_visible(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def environment() -> jinja2.Environment:
    """Templates of this package, escaping everything that is no `Markup`."""
    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_all_visible_text, loader=jinja2.FileSystemLoader(PAGES)
    )


def _all_visible_text(value: Any) -> Any:
    return escape_invisible(value) if type(value) is str else value


def chart(title: str, drawn: str, text: str) -> Markup:
    """An SVG with a title and a sentence about it."""
    return Markup('<figure><figcaption>{}</figcaption><div class="chart">{}</div><p>{}</p></figure>').format(
        escape_invisible(title), Markup(drawn), escape_invisible(text)
    )


def filters(colors: Sequence[str]) -> Markup:
    """SVG filters that colour index PNGs, and pixels where two of them differ: the page's script cannot read files' pixels."""
    tables = [["1"] * 256 for _ in range(3)]
    for code, color in enumerate(colors):
        for channel in range(3):
            tables[channel][code] = f"{int(color[1 + 2 * channel : 3 + 2 * channel], 16) / 255:.3g}"
    seen = (
        f'<feColorMatrix in="SourceGraphic" values="{"0 " * 15}1 0 0 0 0"/><feComponentTransfer result="seen">'
        f'<feFuncA type="discrete" tableValues="0 {"1 " * 255}"/></feComponentTransfer>'
    )
    functions = "".join(f'<feFunc{c} type="discrete" tableValues="{" ".join(t)}"/>' for c, t in zip("RGB", tables, strict=True))
    paint = {"palette": f'<feComponentTransfer in="SourceGraphic">{functions}</feComponentTransfer>'}
    paint |= {
        name: f'<feFlood flood-color="{color}"/>'
        for name, color in zip(("draft", "freed", "relabeled", "boundary"), WHO_COLORS[1:], strict=True)
    }
    made = "".join(
        f'<filter id="{name}" color-interpolation-filters="sRGB" x="0" y="0" width="100%" height="100%">{seen}{what}'
        '<feComposite in2="seen" operator="in"/></filter>'
        for name, what in paint.items()
    )
    return Markup(f'<svg width="0" height="0" aria-hidden="true">{made}</svg>')


def gallery_section(
    made: Gallery,
    names: Sequence[str],
    colors: Sequence[str],
    panes: Sequence[dict[str, str]],
    who: Sequence[tuple[str, str]],
    layer_title: str,
    **more: Any,
) -> dict[str, Any]:
    """What a template needs of a gallery: `gallery` (HTML), `gallery_json`, `script`, and how many are `shown` of the `total`.

    Args:
        panes: one dict per picture of a sample: title, and the layers photo, label and who (the latter two may be missing).
        who: (title, colour) of the codes of the layer `who`.
        more: further values for the script: files, map, words, settings.
    """
    values = {
        "row": ROW,
        "side": made.side,
        "sheets": made.sheets,
        "items": made.items,
        "names": names,
        "colors": colors,
        "panes": panes,
        "who": who,
        "words": WORDS,
        "settings": {},
        "files": None,
        "map": [],
        **more,
    }
    html = environment().get_template("gallery.html").render(filters=filters(colors), layer_title=layer_title)
    return {
        "gallery": Markup(html) if made.items else "",
        "gallery_json": as_json(values),
        "script": Markup((PAGES / "gallery.js").read_text()),
        "shown": len(made.items),
        "total": made.total,
    }


def style() -> Markup:
    """Style sheet of every page with a gallery."""
    return Markup(STYLE + (PAGES / "gallery.css").read_text())
