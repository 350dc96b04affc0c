"""APF on one image: a region of the target class that looks like the support set is kept, one that does not is freed."""

import numpy as np

import syn4seg

draft = np.zeros((32, 32), np.uint8)  # what a segmenter said: two regions of class 3
draft[4:12, 4:12] = draft[20:28, 20:28] = 3
features = np.zeros((2, 8, 8), np.float32)  # its features, one cell per 4 x 4 pixels
features[0, 1:3, 1:3] = features[1, 5:7, 5:7] = 1

filtered = syn4seg.filter_regions(draft, features, {3: np.array([1, 0])}, target=3, lambda_keep=0.5)

for region in filtered.regions:
    print(f"box {region.box}: similarity {region.similarity:.2f}, {region.why or 'kept'}")
print(f"{np.count_nonzero(filtered.kept == 255)} pixels are free")
