"""The verbs `prepare`, `verify` and `audit`. Imports wait inside, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from syn4seg.errors import DamagedError, UserError, did_you_mean
from syn4seg.options import Run

if TYPE_CHECKING:
    from syn4seg.stages.audit import Finding


def verify(
    run_dir: Run, quick: Annotated[bool, typer.Option("--quick", help="Decode no pixel: manifest, plan and what is there.")] = False
) -> None:
    """Recompute every image's and label's digest; fail on any mismatch with the manifest."""
    from syn4seg.stages.results import verify_run
    from syn4seg.store.listing import count_partial_files
    from syn4seg.store.rundir import open_run

    run = open_run(run_dir)
    try:
        digest, problems = verify_run(run, quick)
    except DamagedError as error:  # plan or manifest: nothing else can be compared with it
        print(f"{error}\nNOT verified: 1 mismatch, and nothing else could be compared", file=sys.stderr)
        raise typer.Exit(1) from None
    for line in problems:
        print(line, file=sys.stderr)
    if partial := count_partial_files(run.root):
        print(f"{partial} unfinished .partial files of earlier crashes; they count for nothing and may be deleted", file=sys.stderr)
    print(f"digest: {digest}")
    if problems:
        remedy = "put the old files back, or delete these and run the same command again"
        print(f"NOT verified: {len(problems)} mismatches, named above; {remedy}", file=sys.stderr)
        raise typer.Exit(1)
    print(
        "complete: every planned sample is there; --quick decoded no pixel, so the digest is what the manifests claim"
        if quick
        else "verified: every image, label, record and sealed file is what was written"
    )


def prepare(
    source: Annotated[str, typer.Argument(metavar="pascal|coco", help="VOC 2012 + SBD, or COCO 2014.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the unpacked official archives.")],
    masks: Annotated[str, typer.Option(help="COCO: all_polygons, first_polygon (DIaM) or crowd255 (CAPL).")] = "all_polygons",
) -> None:
    """Check the official files, build masks, lists and index beside them; goes on where it was stopped."""
    from syn4seg.data.sources import DATASETS
    from syn4seg.terminal import Terminal

    build = DATASETS[source].prepare if source in DATASETS else None
    if build is None:
        near = did_you_mean(source, ("pascal", "coco"))
        raise UserError(f"{source!r}: expected pascal (VOC 2012 + SBD) or coco (2014){near}")
    display = Terminal()
    with display.bar(f"preparing {source}") as progress:
        build(root, masks, progress=progress, note=display.note)
    variant = f" data.masks={masks}" if source == "coco" else ""
    display.note(f"ready: data.source={source} data.root={root}{variant}")


def audit(run_dir: Run) -> None:
    """Prove from the run's records that no test image, support image or novel mask leaked; exit 1 on a leak."""
    from syn4seg.config.loading import load
    from syn4seg.stages.audit import audit_run
    from syn4seg.stages.setup import load_dataset
    from syn4seg.store.rundir import open_run
    from syn4seg.terminal import Terminal

    run = open_run(run_dir)
    config, display = load(run.config), Terminal()
    findings = audit_run(config, run, *load_dataset(config))
    for finding in findings:
        display.answer(f"{finding.verdict:8}{finding.claim}: {finding.evidence}")
    display.answer(verdict_of(findings))
    if any(finding.verdict == "LEAK" for finding in findings):
        raise typer.Exit(1)


def verdict_of(findings: Sequence[Finding]) -> str:
    """Return the findings of an audit in one sentence: the leaks, or how many claims are proven, stated, unknown."""
    counts = Counter(finding.verdict for finding in findings)
    rest = [f"{counts['ok']} of {len(findings)} claims are proven"]
    rest += [f"{counts['stated']} stated by the configuration"] if counts["stated"] else []
    rest += [f"{counts['unknown']} not known from the records"] if counts["unknown"] else []
    if counts["LEAK"]:
        return f"LEAK: {counts['LEAK']} of {len(findings)} claims are broken; scores of this run must not be reported"
    return f"no leak: {', '.join(rest)}"
