"""docs/curves.svg: mIoU over one key, of sweeps with one key each, as means and standard deviations over support draws.

python docs/make_curves.py runs/embedded-beta runs/embedded-lambda
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from syn4seg.report.style import COLORS, svg
from syn4seg.store.files import write_atomically
from tune.records import SweepDir


def curve(folder: Path) -> tuple[str, np.ndarray]:
    """The key of a sweep, and float64 (values, 5): value, mean and deviation of novel, mean and deviation of base, in percent."""
    rows = []
    for number, record in sorted(SweepDir(folder).records().items()):
        if number and record["state"] == "complete":  # trial 0 has the configuration's own value
            (value,) = record["params"].values()
            of = [np.array(list(record["draws"][m].values())) * 100 for m in ("novel", "base")]
            rows.append([value, *(f(v) for v in of for f in (np.mean, lambda v: np.std(v, ddof=1)))])
    return next(iter(record["params"])), np.array(sorted(rows))


def main() -> None:
    """Draws the curves beside each other, and prints them as a table."""
    from matplotlib.figure import Figure

    folders = [Path(word) for word in sys.argv[1:]]
    canvas = Figure(figsize=(4 * len(folders), 3), layout="constrained")
    for axes, folder in zip(np.atleast_1d(canvas.subplots(1, len(folders))), folders, strict=True):
        key, table = curve(folder)
        axes.errorbar(table[:, 0], table[:, 1], yerr=table[:, 2], fmt="-o", color=COLORS[0], capsize=3, label="novel")
        axes.errorbar(table[:, 0], table[:, 3], yerr=table[:, 4], fmt="-s", color=COLORS[1], capsize=3, label="base")
        axes.set_xlabel(key)
        axes.set_ylabel("mIoU on validation images (%)")
        axes.legend(frameon=False)
        print(f"| {key} | novel | base |\n| --- | --- | --- |")
        for value, novel, novel_std, base, base_std in table:
            print(f"| {value:g} | {novel:.1f} ± {novel_std:.1f} | {base:.1f} ± {base_std:.1f} |")
    write_atomically(Path(__file__).parent / "curves.svg", svg(canvas).encode())


if __name__ == "__main__":
    main()
