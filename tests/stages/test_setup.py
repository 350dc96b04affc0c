"""What a configuration names: support images, queries, input files."""

from __future__ import annotations

from pathlib import Path

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.options import read_config
from syn4seg.stages.checks import check
from syn4seg.stages.setup import (
    base_images,
    digest_inputs,
    draws_of,
    imported_files,
    is_prepared,
    load_dataset,
    queries_of,
    support_of,
    support_pictures,
    training_device,
)


def test_support_is_never_a_query_and_draws_are_named(small):
    config = load(None, small)
    dataset, fold = check(config)
    first, again, other = (support_of(config, dataset, fold, d) for d in (0, 0, 1))
    assert first == again != other
    for ids in (*first.values(), *other.values()):
        assert not set(ids) & set(dataset.val)


def test_a_draw_without_a_published_seed_is_refused_with_the_keys_that_could_help(small):
    config = load(None, [*small, "data.support_draw=pop"])
    dataset, fold = check(config)
    with pytest.raises(UserError, match=r"data\.shots=1: draw 7 has no published seed; POP's draws are 0 to 6 \(keys data\.min_"):
        support_of(config, dataset, fold, 7)


def test_queries_are_a_sample_that_the_seed_and_the_draw_name_in_the_order_of_the_list(small):
    config = load(None, [*small, "data.val_images=40", "evaluation.queries=10"])
    dataset, _ = load_dataset(config)
    first, other = (queries_of(config, dataset, {}, draw) for draw in (0, 1))
    assert len(first) == len(set(first)) == 10 and first != other and first == queries_of(config, dataset, {}, 0)
    assert first == [s for s in dataset.val if s in first]
    assert not set(queries_of(config, dataset, {14: first}, 0)) & set(first), "support images are no queries"
    assert queries_of(load(None, [*small, "evaluation.queries=99"]), dataset, {}, 0) == dataset.val


def test_draws_are_numbered_from_the_first(small):
    assert list(draws_of(load(None, [*small, "data.first_draw=3", "data.draws=2"]))) == [3, 4]


def test_images_that_are_reserved_for_support_are_no_base_images(small):
    dataset, fold = load_dataset(load(None, small))
    every = base_images(load(None, small), dataset, fold)
    some = base_images(load(None, [*small, "data.support_reserve=0.5"]), dataset, fold)
    assert every == dataset.train and set(some) < set(every)
    with pytest.raises(UserError, match=r"base\.images=all: no image of the train list is left"):
        base_images(load(None, [*small, "data.support_reserve=1"]), dataset, fold)


def test_a_changed_input_file_changes_its_digest_and_no_other(small, tmp_path):
    root = tmp_path / "images"
    (root / "ball").mkdir(parents=True)
    (root / "ball" / "a.png").write_bytes(b"a")
    weights = tmp_path / "sam.pth"
    weights.write_bytes(b"sam")
    config = load(None, [*small, "synthesis.source=folder", f"synthesis.root={root}", f"refinement.model={weights}"])
    before = digest_inputs(config)
    assert set(before) == {"synthesis.root", "refinement.model"} and digest_inputs(config) == before
    (root / "ball" / "b.png").write_bytes(b"b")
    after = digest_inputs(config)
    assert after["synthesis.root"] != before["synthesis.root"] and after["refinement.model"] == before["refinement.model"]


def test_imported_files_are_images_in_order_and_not_more_than_asked_for(small, tmp_path):
    config = load(None, [*small, "synthesis.source=folder", f"synthesis.root={tmp_path}", "synthesis.images_per_class=2"])
    with pytest.raises(UserError, match="no folder for class 'ball'"):
        imported_files(config, "ball")
    (tmp_path / "ball").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        imported_files(config, "ball")
    names = [f"{i}{suffix}" for i, suffix in enumerate((".PNG", ".jpg", ".JPEG", ".webp", ".bmp", ".TIF"))]
    for name in (*names, "notes.txt", "._0.PNG", "Thumbs.db"):
        (tmp_path / "ball" / name).touch()
    (tmp_path / "ball" / "folder.png").mkdir()
    some = imported_files(config, "ball")
    assert len(some.paths) == 2 and some.paths == sorted(some.paths) and {Path(p).name for p in some.paths} < set(names)
    assert some.available == 6 and sorted(some.ignored) == ["._0.PNG", "Thumbs.db", "folder.png", "notes.txt"]
    assert some.summary("ball").startswith("ball: 2 of 6 images imported, a random sample") and "4 other files" in some.summary(
        "ball"
    )
    draws = {tuple(imported_files(config.model_copy(update={"seed": seed}), "ball").paths) for seed in range(20)}
    assert len(draws) > 5 and imported_files(config, "ball") == some  # a sample named by the seed, not the first names


def test_only_official_data_sets_are_prepared(small, tmp_path):
    assert is_prepared(load(None, small))
    assert not is_prepared(read_config(["pascal5i", f"data.root={tmp_path}"]))


def test_training_is_on_the_cpu_where_placement_says_so_or_there_is_no_gpu(small, monkeypatch):
    for has_gpu, device, expected in ((True, "auto", "cuda"), (True, "cpu", "cpu"), (False, "auto", "cpu"), (False, "cuda", "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        assert training_device(load(None, [*small, f"placement.device={device}"])) == expected


def test_images_start_from_the_support_images_of_the_one_draw_and_never_from_a_query(small):
    config = load(None, [*small, "synthesis.model=embedded-sd3", "synthesis.support=image_to_image", "data.first_draw=2"])
    dataset, fold = check(config)
    support, pictures = support_of(config, dataset, fold, 2), support_pictures(config)
    assert {k: [p.image_id for p in same] for k, same in pictures.items()} == {fold.to_index[k]: v for k, v in support.items()}
    assert set(pictures) == set(fold.novel_indices)
    for same in pictures.values():
        assert all((p.pixels == dataset.image(p.image_id)).all() for p in same), "of 64 pixels, as synthesis.size"
    used = {p.image_id for same in pictures.values() for p in same}
    assert not used & set(queries_of(config, dataset, support, 2))
    digest = digest_inputs(config)["synthesis.support"]
    assert digest == digest_inputs(config)["synthesis.support"] and "synthesis.support" not in digest_inputs(load(None, small))
    other = load(None, [*small, "synthesis.model=embedded-sd3", "synthesis.support=image_to_image"])
    assert digest_inputs(other)["synthesis.support"] != digest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["synthesis.model=embedded-sd3", "data.draws=2"], r"data\.draws is 2, .*expected data\.draws=1: make a run for each draw"),
        (["synthesis.source=folder", "synthesis.root=x"], r"synthesis\.source is 'folder'.*set synthesis\.source=generate"),
        (["synthesis.source=api", "synthesis.model=m", "synthesis.max_images=99"], r"synthesis\.source is 'api'.*=generate"),
        (["synthesis.step_cache=0.1"], r"synthesis\.step_cache is 0\.1: the two do not go together"),
        (["synthesis.support_strength=0.05"], r"support_strength is 0\.05 of synthesis\.steps=16: expected .* 0\.0625 or more"),
        ([], r"synthesis\.support=image_to_image, synthesis\.model=renderer: it draws what the prompt says"),
    ],
)
def test_support_images_that_cannot_be_used_are_refused_before_anything_is_made(small, words, message):
    with pytest.raises(UserError, match=message):
        check(load(None, [*small, "synthesis.support=image_to_image", *words]))
