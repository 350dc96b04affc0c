"""APE and SABR on whole images of any shape: what a label may depend on, and what the account of it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from syn4seg.config.loading import load
from syn4seg.data.datasets import EmbeddedDataset
from syn4seg.labeling.components import find_components
from syn4seg.labeling.relabeling import cosines
from syn4seg.schema import UNLABELED
from syn4seg.stages.labels import BoundaryRefiner, Enhancer, dense_features, pixel_share

TARGET = 13


@pytest.fixture(scope="module")
def enhancer(prepared, small):
    return Enhancer.from_run(prepared[0], 0, load(None, small), "cpu")


@pytest.fixture(scope="module")
def refiner(small):
    return BoundaryRefiner.from_settings(load(None, small).refinement, "cpu")


@pytest.fixture(scope="module")
def image():
    """An image of the embedded world with an object of the target class."""
    dataset = EmbeddedDataset(300, 1)
    number = 1 + EmbeddedDataset.classes.index("ball")
    return next(dataset.image(s) for s in dataset.train if dataset.areas(s).get(number, 0) > 0.1)


@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (33, 64), (150, 90), (20, 16)])
def test_all_labels_have_the_shape_of_the_image_and_class_indices(enhancer, image, shape):
    cut = np.ascontiguousarray(np.resize(image, (*shape, 3)))
    labels = enhancer(cut, TARGET)
    for label in (labels.draft, labels.kept, labels.relabeled):
        assert label.shape == shape and label.dtype == np.uint8 and set(np.unique(label)) <= {*range(17), UNLABELED}
    assert UNLABELED not in labels.draft


def test_filtering_frees_pixels_and_relabeling_fills_free_ones_only(enhancer, image):
    labels = enhancer(image, TARGET)
    kept = labels.kept != UNLABELED
    assert np.array_equal(labels.kept[kept], labels.draft[kept])
    assert np.array_equal(labels.relabeled[kept], labels.kept[kept])
    pixels = labels.audit["pixels"]
    assert pixels["free"] == pixel_share(~kept) and pixels["target"] == pixel_share(labels.relabeled == TARGET) > 0
    assert labels.audit["lambda_keep"] == 0.3 and labels.reason == ""


def test_the_draft_covers_whole_cells_of_the_image_and_nothing_beside_it(enhancer, image):
    features = dense_features(enhancer.segmenter, enhancer.canvas, image[:40, :])
    draft = enhancer.draft(features, (40, 64, 3), TARGET)
    step = 64 // features.shape[-1]
    rows, columns = -(-40 // step), 64 // step
    assert draft.features.shape == (128, rows, columns)
    assert draft.label.shape == draft.confidence.shape == (rows * step, columns * step)
    assert draft.shape == (40, 64)
    assert enhancer.to_image_shape(draft.label, (40, 64, 3)).shape == (40, 64)


def test_a_draft_uses_what_is_known_of_the_image_and_says_where_that_decided(enhancer, image, small):
    features = dense_features(enhancer.segmenter, enhancer.canvas, image)
    novel = sorted(enhancer.thresholds)
    other = next(k for k in novel if k != TARGET)

    def draft(target: int, *keys: str):
        labeling = load(None, [*small, *(f"labeling.{key}" for key in keys)]).labeling
        return replace(enhancer, settings=labeling).draft(features, image.shape, target)

    plain = draft(TARGET)
    assert (plain.label == TARGET).any() and plain.decided == {}
    masked = draft(other, "mask_others=true")
    assert not np.isin(masked.label, [k for k in novel if k != other]).any()
    changed = masked.label != plain.label
    assert np.isin(plain.label[changed], novel).all() and masked.decided == {"calibrated": pixel_share(changed)}
    more = draft(TARGET, "target_logit=2")
    assert ((more.label == TARGET) >= (plain.label == TARGET)).all() and (more.label == TARGET).sum() > (
        plain.label == TARGET
    ).sum()
    assert more.decided == {"calibrated": pixel_share(more.label != plain.label)}
    never, seeded = draft(TARGET, "target_logit=-99"), draft(TARGET, "target_logit=-99", "seed_share=0.1")
    assert not (never.label == TARGET).any()
    similarity = cosines(never.features, enhancer.prototypes[TARGET][None])[0]
    side = len(never.label) // len(similarity)
    chosen = similarity >= np.sort(similarity.ravel())[-round(0.1 * similarity.size)]
    assert np.array_equal(seeded.label == TARGET, np.kron(chosen, np.ones((side, side), bool)))
    assert seeded.decided["seeded"] == pixel_share(seeded.label == TARGET) > 0 == draft(TARGET, "seed_share=0.1").decided["seeded"]
    audit = replace(enhancer, settings=load(None, [*small, "labeling.seed_share=0.1"]).labeling)(image, TARGET).audit
    assert audit["pixels"]["seeded"] == 0.0 and "calibrated" not in audit["pixels"]


def test_an_image_whose_features_are_not_finite_is_refused(enhancer, image):
    features = dense_features(enhancer.segmenter, enhancer.canvas, image)
    features[3, 2, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="features of this image are not finite"):
        enhancer.draft(features, image.shape, TARGET)


def test_a_refined_label_does_not_depend_on_its_batch_mates(enhancer, refiner, image):
    labels = [enhancer(image, TARGET).relabeled, np.zeros((64, 64), np.uint8), enhancer(image[::-1].copy(), TARGET).relabeled]
    images = [image, image, image[::-1].copy()]
    together = refiner(images, labels)
    for i in range(3):
        (label, audit), (alone, its) = together[i], refiner([images[i]], [labels[i]])[0]
        assert np.array_equal(label, alone) and audit == its
    assert np.array_equal(together[1][0], labels[1]) and together[1][1]["sam"]["accepted"] == 0


def test_the_account_of_a_refinement_counts_its_masks_and_changed_pixels(enhancer, refiner, image):
    before = enhancer(image, TARGET).relabeled
    label, audit = refiner([image], [before])[0]
    regions = find_components(before)
    assert audit["sam"]["accepted"] + audit["sam"]["refused"] == len(audit["sam"]["agreement"]) == len(refiner.hints(regions))
    assert audit["sam"]["changed"] == np.count_nonzero(label != before) / before.size


def test_an_answer_of_sam_that_is_not_finite_is_refused(refiner):
    label = np.zeros((16, 16), np.uint8)
    label[4:9, 4:9] = TARGET
    regions = find_components(label)
    masks = np.zeros((len(refiner.hints(regions)), 16, 16), bool)
    with pytest.raises(FloatingPointError, match="SAM's answer to this image is not finite"):
        refiner.refine_label(label, regions, masks, np.full(len(masks), np.inf, np.float32))


def test_the_device_auto_is_the_cpu_where_there_is_no_gpu(prepared, small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load(None, small)
    assert Enhancer.from_run(prepared[0], 0, config, "auto").segmenter.weight.device.type == "cpu"
    sam: Any = BoundaryRefiner.from_settings(config.refinement, "auto").sam
    assert next(sam.sam.parameters()).device.type == "cpu"
