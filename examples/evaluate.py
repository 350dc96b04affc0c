"""Scores over a stream of images: background is 0, classes 1 and 2 are base, class 3 is novel, 255 is left out."""

import numpy as np

import syn4seg

rng = np.random.default_rng(0)


def images():
    """Pairs of a label map and its prediction, one at a time, as a data loader makes them; sizes may differ."""
    for height in (24, 32, 40):
        label = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (height, 32))
        yield label, np.where(rng.random(label.shape) < 0.8, label % 255, 0)


scores = syn4seg.evaluate(images(), base=[1, 2], novel=[3])

print(f"base {scores.base:.3f}, novel {scores.novel:.3f}, mean {scores.mean:.3f}, harmonic {scores.harmonic:.3f}")
print({index: round(iou, 3) for index, iou in scores.per_class.items()})
