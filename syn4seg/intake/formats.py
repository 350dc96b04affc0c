"""The formats that `syn4seg init` reads, in the order in which they are looked for: the more particular ones first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syn4seg.errors import UserError, did_you_mean
from syn4seg.intake.exported import detect_cvat, detect_label_studio, read_cvat, read_label_studio
from syn4seg.intake.masks import detect_ade20k, detect_cityscapes, detect_voc, read_ade20k, read_cityscapes, read_voc
from syn4seg.intake.outlines import detect_coco, detect_yolo, read_coco, read_yolo
from syn4seg.intake.tree import Found, Tree


@dataclass(frozen=True)
class SourceFormat:
    """How a format is recognized (the evidence, or "") and read."""

    detect: Callable[[Tree], str]
    read: Callable[[Tree], Found]


SOURCE_FORMATS = {
    "cityscapes": SourceFormat(detect_cityscapes, read_cityscapes),
    "ade20k": SourceFormat(detect_ade20k, read_ade20k),
    "voc": SourceFormat(detect_voc, read_voc),
    "cvat": SourceFormat(detect_cvat, read_cvat),
    "label-studio": SourceFormat(detect_label_studio, read_label_studio),
    "coco": SourceFormat(detect_coco, read_coco),
    "yolo": SourceFormat(detect_yolo, read_yolo),
}


def choose_format(tree: Tree, asked: str | None) -> tuple[str, str]:
    """Return the name of a folder's format and a sentence that says why it is this one.

    Raises:
        UserError: none fits, or none has the name that was asked for.
    """
    if asked is not None:
        if asked not in SOURCE_FORMATS:
            raise UserError(f"--format {asked}: expected one of {', '.join(SOURCE_FORMATS)}{did_you_mean(asked, SOURCE_FORMATS)}")
        return asked, "asked for by --format"
    evidence = {name: why for name, form in SOURCE_FORMATS.items() if (why := form.detect(tree))}
    if not evidence:
        raise UserError(
            f"{tree.root}: no known format fits its {len(tree.names)} files; expected one of {', '.join(SOURCE_FORMATS)}: give the "
            "folder that holds photos and annotations together, or name the format with --format"
        )
    name, *others = evidence
    why = f"it has {evidence[name]}"
    if others:
        also = "; ".join(f"{other} fits too: {evidence[other]}" for other in others)
        kind = "mask pictures need no drawing" if name in ("cityscapes", "ade20k", "voc") else "its outlines are as they were drawn"
        why += f" ({also}; {name} comes first, since {kind}; --format takes another one)"
    return name, why
