"""The refiner actor: passes of SAM's encoder over the rows of a batch change no byte, and a bad row costs one row."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from actors.columns import FAULT, array_column, string_column
from actors.refiner import Refiner
from syn4seg.config.loading import load
from syn4seg.data import embedded
from syn4seg.labeling.components import find_components
from syn4seg.labeling.refinement import hint_boxes, refine_boundary
from syn4seg.models.sam import SamRefiner, load_sam

SIZES = ((64, 64), (60, 44), (64, 64), (40, 64), (90, 70), (64, 64), (64, 64))
EVERY = tuple(range(len(SIZES)))


def refiner(images_per_pass: int) -> Refiner:
    return Refiner(load(None, [f"refinement.images_per_pass={images_per_pass}"]).refinement, (0.0, 1.0), "cpu")


def rows(order: Sequence[int] = EVERY) -> dict[str, np.ndarray]:
    """Drawn scenes of several sizes; labels with a ragged edge, so that SAM has something to redraw."""
    images, labels = [], []
    for i in order:
        height, width = SIZES[i]
        image, label = embedded.draw(embedded.sample_scene(embedded.seeded("refiner", i)), 96)
        label = np.roll(label, 2, axis=1)
        images.append(np.ascontiguousarray(image[:height, :width]))
        labels.append(np.ascontiguousarray(label[:height, :width]))
    return {
        "image": array_column(images),
        "class_id": np.array([max(1, int(label.max())) for label in labels]),
        "relabeled": array_column(labels),
        "reason": string_column([""] * len(images)),
        "traceback": string_column([""] * len(images)),
    }


def encoded(actor: Refiner, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[int]]:
    """The answer and how many images each pass of the encoder took."""
    seen: list[int] = []
    encoder = actor.refine.sam.sam.image_encoder
    hook = encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    done = actor(batch)
    hook.remove()
    return done, seen


def test_one_image_per_pass_is_each_image_on_its_own():
    batch, sam = rows(), SamRefiner(load_sam("embedded-sam"))
    settings, done = load(None, []).refinement, refiner(1)(rows())
    changed = 0
    for i, (image, label) in enumerate(zip(batch["image"], batch["relabeled"], strict=True)):
        found = find_components(label)
        masks, ious = sam.masks([image], [hint_boxes(found, settings.margin, label.shape)])[0]
        want = refine_boundary(label, found, masks, ious, band_width=settings.band_width, min_agreement=settings.min_agreement)
        assert np.array_equal(done["label"][i], want.label)
        account = json.loads(done["refinement_audit"][i])["sam"]
        assert account["accepted"] + account["refused"] == len(found.box)
        changed += want.changed
    assert changed > 100 and set(done["reason"]) == {""}


@pytest.mark.parametrize("per_pass", [1, 2, 3])
def test_a_label_does_not_depend_on_the_rows_beside_it(per_pass: int):
    actor = refiner(per_pass)
    alone = [actor(rows([i])) for i in range(len(SIZES))]
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 0, 4, 1], [2, 5]):
        done = actor(rows(order))
        for at, i in enumerate(order):
            assert np.array_equal(done["label"][at], alone[i]["label"][0])
            assert done["refinement_audit"][at] == alone[i]["refinement_audit"][0]


def test_rows_without_components_or_with_a_reason_are_not_encoded():
    batch = rows()
    batch["relabeled"][1][:], batch["relabeled"][3][:] = 0, 255
    batch["reason"][4] = "target too small"
    done, seen = encoded(refiner(2), batch)
    assert seen == [2, 2]  # rows 0, 2, 5, 6
    for i in (1, 3, 4):
        assert np.array_equal(done["label"][i], batch["relabeled"][i])
    assert list(done["reason"]) == ["", "", "", "", "target too small", "", ""]
    assert done["refinement_audit"][4] == "{}" and json.loads(done["refinement_audit"][1])["sam"]["agreement"] == []


@pytest.mark.parametrize("per_pass", [1, 3])
def test_a_row_that_fails_is_quarantined_alone(per_pass: int):
    actor, want = refiner(per_pass), refiner(per_pass)(rows())
    batch = rows()
    batch["image"][1] = batch["image"][1][..., 0]  # no colours
    batch["relabeled"][4] = batch["relabeled"][4][:30]  # not the image's size
    done, seen = encoded(actor, batch)
    for i in EVERY:
        if i in (1, 4):
            assert done["reason"][i].startswith(FAULT + "refinement: ") and done["refinement_audit"][i] == "{}"
            assert np.array_equal(done["label"][i], batch["relabeled"][i])
        else:
            assert done["reason"][i] == "" and np.array_equal(done["label"][i], want["label"][i])
    assert set(seen) == {per_pass}


def test_a_target_that_the_new_boundary_leaves_too_small_or_too_large_is_rejected():
    want = refiner(1)(rows())
    targets = rows()["class_id"]
    shares = [float((label == target).mean()) for label, target in zip(want["label"], targets, strict=True)]
    before = [float((label == target).mean()) for label, target in zip(rows()["relabeled"], targets, strict=True)]
    shrunk = min(range(len(shares)), key=lambda i: shares[i] - before[i])
    assert shares[shrunk] < before[shrunk]
    limit = (shares[shrunk] + before[shrunk]) / 2  # enough before the boundaries moved
    actor = Refiner(load(None, []).refinement, (limit, 1.0), "cpu")
    done = actor(rows())
    assert done["reason"][shrunk] == "target_too_small"
    assert [reason == "" for reason in done["reason"]] == [share >= limit for share in shares]
    assert all(np.array_equal(a, b) for a, b in zip(done["label"], want["label"], strict=True))


def test_nothing_in_nothing_out_for_a_batch_of_rejected_rows():
    batch = rows()
    batch["reason"][:] = "no target"
    done, seen = encoded(refiner(3), batch)
    assert seen == [] and all(a is b or np.array_equal(a, b) for a, b in zip(done["label"], batch["relabeled"], strict=True))
