"""The verb `syn4seg export`. Heavy imports wait inside it, so that `--help` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from syn4seg.exports.formats import FORMATS


def export(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run.")],
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.", autocompletion=lambda: list(FORMATS))],
    to: Annotated[str, typer.Option(help="Where to: a new or empty directory, or s3://BUCKET/NAME.")],
    only: Annotated[str, typer.Option(help="accepted, or all: rejected samples too, in splits of their own.")] = "accepted",
    bank: Annotated[str, typer.Option(help="Samples of which prompts: hdig, control (class names alone), or all.")] = "hdig",
    draw: Annotated[int, typer.Option(min=0, help="Support draw whose labels are exported.")] = 0,
    classes: Annotated[str | None, typer.Option(help="Novel classes, a comma between; default all.", show_default=False)] = None,
    min_iou: Annotated[
        float | None, typer.Option(help="Least mean agreement of the label's parts with SAM's masks.", show_default=False)
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="Least cosine of the target's best region with its prototype.", show_default=False)
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Only samples rejected for these reasons, a comma between; or accepted.", show_default=False)
    ] = None,
    split: Annotated[
        float | None, typer.Option(help="Share of train, for example 0.9; the others are val.", show_default=False)
    ] = None,
    split_seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    merge: Annotated[
        str | None,
        typer.Option(help="Add the train list of a real data set in a folder, or `run` for the run's.", show_default=False),
    ] = None,
    ids: Annotated[str, typer.Option(help="Label values: index, of the run, or dataset, the data set's own.")] = "index",
    by_class: Annotated[bool, typer.Option("--by-class", help="A split per class instead of one.")] = False,
    shard_mb: Annotated[
        int | None, typer.Option(min=1, help="Size of a shard of hf, webdataset, parquet; default 256.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set; default the run's.", show_default=False)] = None,
) -> None:
    """Write the samples of a run as another tool's data set, with the lineage of every image."""
    from syn4seg.config.loading import load
    from syn4seg.exports.choice import ExportOptions
    from syn4seg.exports.writing import write
    from syn4seg.store.files import check_writable
    from syn4seg.store.rundir import open_run
    from syn4seg.terminal import Terminal

    check_writable(to, "--to")
    display, run = Terminal(), open_run(run_dir)
    options = ExportOptions(
        draw=draw,
        only=only,
        classes=_words(classes),
        by_class=by_class,
        bank=bank,
        min_iou=min_iou,
        min_similarity=min_similarity,
        reasons=_words(reason),
        split=split,
        split_seed=split_seed,
        ids=ids,
        merge=merge,
    )
    with display.bar(f"exporting {format}") as progress:
        counts = write(
            run,
            load(run.config),
            options,
            to,
            format,
            shard_mb=shard_mb,
            name=name,
            note=display.note,
            warn=lambda line: print(line, file=sys.stderr),
            progress=progress,
        )
    display.note(f"{to}: {', '.join(f'{n} {verdict}' for verdict, n in sorted(counts.items()))}")
    if counts["damaged"]:
        print(
            f"{counts['damaged']} damaged samples are not in the export; `syn4seg verify {run_dir}` names the files",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _words(text: str | None) -> tuple[str, ...]:
    """Return the words between the commas of an option, each once."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))
