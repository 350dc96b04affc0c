"""Support draws: named by seed and draw, never a query, honest about what is missing; POP's are the published ones, id by id."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from syn4seg.data.datasets import EmbeddedDataset, Fold, fold_of
from syn4seg.data.pascal import CLASSES, FOLDS
from syn4seg.data.support import (
    POP_SEEDS,
    base_ids,
    draw_support,
    is_reserved,
    pixel_counts,
    pop_draw,
    query_ids,
    support_label,
    support_pools,
)
from syn4seg.errors import UserError

DATASET = EmbeddedDataset(240, 240)
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
    assert draw_support(EmbeddedDataset(5, 240), FOLD, 1, 2, seed=7) == a
    others = [draw_support(DATASET, FOLD, 1, d, seed=s) for d, s in ((3, 7), (4, 7), (2, 8), (2, 9))]
    assert any(o != a for o in others)


class _Listed:
    """A data set of masks that hold the classes of a table, a row of pixels each."""

    train = ()

    def __init__(self, shown):
        self.val, self.shown = sorted(shown), shown

    def areas(self, sample_id):
        return dict.fromkeys(self.shown[sample_id], 0.1)


@pytest.mark.parametrize("seed", range(40))
def test_a_choice_is_found_wherever_one_exists(seed):
    rng = np.random.default_rng(seed)
    fold = Fold(("x", "y", "z", "base"), (4,), (1, 2, 3))
    shown = {f"{i}": set((np.flatnonzero(rng.random(3) < 0.5) + 1).tolist()) for i in range(int(rng.integers(2, 7)))}
    shots = int(rng.integers(1, 3))
    exists = any(
        all(k in shown[image] for k, image in zip([1, 2, 3] * shots, some, strict=True))
        for some in itertools.permutations(shown, 3 * shots)
    )
    pools = {k: {s for s in shown if k in shown[s]} for k in fold.novel}
    for draw in range(5):
        try:
            support = draw_support(_Listed(shown), fold, shots, draw, seed=1, min_area=0, only_one_novel=False)
        except UserError:
            assert not exists
            continue
        assert all(len(ids) == shots and set(ids) <= pools[k] for k, ids in support.items())
        assert sum(len(set(ids)) for ids in support.values()) == len({s for ids in support.values() for s in ids})
        if not exists:  # a small pool is repeated, whole
            assert any(len(pools[k]) < shots and set(support[k]) == pools[k] for k in fold.novel)


def test_the_case_of_three_images_never_fails():
    fold, shown = Fold(("x", "y", "z", "base"), (4,), (1, 2, 3)), {"a": {1, 2}, "b": {2, 3}, "c": {2, 3}}
    draws = [draw_support(_Listed(shown), fold, 1, d, seed=0, min_area=0, only_one_novel=False) for d in range(20)]
    assert all(d[1] == ["a"] and sorted(d[2] + d[3]) == ["b", "c"] for d in draws) and len({str(d) for d in draws}) == 2


def test_a_pool_smaller_than_the_shots_is_repeated_in_turn():
    fold, shown = Fold(("x", "y"), (2,), (1,)), {"a": {1}, "b": {1}, "c": set()}
    assert draw_support(_Listed(shown), fold, 5, 0, seed=0, min_area=0) == {1: ["a", "b", "a", "b", "a"]}


def test_too_few_images_name_class_found_needed_and_remedy():
    with pytest.raises(UserError, match=r"class '\w+' has 0 support images in the val list, 5 are needed.*lower shots"):
        draw_support(DATASET, FOLD, 5, 0, seed=1, min_area=0.99)
    with pytest.raises(UserError, match="has 1 support images, which other classes need too"):
        draw_support(_Listed({"a": {1, 2}}), Fold(("x", "y", "b"), (3,), (1, 2)), 1, 0, seed=1, min_area=0, only_one_novel=False)
    with pytest.raises(UserError, match="shots = 0"):
        draw_support(DATASET, FOLD, 0, 0, seed=1)


def test_base_objects_of_a_support_image_are_background_or_kept():
    base, target, other = FOLD.base[2], FOLD.novel[1], FOLD.novel[0]
    mask = np.array([[0, base, target, other, 255]], np.uint8)
    index = FOLD.to_index
    assert support_label(mask, FOLD, target).tolist() == [[0, 0, index[target], index[other], 255]]
    assert support_label(mask, FOLD, target, base_in_support="kept")[0, 1] == index[base]
    assert support_label(mask, FOLD, target, other_novel="background")[0, 3] == 0


# ------------------------------------------------------------------------------------------------------- pools
@pytest.mark.parametrize("source", ["train", "val"])
@pytest.mark.parametrize("only_one_novel", [True, False])
@pytest.mark.parametrize(("min_pixels", "min_area"), [(0, 0.0), (200, 0.0), (0, 0.07), (150, 0.06)])
def test_pools_hold_what_the_masks_show_in_the_order_of_the_list(source, only_one_novel, min_pixels, min_area):
    pools = support_pools(DATASET, FOLD, source, min_pixels, only_one_novel, min_area=min_area)
    expected = {k: [] for k in FOLD.novel}
    for sample_id in getattr(DATASET, source):
        mask = DATASET.mask(sample_id)
        for k in FOLD.novel:
            others = sum((mask == n).any() for n in FOLD.novel if n != k)
            pixels = int((mask == k).sum())
            if pixels and pixels >= min_pixels and pixels / mask.size >= min_area and not (only_one_novel and others):
                expected[k].append(sample_id)
    assert pools == expected and any(pools.values())


def test_pixel_counts_are_those_of_the_mask_with_and_without_an_index():
    for sample_id in DATASET.train[:20]:
        mask = DATASET.mask(sample_id)
        counts = {int(k): int((mask == k).sum()) for k in np.unique(mask) if k not in (0, 255)}
        assert pixel_counts(DATASET, sample_id) == counts
    assert pixel_counts(Listed({"a": {3: 7}}, ["a"]), "a") == {3: 7}


def test_a_draw_obeys_pixels_and_the_reserve_and_names_the_pixels_it_missed():
    support = draw_support(DATASET, FOLD, 1, 0, seed=3, min_area=0.0, min_pixels=150, source="train", reserve=0.6)
    for k, (sample_id,) in support.items():
        assert (DATASET.mask(sample_id) == k).sum() >= 150 and is_reserved(sample_id, 0.6)
    with pytest.raises(UserError, match="at least 4000 pixels"):
        draw_support(DATASET, FOLD, 1, 0, seed=3, min_pixels=4000)


def test_the_reserve_is_a_share_of_ids_that_grows_and_depends_on_nothing_else():
    ids = [f"2008_{i:06d}" for i in range(4000)]
    small, large = ({s for s in ids if is_reserved(s, share)} for share in (0.1, 0.3))
    assert small < large and abs(len(small) - 400) < 60 and abs(len(large) - 1200) < 90
    assert not any(is_reserved(s, 0.0) for s in ids) and all(is_reserved(s, 1.0) for s in ids)
    digest = hashlib.sha256("\n".join(sorted(small)).encode()).hexdigest()
    assert digest == "2867dab00f9b7587e50dd1ab52de8ef93566139e233892dd77fcb08ab13c1f08"


@pytest.mark.parametrize("source", ["train", "val"])
def test_pools_of_a_reserve_hold_reserved_images_alone(source):
    whole, part = (support_pools(DATASET, FOLD, source, reserve=r) for r in (0.0, 0.5))
    assert part == {k: [s for s in ids if is_reserved(s, 0.5)] for k, ids in whole.items()} != whole


def test_base_images_follow_their_rule():
    for number in range(4):
        fold = fold_of(DATASET, number)
        shown = {s: set(np.unique(DATASET.mask(s)).tolist()) - {0, 255} for s in DATASET.train}
        with_base = [s for s in DATASET.train if shown[s] & set(fold.base)]
        assert base_ids(DATASET, fold, "all") == DATASET.train
        assert base_ids(DATASET, fold, "with_base") == with_base != DATASET.train
        assert base_ids(DATASET, fold, "without_novel") == [s for s in with_base if not shown[s] & set(fold.novel)]


# ------------------------------------------------------------------------------------------------- POP's draws
def _plain_pop(pools, shots, seed):
    """POP's rule with Python's own global stream."""
    random.seed(seed)
    seen, drawn = [], {}
    for k in sorted(pools):
        drawn[k] = []
        while len(drawn[k]) < shots:
            pick = pools[k][random.randint(0, len(pools[k]) - 1)]
            if pick not in seen:
                seen.append(pick)
                drawn[k].append(pick)
    return drawn


@pytest.mark.parametrize("seed", POP_SEEDS)
def test_pop_draws_follow_the_plain_rule_and_leave_the_global_stream_alone(seed):
    pools = {k: [f"{(i * k) % 60}" for i in range(20 + k)] for k in (7, 3, 5)}  # images in several pools
    random.seed(5)
    state = random.getstate()
    draws = [pop_draw(pools, shots, seed) for shots in (1, 4, 9)]
    assert random.getstate() == state
    assert draws == [_plain_pop(pools, shots, seed) for shots in (1, 4, 9)]
    ids = [s for chosen in draws[2].values() for s in chosen]
    assert len(ids) == len(set(ids)) == 27 and list(draws[2]) == [3, 5, 7]


def test_a_pop_draw_without_enough_images_is_refused_not_endless():
    with pytest.raises(UserError, match="class id 4 has 1 support images left, 2 are needed"):
        pop_draw({3: ["a", "b"], 4: ["b", "a", "c", "c"]}, 2, 123)
    with pytest.raises(UserError, match="shots = 0"):
        pop_draw({3: ["a"]}, 0, 123)


FOLD_0_POOLS = {1: 386, 2: 254, 3: 320, 4: 231, 5: 155}  # sizes of the published pools; no image is in two of them
POSITIONS = "43fee87c08e180f1e7b2154da1e31910faaa9b339987b74d2bbc280c207c0ca6"
DRAWS = "e84dae721c9a305cbb1e63a0ce317d90c0daecd62f7d9a3facc4ccca7e8f0e46"
POOLS = "1774f81ebbe08e10ed8ce43dce1ec553f98421241d73a5d3833fc1afa97a019d"


def test_the_places_in_the_pools_of_fold_0_s_published_draws_come_from_their_sizes_alone():
    pools = {k: [f"{k} {i}" for i in range(n)] for k, n in FOLD_0_POOLS.items()}
    lines = []
    for shots, seeds in ((1, POP_SEEDS), (5, POP_SEEDS), (10, POP_SEEDS), (50, (123,)), (100, (123,))):
        for seed in seeds:
            draw = pop_draw(pools, shots, seed)
            lines.append(f"{shots} {seed} {[int(s.split()[1]) for chosen in draw.values() for s in chosen]}")
    assert lines[0] == "1 123 [26, 68, 44, 196, 104]"
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == POSITIONS


# ---------------------------------------------------------------------------------------- the published lists
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "lists"
WITH_REFERENCE = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published pools and draws are not at shared/reference/lists"
)
LARGE, SMALL, SIZE = 16384, 16383, 200_000  # pixels of a stand-in for an object above or below the field's threshold


class Listed:
    """A data set that is nothing but pixel counts; all images have `SIZE` pixels."""

    classes, folds = CLASSES, FOLDS

    def __init__(self, counts: dict[str, dict[int, int]], train: list[str]):
        self._counts, self.train, self.val = counts, train, []

    def pixels(self, sample_id):
        return self._counts[sample_id]

    def areas(self, sample_id):
        return {k: n / SIZE for k, n in self._counts[sample_id].items()}


def _ids(name: str) -> list[str]:
    return (REFERENCE / name).read_text().split()


@pytest.fixture(scope="module")
def trainaug() -> Listed:
    """trainaug with the classes that EKT's lists reveal.

    A large object is in a pool. An image is in base training of every fold, or of every fold but that of its classes: in
    either case small objects stand in for classes that no pool shows.
    """
    train = _ids("lsa1997_POP/voc/trainaug.txt")
    counts: dict[str, dict[int, int]] = {s: {} for s in train}
    for number, fold in enumerate(FOLDS):
        for k in fold:
            for sample_id in _ids(f"HHHHedy_GFSS-EKT/voc/fold{number}/train_novel_class{k}.txt"):
                counts[sample_id][k] = LARGE
    base = [set(_ids(f"HHHHedy_GFSS-EKT/voc/fold{f}/train_fold{f}.txt")) for f in range(4)]
    for sample_id in train:
        absent = [f for f in range(4) if sample_id not in base[f]]
        shown = {(k - 1) // 5 for k in counts[sample_id]}
        assert len(absent) <= 1 and shown <= set(absent or range(4))  # the rule of "with_base", seen in the lists
        if absent and not shown:
            counts[sample_id][FOLDS[absent[0]][0]] = SMALL
        if not absent and len(shown) < 2:
            counts[sample_id] |= {FOLDS[f][0]: SMALL for f in sorted({0, 1, 2} - shown)[:2]}
    return Listed(counts, train)


@WITH_REFERENCE
def test_pools_and_base_images_are_the_published_ones(trainaug):
    everything = []
    for number in range(4):
        folder, fold = f"HHHHedy_GFSS-EKT/voc/fold{number}", fold_of(trainaug, number)
        pools = support_pools(trainaug, fold, "train", 16384)
        assert pools == {k: _ids(f"{folder}/train_novel_class{k}.txt") for k in fold.novel}
        base = base_ids(trainaug, fold, "with_base")
        everything += [s for ids in (base, *pools.values()) for s in ids]
        assert base == _ids(f"{folder}/train_fold{number}.txt")
        assert set(base_ids(trainaug, fold, "without_novel")) < set(base)
        rest = Fold(fold.names, (), fold.base)
        large = support_pools(trainaug, rest, "train", 16384)
        assert large == {k: _ids(f"{folder}/train_base_class{k}.txt") for k in fold.base}
    assert hashlib.sha256("\n".join(everything).encode()).hexdigest() == POOLS


@WITH_REFERENCE
def test_draws_are_the_published_ones_for_every_fold_shot_and_seed(trainaug):
    everything = []
    for number in range(4):
        pools = support_pools(trainaug, fold_of(trainaug, number), "train", 16384)
        files = [(s, n, f"derived_pop_seeds/voc/fold{number}") for s in (1, 5, 10) for n in POP_SEEDS]
        files += [(s, 123, f"HHHHedy_GFSS-EKT/voc/fold{number}") for s in (1, 5, 10, 50, 100)]
        for shots, seed, folder in files:
            draw = [s for chosen in pop_draw(pools, shots, seed).values() for s in chosen]
            assert draw == _ids(f"{folder}/fold{number}_{shots}shot_seed{seed}.txt")
            everything += draw
    assert hashlib.sha256("\n".join(everything).encode()).hexdigest() == DRAWS


@WITH_REFERENCE
def test_fold_0_s_pools_have_the_sizes_and_the_draws_the_places_that_are_tested_without_the_lists():
    pools = {k: _ids(f"HHHHedy_GFSS-EKT/voc/fold0/train_novel_class{k}.txt") for k in FOLD_0_POOLS}
    assert {k: len(ids) for k, ids in pools.items()} == FOLD_0_POOLS
    assert len({s for ids in pools.values() for s in ids}) == sum(FOLD_0_POOLS.values())
    draw = _ids("HHHHedy_GFSS-EKT/voc/fold0/fold0_1shot_seed123.txt")
    assert [pools[k].index(s) for k, s in zip(pools, draw, strict=True)] == [26, 68, 44, 196, 104]
