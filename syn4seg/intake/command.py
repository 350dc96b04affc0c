"""The verb `syn4seg init`. Heavy imports wait inside it, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Photos with masks or annotations; nothing in it is changed.")],
    to: Annotated[Path | None, typer.Option(help="Where to write; default FOLDER-syn4seg.", show_default=False)] = None,
    novel: Annotated[
        str | None, typer.Option(help="Novel classes, a comma between; default: the rarest, proposed.", show_default=False)
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="voc, coco, cityscapes, ade20k, yolo, cvat, label-studio; default: what fits.", show_default=False),
    ] = None,
) -> None:
    """Understand a folder of photos and masks, and write data and configuration for `syn4seg run` beside it."""
    from syn4seg.intake.making import init as make
    from syn4seg.terminal import Terminal

    display = Terminal()
    names = [name.strip() for name in (novel or "").split(",") if name.strip()]
    with display.bar("writing masks") as progress:
        made = make(folder, to=to, novel=names, format=format, progress=progress)
    display.note(f"format: {made.format}, as {made.why}" if made.why.startswith("it ") else f"format: {made.format}, {made.why}")
    display.note(f"{made.train + made.val} photos with masks: {made.train} train, {made.val} val")
    for name, (images, pixels) in made.classes.items():
        display.note(f"  {name}: {images} images, {pixels:,} pixels{', novel' if name in made.novel else ''}")
    for what, count in made.odd.items():
        display.note(f"  odd: {count} {what}")
    if made.proposed:
        display.note(
            f"novel: {', '.join(made.novel)}, the rarest classes, proposed. Novel are the classes of which you have few annotated "
            "images; choose with --novel NAME,NAME (the same command again replaces what it wrote)"
        )
    display.answer(f"syn4seg run {made.config}")
