"""Damaged run directories, in files and in shards, each handed to one verb of the command line."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.errors import UserError
from syn4seg.stages.results import verify_run
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.layout_sharded import ShardSamples
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage
from syn4seg.store.seals import write_sealed
from tests.hostile.damage import harm, harm_table

VERBS = (
    *(["verify"], ["verify", "--quick"], ["watch", "--once"], ["report"], ["audit"], ["plan"], ["config"]),
    *(
        ["export", "--format", "voc"],
        ["export", "--format", "coco"],
        ["export", "--format", "parquet"],
        ["compare"],
        ["prompts"],
        ["evaluate"],
    ),
)
MAKES = (["synthesize"], ["refine"])
"""Verbs that make again what is damaged."""
SECONDS_TO_MAKE = 60
"""CPU time that every verb may take that makes something: it trains and labels, the others only read."""


def sharded(finished: Path, root: Path) -> Path:
    """Copy a finished run to `root` as one with `layout: sharded`, some of its parts merged into shards; return `root`."""
    shutil.copytree(finished, root)
    old, new = FileSamples(finished), ShardSamples(root)
    for path in (root / "images", *root.glob("draws/*/labels"), *root.glob("draws/*/stages"), *root.glob("draws/*/records")):
        shutil.rmtree(path)
    write_sealed(root / "config.yaml", annotated(load(root / "config.yaml", ["layout=sharded"])).encode())
    for draw in RunDir(finished).draws():
        rows = old.records(draw.number).select(["sample_id", "class"]).to_pylist()
        for start in range(0, len(rows), 3):
            pairs = old.read(draw.number, rows[start : start + 3])
            records = [sample.record for sample, _ in pairs]
            new.write_images(
                [
                    StoredImage(r["sample_id"], r["class"], r["batch"], pixels, {})
                    for r, (_, pixels) in zip(records, pairs, strict=True)
                    if pixels is not None
                ]
            )
            new.write(draw.number, [sample for sample, _ in pairs])
            if start == len(rows) // 2 // 3 * 3:
                new.compact(draw.number)
    assert verify_run(RunDir(root)) == verify_run(RunDir(finished)) and verify_run(RunDir(root))[1] == []
    return root


def runs(dice: random.Random, finished: Path) -> tuple[str, Callable[[Path], None]]:
    """A run directory, one file of which is damaged, special or gone; with its seal, or as an earlier version left it."""
    files = sorted(
        p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file() and p.suffix not in (".html", ".tfevents")
    )
    of_samples = ("/labels/", "/stages/", "images/", "/records/")
    in_shards = not any(f.endswith(".png") for f in files)
    often = [f for f in files if (f.endswith(".parquet") if in_shards else not any(part in f for part in of_samples))]
    name = dice.choice(often if dice.random() < 0.7 else files)
    words, kind, sealed = dice.choice(VERBS + MAKES if in_shards else VERBS), dice.randrange(10), dice.random() < 0.4
    whole = (finished / name).read_bytes()
    as_table = in_shards and name.endswith(".parquet") and dice.random() < 0.6
    harmed = harm_table(whole, dice) if as_table else harm(whole, dice)

    def use(folder: Path) -> None:
        run = folder / "run"
        shutil.copytree(finished, run)
        target = run / name
        if not sealed:
            for path in run.rglob(".seals"):
                shutil.rmtree(path)
        if not target.parent.exists():
            return
        target.unlink(missing_ok=True)
        if kind == 0:
            os.mkfifo(target)
        elif kind == 1:
            target.symlink_to(dice.choice(["/dev/zero", "/", "nowhere"]))
        elif kind == 2:
            target.mkdir()
        elif kind > 3:
            target.write_bytes(harmed)
        verb, *options = words
        places = [run]
        if verb == "compare":
            places = [run, run]
        elif verb in ("prompts", "evaluate", *(makes for (makes,) in MAKES)):
            places = ["--out", run, "placement.runner=inline"]
            signal.setitimer(signal.ITIMER_PROF, SECONDS_TO_MAKE)
            signal.alarm(10 * SECONDS_TO_MAKE)
        if verb in ("export", "compare", "report"):
            options = [*options, "--to", folder / ("page.html" if verb != "export" else "out")]
        command(verb, *places, *options)

    how = "table" if as_table else "bytes"
    return f"run: {name}, {kind} {how}, {' '.join(words)}, {'sealed' if sealed else 'no seals'}", use


def command(*words: object) -> None:
    """Run the command line in this process; a code other than 0, 1 and 2 is a defect, as is more than one line of error."""
    from syn4seg import cli

    argv, sys.argv = sys.argv, ["syn4seg", *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        if stop.code not in (0, 1, 2, None):
            place = err.getvalue().rpartition("the traceback is in ")[2].partition(" ")[0]
            trace = Path(place).read_text() if place and Path(place).is_file() else err.getvalue()
            raise AssertionError(f"exit code {stop.code}: {trace[-1500:]}") from None
        if stop.code == 2:
            raise UserError(err.getvalue()) from None
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
