"""The base checkpoint of a run: packaged, or trained here on base classes alone."""

from __future__ import annotations

import json
from collections.abc import Callable

from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.rundir import RunDir, write_atomically
from syn4seg.stages.setup import shipped_base


def make_base(config: Config, run: RunDir, dataset: Dataset, fold: Fold, progress: Callable[[int, int], None]) -> None:
    """Writes checkpoints/base.safetensors, unless it is there; training resumes after an interruption.

    Args:
        progress: called with (epochs done, epochs in all).

    Raises:
        ValueError: the packaged checkpoint was made for another fold, backbone or width.
    """
    if run.base.is_file():
        return
    if config.base.checkpoint == "shipped":
        _check_shipped(config, fold)
        write_atomically(run.base, shipped_base(config.data.fold).read_bytes())
        return
    import torch

    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.base import Augmentation, BaseSchedule, train_base
    from syn4seg.segmenter.network import Segmenter, save_segmenter

    base, settings = config.base, config.segmenter
    torch.manual_seed(config.seed)
    network = Segmenter(load_backbone(settings.backbone, settings.weights or "none"), 1 + len(fold.base), settings.channels,
                        settings.ppm_bins, settings.dropout)  # fmt: skip
    if torch.cuda.is_available() and config.placement.device != "cpu":
        network.cuda()

    def report(facts: dict) -> None:
        progress(facts["epoch"], facts["epochs"])
        run.log(stage="base", **facts)

    run.base.parent.mkdir(parents=True, exist_ok=True)
    schedule = BaseSchedule(base.epochs, base.batch, base.lr, base.head_factor, base.weight_decay, base.optimizer, base.warmup,
                            base.background_weight)  # fmt: skip
    train_base(network, dataset, fold, dataset.train, schedule=schedule,
               how=Augmentation(base.crop or settings.size, scale=base.scale, blur=base.blur), seed=config.seed,
               freeze_backbone=settings.freeze_backbone, cache_features=settings.freeze_backbone,
               checkpoint=run.base.with_name("base-training.pt"), progress=report)  # fmt: skip
    facts = {"fold": config.data.fold, "base": [fold.names[k - 1] for k in fold.base], "epochs": base.epochs}
    save_segmenter(network, run.base, backbone=settings.backbone, facts=facts)


def _check_shipped(config: Config, fold: Fold) -> None:
    from safetensors import safe_open

    with safe_open(shipped_base(config.data.fold), "pt") as f:
        shape = json.loads(f.metadata()["network"])
    wanted = {"backbone": config.segmenter.backbone, "classes": 1 + len(fold.base), "channels": config.segmenter.channels,
              "ppm_bins": list(config.segmenter.ppm_bins)}  # fmt: skip
    for key, value in wanted.items():
        if shape.get(key) != value:
            raise ValueError(f"base.checkpoint=shipped: the packaged checkpoint has {key}={shape.get(key)!r}, the config asks for "
                             f"{value!r}; use the default segmenter section, or set base.checkpoint=train")  # fmt: skip
