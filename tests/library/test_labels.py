"""Labels in the library: the same bits as the arithmetic inside, NumPy or torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import syn4seg
from syn4seg.config.tree import Config
from syn4seg.labeling import filtering, refinement, relabeling
from syn4seg.labeling.components import find_components
from syn4seg.labeling.prototypes import normalize
from syn4seg.seeds import seeded


def case(seed: object):
    """A draft of three classes with unlabeled pixels, features on a grid, unit prototypes, and the segmenter's confidence."""
    rng = seeded("library", seed)
    label = np.kron(rng.choice(np.array([0, 0, 1, 4, 5, 255], np.uint8), (6, 7)), np.ones((4, 4), np.uint8))
    features = rng.normal(size=(8, 12, 14)).astype(np.float32)
    prototypes = {k: normalize(rng.normal(size=8)) for k in (0, 1, 4, 5)}
    return label, features, prototypes, rng.random(label.shape)


def tensors(value: np.ndarray) -> torch.Tensor:
    """The same in torch."""
    return torch.from_numpy(value)


# ---------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize("of", [np.asarray, tensors])
@pytest.mark.parametrize("seed", range(5))
def test_filtering_and_relabeling_are_the_arithmetic_inside_bit_by_bit_also_for_tensors(seed, of):
    label, features, prototypes, confidence = case(seed)
    vectors = {k: of(v) for k, v in prototypes.items()}
    how = {"target": 5, "novel": (4, 5), "lambda_keep": 0.0, "min_region": 4, "tau_base": 0.3, "tau_background": 0.1}
    inside = filtering.filter_regions(label, features, prototypes, confidence=confidence, **how)
    found = syn4seg.filter_regions(of(label), of(features), vectors, confidence=of(confidence), **how)
    assert type(found.kept) is type(of(label)) and repr(found.regions) == repr(inside.regions)
    np.testing.assert_array_equal(found.kept, inside.kept)
    assert len(np.unique(inside.kept)) > 2 and np.any(inside.kept != label)

    given = {"target": 5, "beta": 0.3, "tau": 0.2, "theta": 0.3, "lambda_keep": -1.0, "min_target": 0.0, "max_target": 0.1}
    then = relabeling.relabel(inside.kept, features, prototypes=prototypes, **given)
    done = syn4seg.relabel(found.kept, of(features), prototypes=vectors, **given)
    assert then.changed and (done.changed, done.reason, done.similarity_best) == (then.changed, then.reason, then.similarity_best)
    np.testing.assert_array_equal(done.label, then.label)
    assert list(done.local) == list(then.local)
    assert all(np.array_equal(done.local[k], then.local[k]) for k in then.local)
    assert all(type(x) is type(of(label)) for x in (done.label, *done.local.values()))


def test_defaults_are_those_of_the_configuration():
    from inspect import Parameter, signature

    config = Config()
    defaults = {}
    for function in (syn4seg.filter_regions, syn4seg.relabel):
        defaults |= {k: p.default for k, p in signature(function).parameters.items() if hasattr(config.labeling, k)}
    assert defaults.pop("features") is Parameter.empty  # the map itself; the key names the network that makes it
    assert defaults.pop("rivals") == ()  # the library cannot know which classes are novel
    assert len(defaults) == 9 and defaults == {k: getattr(config.labeling, k) for k in defaults}
    given = {k: p.default for k, p in signature(syn4seg.refine_boundary).parameters.items()}
    assert {k: given[k] for k in ("band_width", "margin", "min_agreement")} == {
        k: getattr(config.refinement, k) for k in ("band_width", "margin", "min_agreement")
    }
    assert signature(syn4seg.PromptBank).parameters["lambda_prompt"].default == config.prompts.lambda_prompt


@pytest.mark.parametrize("seed", range(5))
def test_refinement_is_the_arithmetic_inside_whether_sam_is_called_or_its_masks_are_given(seed):
    label = case(seed)[0]
    found = find_components(label)
    rng = seeded("library", "masks", seed)
    masks = np.stack([np.roll(found.map == r + 1, tuple(rng.integers(-1, 2, 2)), (0, 1)) for r in range(len(found.area))])
    ious = rng.random(len(masks))
    inside = refinement.refine_boundary(label, found, masks, ious, band_width=2, min_agreement=0.3)
    hints = []

    def sam(boxes):
        hints.append(boxes)
        return (tensors(masks), tensors(ious)) if isinstance(boxes, torch.Tensor) else (masks, ious)

    for of in (np.asarray, tensors):
        for given in ((of(masks), of(ious)), (sam,)):
            got = syn4seg.refine_boundary(of(label), *given, band_width=2, min_agreement=0.3)
            assert type(got.label) is type(got.agreement) is type(of(label))
            assert got.changed == inside.changed
            for name in ("label", "accepted", "agreement"):
                np.testing.assert_array_equal(getattr(got, name), getattr(inside, name))
    assert all(np.array_equal(boxes, refinement.hint_boxes(found, 1, label.shape)) for boxes in hints) and len(hints) == 2


def test_a_label_without_a_component_never_reaches_sam():
    done = syn4seg.refine_boundary(np.zeros((4, 4), int), lambda boxes: 1 / 0)
    assert done.changed == 0 and done.accepted.shape == (0,)


def test_what_is_given_is_not_changed_and_other_dtypes_and_strides_give_the_same():
    label, features, prototypes, _ = case("kinds")
    before = label.copy(), features.copy()
    wanted = syn4seg.filter_regions(label, features, prototypes, target=5, min_region=2).kept
    assert wanted is not label and not np.shares_memory(wanted, label)
    for other in (label.astype(np.int64), np.asfortranarray(label), label[::-1, ::-1].copy()[::-1, ::-1], label.tolist()):
        got = syn4seg.filter_regions(other, features.astype(np.float64), prototypes, target=5, min_region=2).kept
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, wanted)
    half = torch.from_numpy(features).to(torch.bfloat16).requires_grad_()
    assert syn4seg.filter_regions(label, half, prototypes, target=5, min_region=2).kept.shape == label.shape
    np.testing.assert_array_equal(label, before[0])
    np.testing.assert_array_equal(features, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_tensors_of_a_gpu_come_back_on_that_gpu():
    label, features, prototypes, _ = case("gpu")
    got = syn4seg.filter_regions(tensors(label).cuda(), tensors(features).cuda(), prototypes, target=5).kept
    assert got.device.type == "cuda"
    np.testing.assert_array_equal(got.cpu(), syn4seg.filter_regions(label, features, prototypes, target=5).kept)


LABEL, FEATURES, PROTOTYPES, _ = case("mistakes")
