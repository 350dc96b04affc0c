"""Samples made by hand, faults and rejected ones among them, and what a store that holds them must give back."""

from __future__ import annotations

import numpy as np

from syn4seg.schema import LABEL_COLUMNS
from syn4seg.store.images import pixel_digest
from syn4seg.store.samples import StoredImage, StoredSample


def image_of(number: int) -> StoredImage:
    pixels = np.random.default_rng(number).integers(0, 256, (6 + number % 3, 9, 3)).astype(np.uint8)
    return StoredImage(f"hdig-star-{number:05d}", "star", number // 4, pixels, {"retried": "float32"} if number % 5 == 0 else {})


def sample_of(number: int, reason: str = "") -> StoredSample:
    image = image_of(number)
    rng = np.random.default_rng(1000 + number)
    stages = () if reason.startswith("fault") else LABEL_COLUMNS[:-1] if reason else LABEL_COLUMNS
    labels = {stage: rng.integers(0, 5, image.pixels.shape[:2]).astype(np.uint8) for stage in stages}
    record = {
        "sample_id": image.sample_id,
        "class": "star",
        "class_id": 1,
        "prompt": "a star",
        "noise_seed": number,
        "batch": image.batch,
        "reason": reason,
        "audit": {"n": number},
        **({"image": pixel_digest(image.pixels)} if stages else {}),
        **{stage: pixel_digest(label) for stage, label in labels.items()},
    }
    return StoredSample(record, labels)


REASONS = {3: "target too small", 7: "fault: labeling: nan"}


def fill(samples, numbers, call: int = 3) -> None:
    """Writes samples as an actor would, a few per call."""
    numbers = list(numbers)
    for start in range(0, len(numbers), call):
        part = numbers[start : start + call]
        samples.write_images([image_of(n) for n in part if not REASONS.get(n, "").startswith("fault")])
        samples.write(0, [sample_of(n, REASONS.get(n, "")) for n in part])


def expect(samples, numbers, notes=("hdig-star-00007",)) -> None:
    """Exactly these samples are there, once each, with every pixel."""
    ids = [f"hdig-star-{n:05d}" for n in sorted(numbers)]
    assert samples.records(0)["sample_id"].to_pylist() == ids
    assert samples.complete(0, notes)["sample_id"].to_pylist() == ids
    assert samples.finished(0, [*ids, "other"], notes) == set(ids)
    made = samples.images()
    assert len(set(made["sample_id"].to_pylist())) == len(made)
    where = dict(zip(*made.select(["sample_id", "image_at"]).to_pydict().values(), strict=True))
    rows = [{"sample_id": s, "class": "star", "image_at": where.get(s, "")} for s in ids]
    for number, (sample, image) in zip(sorted(numbers), samples.read(0, rows), strict=True):
        wanted = sample_of(number, REASONS.get(number, ""))
        assert sample.record == wanted.record
        assert sample.labels.keys() == wanted.labels.keys()
        assert all(np.array_equal(sample.labels[s], wanted.labels[s]) for s in wanted.labels)
        if wanted.labels:
            np.testing.assert_array_equal(image, image_of(number).pixels)
        else:
            assert image is None
