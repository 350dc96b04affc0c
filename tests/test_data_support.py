"""Support draws: named by seed and draw, never a query, and honest about what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.data.datasets import EmbeddedDataset, fold_of
from syn4seg.data.support import draw_support, query_ids, support_label

DATASET = EmbeddedDataset(120, 120)
FOLD = fold_of(DATASET, 1)


@pytest.mark.parametrize("source", ["train", "val"])
@pytest.mark.parametrize("only_one_novel", [True, False])
def test_supports_fulfil_every_condition_and_are_never_queries(source, only_one_novel):
    support = draw_support(DATASET, FOLD, 3, 0, seed=7, min_area=0.06, source=source, only_one_novel=only_one_novel)
    assert tuple(support) == FOLD.novel
    ids = [s for k in support for s in support[k]]
    assert len(ids) == len(set(ids)) == 12
    for k, chosen in support.items():
        assert chosen == sorted(chosen)
        for sample_id in chosen:
            mask = DATASET.mask(sample_id)
            assert (mask == k).mean() >= 0.06
            if only_one_novel:
                assert not np.isin(mask, [n for n in FOLD.novel if n != k]).any()
    queries = query_ids(DATASET, support)
    assert not set(queries) & set(ids)
    assert set(queries) | set(ids) >= set(DATASET.val)


def test_a_draw_depends_on_its_names_alone():
    a = draw_support(DATASET, FOLD, 1, 2, seed=7)
    draw_support(DATASET, FOLD, 1, 0, seed=7)
    assert draw_support(EmbeddedDataset(5, 120), FOLD, 1, 2, seed=7) == a
    others = [draw_support(DATASET, FOLD, 1, d, seed=s) for d, s in ((3, 7), (4, 7), (2, 8), (2, 9))]
    assert any(o != a for o in others)


def test_too_few_images_name_class_found_needed_and_remedy():
    with pytest.raises(
        ValueError, match=r"class '\w+' has \d+ support images in the val list, 50 are needed.*lower shots"
    ):
        draw_support(DATASET, FOLD, 50, 0, seed=1)
    with pytest.raises(ValueError, match="shots = 0"):
        draw_support(DATASET, FOLD, 0, 0, seed=1)


def test_base_objects_of_a_support_image_are_background_or_kept():
    base, target, other = FOLD.base[2], FOLD.novel[1], FOLD.novel[0]
    mask = np.array([[0, base, target, other, 255]], np.uint8)
    index = FOLD.to_index
    assert support_label(mask, FOLD, target).tolist() == [[0, 0, index[target], index[other], 255]]
    assert support_label(mask, FOLD, target, base_in_support="kept")[0, 1] == index[base]
    assert support_label(mask, FOLD, target, other_novel="background")[0, 3] == 0
