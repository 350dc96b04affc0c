"""Writes docs/labels.png from a finished run: image, draft, kept, relabeled and final label of one sample per novel class.

    python docs/make_figure.py RUN

Per class the sample whose label changed most between draft and final is shown. One colour per class index; white is unlabeled.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq

from syn4seg.schema import LABEL_COLUMNS, UNLABELED
from syn4seg.store.images import read_image
from syn4seg.store.rundir import RunDir

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = ("image", "draft", "kept (APF)", "relabeled (APR)", "label (SABR)")


def coloured(label: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): black background, one colour per class index, white where unlabeled."""
    table = np.zeros((256, 3), np.uint8)
    table[1:41] = (np.tile(plt.get_cmap("tab20").colors, (2, 1)) * 255).astype(np.uint8)  # pyright: ignore
    table[UNLABELED] = 255
    return table[label]


def main() -> None:
    """Draws draw 0 of the run given on the command line."""
    run = RunDir(sys.argv[1])
    draw, chosen = run.draw(0), {}
    for row in pq.read_table(draw.manifest).to_pylist():
        if row["reason"] or not row["sample_id"].startswith("hdig"):
            continue
        labels = [read_image(draw.label(stage, row["class"], row["sample_id"])) for stage in LABEL_COLUMNS]
        change = np.count_nonzero(labels[0] != labels[3])
        if change > chosen.get(row["class"], (0,))[0]:
            chosen[row["class"]] = (change, read_image(run.image(row["class"], row["sample_id"])), labels, row["prompt"])
    figure, axes = plt.subplots(len(chosen), 5, figsize=(9, 1.9 * len(chosen)), squeeze=False)
    for number, (line, (_, image, labels, prompt)) in enumerate(zip(axes, chosen.values(), strict=True)):
        for axis, picture, title in zip(line, (image, *map(coloured, labels)), TITLES, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if number == 0:
                axis.set_title(title, fontsize=9)
        line[0].set_xlabel(prompt, fontsize=7, loc="left")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("labels.png"), dpi=90)


if __name__ == "__main__":
    main()
