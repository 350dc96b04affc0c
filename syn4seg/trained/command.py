"""The verb `syn4seg model`. Heavy imports wait inside it, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer


def model(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run.")],
    to: Annotated[str, typer.Option(help="Where to: a new or empty folder, or s3://BUCKET/NAME.")],
    draw: Annotated[int | None, typer.Option(min=0, help="Support draw; default the first one.", show_default=False)] = None,
    row: Annotated[str | None, typer.Option(help="Row of the ablation; default the whole method.", show_default=False)] = None,
    format: Annotated[
        str, typer.Option(help="safetensors, onnx (dynamic height and width) or pt2 (torch.export).")
    ] = "safetensors",
    trust: Annotated[bool, typer.Option("--trust", help="Run the code that the run names as its backbone.")] = False,
) -> None:
    """Hand the trained model of a run on: a self-contained folder with weights, config.json and a card."""
    from syn4seg.config.loading import load
    from syn4seg.stages.setup import load_dataset
    from syn4seg.store.files import check_writable
    from syn4seg.store.rundir import open_run
    from syn4seg.terminal import Terminal
    from syn4seg.trained.folder import model_folder, write_model
    from syn4seg.trained.graph import check_format, write_graph
    from syn4seg.trust import trust as trust_code

    check_format(format)
    check_writable(to, "--to")
    run = open_run(run_dir)
    config = load(run.config)
    if trust and ":" in config.segmenter.backbone:
        trust_code(config.segmenter.backbone)
    folder, display = model_folder(to, run.root), Terminal()
    fold = load_dataset(config)[1]
    if format == "safetensors":
        found = write_model(run, config, fold, folder, draw=draw, row=row)
    else:
        found = write_graph(run, config, fold, folder, format, draw=draw, row=row)
    facts = found.provenance
    display.note(
        f"{to}: row {facts['row']}, draw {facts['draw']}, {len(found.classes)} classes; README.md says where it comes from"
    )
    if format == "safetensors":
        display.note(f"to use it: syn4seg predict {to} IMAGES... --to predictions")
