"""A sample of a run side by side. In a notebook the last line of a cell shows it; here it is saved.

python examples/show.py RUN SAMPLE_ID    for a sample of a run; without arguments, one that is made up
"""

import sys

import numpy as np

import syn4seg
from syn4seg.report.reading import GallerySample

if len(sys.argv) > 2:
    picture = syn4seg.show(sys.argv[1], sys.argv[2], draw=0)
else:
    label = np.zeros((32, 32), np.uint8)
    label[8:24, 8:24] = 3
    free = np.where(np.arange(32) < 12, label, 255).astype(np.uint8)
    record = {"sample_id": "hdig-dog-00000", "class": "dog", "prompt": "a dog on <a beach>", "reason": ""}
    image = np.stack([label * 60] * 3, 2)
    labels = {"draft": label, "kept": free, "relabeled": label, "label": label}
    picture = syn4seg.show(GallerySample(record, image, labels), names=("background", "cat", "bird", "dog"))

picture.save("sample.png")
picture.save("sample.html")
print(f"sample.png, sample.html: {', '.join(picture.legend)}")
