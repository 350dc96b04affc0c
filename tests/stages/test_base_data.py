"""Base data of the later stages: where it is not labelled, no base mask is read; without base images, no base image is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from syn4seg.config.loading import load
from syn4seg.data.canvas import Canvas
from syn4seg.errors import UserError
from syn4seg.planning.workload import cached_images, facts_of, joint_step_images, step_images
from syn4seg.schema import UNLABELED
from syn4seg.segmenter.network import Classifier
from syn4seg.stages.base_data import base_photos, predicted_label, shuffled_base_images
from syn4seg.stages.checks import check
from syn4seg.stages.classifiers import schedule_of
from syn4seg.stages.joint import joint_views
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.results import protocol
from syn4seg.stages.setup import load_dataset, support_of
from syn4seg.stages.support import _background, compute_registration, feature_extractor, support_samples
from syn4seg.store.rundir import RunDir


class GarbledBaseMasks:
    """A data set in whose masks every base object, and the background, is some other base class."""

    def __init__(self, dataset, fold):
        self.dataset, self.seen = dataset, set[str]()
        self.train, self.val, self.classes, self.areas = dataset.train, dataset.val, dataset.classes, dataset.areas
        self.table = np.arange(256, dtype=np.uint8)
        self.table[[0, *fold.base]] = np.roll([0, *fold.base], 3)

    def image(self, sample_id):
        self.seen.add(sample_id)
        return self.dataset.image(sample_id)

    def mask(self, sample_id):
        return self.table[self.dataset.mask(sample_id)]


def _registered(config, run, dataset, fold, tmp_path):
    stage = NovelStage(config, run, dataset, fold)
    ids = support_of(config, stage.dataset, fold, 0)
    support = support_samples(config, dataset, fold, ids, feature_extractor(config, stage.segmenter, dataset))
    compute_registration(config, stage.segmenter, fold, support, stage.base, 0).save(tmp_path / "registration")
    labels = [sample.label.tobytes() for sample in (*stage.base.replayed, *stage.base.prototype_images)]
    return (tmp_path / "registration").read_bytes(), labels, ids


@pytest.mark.parametrize("how", ["labelled", "predicted", "none"])
def test_no_base_mask_is_read_where_base_data_is_not_labelled(fresh, small, tmp_path, how):
    run, _ = fresh
    config = load(None, [*small, f"novel.base_data={how}", "novel.inverted_cells=9", "labeling.base_prototype_images=9"])
    dataset, fold = load_dataset(config)
    garbled = GarbledBaseMasks(dataset, fold)
    same = [_registered(config, run, data, fold, tmp_path)[:2] for data in (dataset, garbled)]
    assert (same[0] == same[1]) == (how != "labelled")
    if how == "none":
        ids = _registered(config, run, garbled, fold, tmp_path)[2]
        assert garbled.seen == {image for of in ids.values() for image in of}  # the support alone


def test_a_predicted_label_holds_what_the_base_model_is_sure_of_inside_of_the_image():
    features = torch.zeros(3, 8, 8)
    features[1, :, :4], features[2, :, 4:] = 9.0, 0.5
    classifier, canvas = Classifier(torch.eye(3), torch.zeros(3)), Canvas(64)
    label = predicted_label(classifier, features, canvas, (32, 64, 3), 0.9)
    assert (label[:32, :24] == 1).all() and (label[:32, 40:] == UNLABELED).all() and (label[32:] == UNLABELED).all()
    assert (predicted_label(classifier, features, canvas, (32, 64, 3), 0.0)[:32] != UNLABELED).all()


def test_without_base_masks_no_background_is_known_to_hold_no_base_object(small):
    merged = {
        how: schedule_of(load(None, [*small, f"novel.base_data={how}"])).merge_base for how in ("labelled", "predicted", "none")
    }
    assert merged == {"labelled": ("support",), "predicted": ("support", "synthetic"), "none": ("support", "synthetic")}
    cells = [schedule_of(load(None, [*small, f"novel.base_data={how}"])).inverted_cells for how in ("predicted", "none")]
    assert cells[0] == 0 < cells[1]


def test_the_joint_stage_sees_predicted_labels_or_no_base_image(finished, small):
    run, kinds = RunDir(finished[0]), {}
    for how in ("predicted", "none"):
        config = load(None, [*small, "novel.trains=all", f"novel.base_data={how}", "joint.base_batch=3"])
        dataset, fold = load_dataset(config)
        stage = NovelStage(config, run, dataset, fold)
        views = joint_views(config, run, dataset, fold, 0, "syn4seg", replayed=stage.base.replayed)
        kinds[how] = views[0].kinds
        if how == "predicted":
            sample = stage.base.replayed[0]
            assert np.array_equal(views.read("replay", sample.sample_id)[1], sample.label)
    assert kinds["predicted"].count("replay") == 3 and "replay" not in kinds["none"]


def test_a_plan_and_a_result_count_the_base_images_that_are_used(small):
    counts, said = [], []
    for how in ("labelled", "none"):
        config = load(None, [*small, "novel.trains=all", f"novel.base_data={how}"])
        counts.append([cached_images(config, facts_of(config)), step_images(config), joint_step_images(config)])
        about = protocol(config, load_dataset(config)[1])
        said.append((about["base_data"], about["replayed_base_images"], about["base_prototype_images"]))
    assert [a - b for a, b in zip(*counts, strict=True)] == [8, 4, 8]
    assert said == [("labelled", 8, 200), ("none", 0, 0)]


def test_photos_of_a_folder_are_drawn_by_name_and_bad_folders_are_refused(small, tmp_path):
    key = [*small, "novel.base_data=predicted", f"novel.base_photos={tmp_path}"]
    dataset, fold = load_dataset(load(None, small))
    with pytest.raises(UserError, match=r"novel\.base_photos=.*no photo in it"):
        check(load(None, key))
    with pytest.raises(UserError, match=r"novel\.base_photos=.*no such folder"):
        check(load(None, [*key, f"novel.base_photos={tmp_path / 'absent'}"]))
    with pytest.raises(UserError, match=r"novel\.base_photos=.*not read with novel\.base_data=none"):
        check(load(None, [*key, "novel.base_data=none"]))
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "2.png"):
        Image.fromarray(np.full((8, 9, 3), 7, np.uint8)).save(tmp_path / name)
    config = load(None, key)
    assert set(shuffled_base_images(config, dataset, fold)) == {"a/1.png", "2.png"}
    assert base_photos(config, dataset).image("a/1.png").shape == (8, 9, 3)


def test_unannotated_base_objects_make_no_background_prototype():
    features, label = [np.ones((2, 8, 8), np.float32)], [np.zeros((64, 64), np.uint8)]
    seen = [np.full((64, 64), 3, np.uint8)]  # the base model sees class 3 everywhere
    assert not _background(features, label, seen, [], False, annotated=False).any()
    assert _background(features, label, seen, [], False, annotated=True).any()
    assert _background(features, label, [np.zeros((64, 64), np.uint8)], [], False, annotated=False).any()
