"""What a model loses when it learns new classes without base training data: labelled, predicted and no base images compared.

    python benchmarks/extend.py world [key=value] [--draws 3] [--how labelled none]
    python benchmarks/extend.py facade --photos ../shared/reference/facade

Fold 0 alone, on which the settings of `novel.base_data` were chosen. All ways share images and base network of the first one.
`facade` is described in real_photos.py. The row `predicted` reads the train list's own images, never their masks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from real_photos import TRAINED, import_folder
from record import ROOT, machine, write

WAYS = {
    "labelled": ["novel.base_data=labelled"],
    "none": ["novel.base_data=none"],
    "none_not_inverted": ["novel.base_data=none", "novel.inverted_cells=0"],
    "predicted": ["novel.base_data=predicted"],
    "predicted_sure": ["novel.base_data=predicted", "novel.base_confidence=0.9"],
}
METRICS = ("base", "novel", "mean", "harmonic")


def run(args: argparse.Namespace, how: str) -> dict[str, Any]:
    """Run a way unless it is done; return its results.json."""
    words = [f"data.draws={args.draws}", "data.fold=0", *WAYS[how], "evaluation.rows=[hdig_raw,syn4seg]"]
    words += ["placement.runner=inline", *args.overrides]
    config = "embedded"
    if args.data == "facade":
        config, imported = str(ROOT / "examples" / "photos.yaml"), args.work / "import0"
        import_folder(args.photos, 0, imported, 30)
        words += [f"data.root={args.photos}", f"data.train_images={TRAINED}", f"synthesis.root={imported}"]
    out, first = args.work / f"{args.data}-{how}", args.work / f"{args.data}-{args.how[0]}"
    if not (out / "results.json").is_file():
        command = [sys.executable, "-m", "syn4seg.cli", "run", config, *words, "--out", str(out)]
        subprocess.run([*command, *(["--reuse", str(first)] if out != first else [])], check=True, cwd=ROOT)
    return json.loads((out / "results.json").read_text())


def main() -> None:
    """Run what is missing and write the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("world", "facade"))
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/extend"))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--how", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    if args.data == "facade" and not (args.photos and args.photos.is_dir()):
        sys.exit(f"--photos {args.photos}: no such folder; nothing was run")
    args.work, args.photos = args.work.resolve(), args.photos and args.photos.resolve()
    result = machine() | {"data": args.data, "fold": 0, "draws": args.draws, "overrides": args.overrides, "rows": {}}
    for how in args.how:
        found = run(args, how)["rows"]
        result["rows"][how] = {row: {m: values[m] for m in METRICS} for row, values in found.items()}
        shown = found["syn4seg"]
        print(how, ", ".join(f"{m} {100 * shown[m]['mean']:.1f} ± {100 * shown[m]['std']:.1f}" for m in METRICS))
    write(f"extend-{args.data}", result)


if __name__ == "__main__":
    main()
