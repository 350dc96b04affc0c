"""An export format of one file: a NumPy archive per sample, and the one line that makes it a value of `--format`.

    python examples/extending_export.py RUN FOLDER

writes every accepted sample of a run (of its diverse prompts) as FOLDER/SPLIT/ID.npz with the arrays `image` and `label`.
"""

from __future__ import annotations

import io
import sys
from collections import Counter

import numpy as np

from syn4seg.config.loading import load
from syn4seg.exports.choice import ExportOptions
from syn4seg.exports.formats import FORMATS, Format
from syn4seg.exports.info import ExportInfo, Parts
from syn4seg.exports.target import Target
from syn4seg.exports.writing import write
from syn4seg.store.rundir import open_run


def npz(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write SPLIT/ID.npz: image uint8 (H, W, 3) RGB, label uint8 (H, W), and the names of the classes."""
    for split, samples in parts:
        for sample in samples:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, image=sample.image, label=sample.label, classes=np.array(info.classes))
            target.write(f"{split}/{sample.sample_id}.npz", buffer.getvalue())


FORMATS["npz"] = Format(f"{__name__}:npz")  # the one line; in the package it stands in syn4seg/exports/formats.py


def main(run_dir: str, folder: str) -> Counter:
    """Export a run; return the number of samples by verdict."""
    run = open_run(run_dir)
    progress = lambda done, total: None  # noqa: E731
    counts = write(run, load(run.config), ExportOptions(), folder, "npz", note=print, warn=print, progress=progress)
    print(f"{folder}: {dict(counts)}")
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
