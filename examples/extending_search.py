"""A study over another key: nothing but one line in a YAML file, run here on a tiny configuration.

    python examples/extending_search.py

searches `refinement.margin` with three trials and prints what each of them computed anew: what the key changes, and nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from syn4seg.options import read_config
from tune.records import Record, SweepDir
from tune.sweep import search_keys

STUDY = Path(__file__).with_suffix(".yaml")
TINY = [
    "embedded",
    "placement.runner=inline",
    "prompts.bank_size=3",
    "synthesis.images_per_class=3",
    "synthesis.batch=4",
    "synthesis.class_name_bank=false",
    "data.val_images=6",
    "data.train_images=200",
    "data.min_support_area=0.03",
    "labeling.base_prototype_images=20",
    "novel.steps=6",
    "novel.replay_images=8",
]


def main() -> dict[int, Record]:
    """Run the study in a temporary folder and return the record of every trial by number."""
    with tempfile.TemporaryDirectory() as folder:
        search_keys(
            read_config(TINY),
            words=TINY,
            study=str(STUDY),
            changes=[],
            trials=None,
            concurrency=1,
            objective=None,
            out=f"{folder}/sweep",
            resume=False,
            reuse=None,
            cache=f"{folder}/cache",
            cache_bytes=2**30,
            fail_fast=True,
        )
        records = SweepDir(Path(folder, "sweep")).records()
    for number, record in sorted(records.items()):
        print(number, record["params"], record["state"], record["stages"])
    return records


if __name__ == "__main__":
    main()
