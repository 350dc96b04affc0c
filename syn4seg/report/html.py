"""Put a page together safely: escaping, charts, the gallery's markup, script and filters.

Nothing of a run reaches a page unescaped: texts go through Jinja's escaping or, as JSON, through `as_json`; control characters
and marks that change the direction of text are written out first.
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
from syn4seg.report.sheets import ROW, WHO_COLORS, class_colors, rgb_of
from syn4seg.report.style import STYLE

PAGES = Path(__file__).with_name("page")
REASON_TEXTS = {
    "area": "too small an area",
    "similarity": "too little similarity",
    "other_novel": "being another novel class",
    "rival": "resembling another novel class more",
    "confidence": "too little confidence",
    "class_not_shown": "the picture check sees another class",
    "no_evidence": "no region and no pixel is similar enough to the class's prototype",
    "target_too_small": "the class covers too small a share of the image",
    "target_too_large": "the class covers too large a share",
}
"""Reason in a record -> its text."""
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def escape_invisible(text: str) -> str:
    """Return the text with control characters, invisible ones and marks of direction written out, as \\u202e."""
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape_tree(value: Any) -> Any:
    if isinstance(value, str):
        return escape_invisible(value)
    if isinstance(value, Mapping):
        return {escape_invisible(str(key)): _escape_tree(inner) for key, inner in value.items()}
    return [_escape_tree(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_json(value: Any) -> Markup:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(_escape_tree(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def environment(*folders: Path) -> jinja2.Environment:
    """Return the templates of this package and of other folders, which escape everything but `Markup`."""
    return jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,  # `Markup` is a subclass of str
        loader=jinja2.FileSystemLoader([PAGES, *folders]),
    )


def chart(title: str, svg: str, text: str) -> Markup:
    """Return the figure of an SVG with a title and a sentence about it."""
    figure = Markup('<figure><figcaption>{}</figcaption><div class="chart">{}</div><p>{}</p></figure>')
    return figure.format(escape_invisible(title), Markup(svg), escape_invisible(text))


def filters(colors: Sequence[str]) -> Markup:
    """Return SVG filters that colour index PNGs, and the pixels where two differ: the page's script cannot read pixels of files."""
    tables = [["1"] * 256 for _ in range(3)]
    for code, color in enumerate(colors):
        for channel, value in enumerate(rgb_of(color)):
            tables[channel][code] = f"{value / 255:.3g}"
    seen = (
        f'<feColorMatrix in="SourceGraphic" values="{"0 " * 15}1 0 0 0 0"/><feComponentTransfer result="seen">'
        f'<feFuncA type="discrete" tableValues="0 {"1 " * 255}"/></feComponentTransfer>'
    )
    functions = "".join(f'<feFunc{c} type="discrete" tableValues="{" ".join(t)}"/>' for c, t in zip("RGB", tables, strict=True))
    fills = {"palette": f'<feComponentTransfer in="SourceGraphic">{functions}</feComponentTransfer>'}
    for name, color in zip(("draft", "freed", "relabeled", "boundary"), WHO_COLORS[1:], strict=True):
        fills[name] = f'<feFlood flood-color="{color}"/>'
    elements = "".join(
        f'<filter id="{name}" color-interpolation-filters="sRGB" x="0" y="0" width="100%" height="100%">{seen}{fill}'
        '<feComposite in2="seen" operator="in"/></filter>'
        for name, fill in fills.items()
    )
    return Markup(f'<svg width="0" height="0" aria-hidden="true">{elements}</svg>')


def gallery_section(
    gallery: Gallery,
    names: Sequence[str],
    panes: Sequence[dict[str, str]],
    who: Sequence[tuple[str, str]],
    layer_title: str,
    **more: Any,
) -> dict[str, Any]:
    """Return the values of a template: `gallery` (HTML), `gallery_json`, `script`, and the numbers `shown` and `total`.

    Args:
        names: of the class indices.
        panes: one dict per picture of a sample: title, and the layers photo, label and who (the latter two may be missing).
        who: (title, colour) of the codes of the layer `who`.
        layer_title: title of that layer.
        more: further values for the script: files, beside (name of the folder that the page was written to), map, words, settings.
    """
    colors = class_colors(len(names))
    values = {
        "row": ROW,
        "side": gallery.side,
        "sheets": gallery.sheets,
        "items": gallery.items,
        "names": names,
        "colors": colors,
        "panes": panes,
        "who": who,
        "words": REASON_TEXTS,
        "settings": {},
        "files": None,
        "beside": "",
        "map": [],
        **more,
    }
    html = environment().get_template("gallery.html").render(filters=filters(colors), layer_title=layer_title)
    return {
        "gallery": Markup(html) if gallery.items else "",
        "gallery_json": as_json(values),
        "script": script("gallery.js"),
        "shown": len(gallery.items),
        "total": gallery.total,
    }


def script(name: str) -> Markup:
    """Return a script of this package."""
    return Markup((PAGES / name).read_text())


def style() -> Markup:
    """Return the style sheet of every page with a gallery."""
    return Markup(STYLE + (PAGES / "gallery.css").read_text())
