"""How each format is loaded: what README.md of an export shows. The snippets run in the folder of the export."""

from __future__ import annotations

_VOC = """
```python
import numpy as np
from PIL import Image

name = open("ImageSets/Segmentation/train.txt").readline().strip()
image = np.array(Image.open(f"JPEGImages/{name}.png"))
label = np.array(Image.open(f"SegmentationClass/{name}.png"))  # label values, 255 unlabeled
```

datumaro and CVAT take the folder as `voc` (CVAT: as a zip of it); `labelmap.txt` has the names.
"""

_COCO = """
```python
from pycocotools.coco import COCO

coco = COCO("annotations/instances_train.json")
image_id = coco.getImgIds()[0]
name = coco.imgs[image_id]["file_name"].removesuffix(".png")
masks = {a["id"]: coco.annToMask(a) for a in coco.imgToAnns[image_id]}
```

`annotations/panoptic_train.json` and the PNGs beside it have every pixel. datumaro takes the folder as `coco_panoptic` or
`coco_instances` (`coco` alone takes one of the two). FiftyOne reads the instances:

    fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.COCODetectionDataset, data_path="images",
        labels_path="annotations/instances_train.json", label_types="segmentations")
"""

_HF = """
```python
import os

import datasets

rows = datasets.load_dataset(os.getcwd(), split="train")
name, image, label = rows[0]["sample_id"], rows[0]["image"], rows[0]["label"]
classes = rows.features["class_id"].names  # by label value
```
"""

_WEBDATASET = """
```python
import io
import json

import numpy as np
import webdataset
from PIL import Image

sample = next(iter(webdataset.WebDataset("train-00000.tar", shardshuffle=False)))
image, label = (np.array(Image.open(io.BytesIO(sample[key]))) for key in ("image.png", "label.png"))
name = json.loads(sample["json"])["sample_id"]
```
"""

_MMSEG = """
```python
import runpy

dataset = runpy.run_path("dataset.py")["DATASETS"]["train"] | {"data_root": "."}
```

In a config of mmsegmentation 1.x, `Config.fromfile("dataset.py")` gives the same. FiftyOne reads the folders:

    fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.ImageSegmentationDirectory, data_path="img_dir/train",
        labels_path="ann_dir/train")
"""

_YOLO = """
```python
from pathlib import Path

import numpy as np

path = min(Path("labels/train").glob("*.txt"))
polygons = []
for line in path.read_text().splitlines():
    number, *points = line.split()
    polygons.append((int(number), np.array(points, float).reshape(-1, 2)))  # class, x and y in 0..1
```

Ultralytics trains on it with `yolo segment train data=data.yaml`. Class numbers are label values minus one.
"""

_PARQUET = """
```python
import io

import numpy as np
import pyarrow.parquet
from PIL import Image

row = pyarrow.parquet.read_table("data/train-00000.parquet").slice(0, 1).to_pylist()[0]
image, label = (np.array(Image.open(io.BytesIO(row[key]))) for key in ("image", "label"))
```
"""

LOADING = {"voc": _VOC, "coco": _COCO, "hf": _HF, "webdataset": _WEBDATASET, "mmseg": _MMSEG, "yolo": _YOLO, "parquet": _PARQUET}
"""Name of a format -> Markdown; a format of an extension may lack one."""
