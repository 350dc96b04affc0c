"""The base checkpoint of a run: packaged, imported, or trained here on base classes alone; and the record of what it saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.sources import EMBEDDED_TRAIN
from syn4seg.errors import UserError
from syn4seg.stages.setup import base_images, canvas_of, shipped_base, training_device
from syn4seg.store.files import exists, write_atomically, write_json
from syn4seg.store.rundir import RunDir

if TYPE_CHECKING:
    from syn4seg.segmenter.network import Segmenter


Report = Callable[[dict[str, Any]], None]
"""Takes the facts of a finished epoch: epoch, epochs, loss, lr."""


def make_base(
    config: Config,
    run: RunDir,
    dataset: Dataset,
    fold: Fold,
    progress: Callable[[int, int], None],
    train: Callable[[Report], None] | None = None,
) -> None:
    """Writes checkpoints/base.safetensors and base.json, unless they are there; training resumes after an interruption.

    base.json says which images trained it, by which rule, and which class indices its labels held: the audit reads it.

    Args:
        progress: called with (epochs done, epochs in all).
        train: does what `train_base_stage` does, somewhere else; None: in this process.

    Raises:
        UserError: the checkpoint was made for another fold, backbone or width, or is not one.
    """
    if exists(run.base) and exists(run.base_facts):
        return
    if config.base.checkpoint == "shipped":
        _check_shipped(config, fold)
        write_json(
            run.base_facts,
            {
                "origin": "packaged",
                "rule": "all",
                "images": [f"train-{i:06d}" for i in range(EMBEDDED_TRAIN)],
                "chosen": "the last epoch",
                "label_pixels": None,
            },
        )
        write_atomically(run.base, shipped_base(config.data.fold).read_bytes())
    elif config.base.checkpoint == "train":

        def report(facts: dict[str, Any]) -> None:
            progress(facts["epoch"], facts["epochs"])
            run.log(stage="base", **facts)

        if train is None:
            train_base_stage(config, run, dataset, fold, training_device(config), report)
        else:
            train(report)
    else:
        check_checkpoint(config, fold)
        _import(config, run, 1 + len(fold.base))


def train_base_stage(config: Config, run: RunDir, dataset: Dataset, fold: Fold, device: str, report: Report) -> None:
    """Trains a network from its first weights and writes both files; in a process group every process does its share.

    Process 0 alone writes and reports. The run directory must be seen by all of them.

    Args:
        device: "cpu" or "cuda".

    Raises:
        UserError: see `train_base`.
    """
    import torch

    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.base import Augmentation, BaseSchedule, train_base
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.parallel import ranks

    base, settings, first = config.base, config.segmenter, ranks()[0] == 0
    torch.manual_seed(config.seed)
    network = Segmenter(
        load_backbone(settings.backbone, settings.weights or "none"),
        1 + len(fold.base),
        settings.channels,
        settings.ppm_bins,
        settings.dropout,
        settings.cosine,
        settings.align_corners,
    ).to(device)
    ids = base_images(config, dataset, fold)
    schedule = BaseSchedule(
        base.epochs, base.batch, base.lr, base.head_factor, base.weight_decay, base.optimizer, base.warmup, base.background_weight
    )
    seen = train_base(
        network,
        dataset,
        fold,
        ids,
        schedule=schedule,
        how=Augmentation(base.crop or settings.size, scale=base.scale, blur=base.blur),
        seed=config.seed,
        freeze_backbone=settings.freeze_backbone,
        cached_on=canvas_of(config) if settings.freeze_backbone else None,
        checkpoint=run.base.with_name("base-training.pt"),
        progress=report if first else None,
    )
    if not first:
        return
    facts = {"fold": config.data.fold, "base": [fold.names[k - 1] for k in fold.base], "epochs": base.epochs}
    write_json(
        run.base_facts,
        {
            "origin": "trained here",
            "rule": base.images,
            "images": ids,
            "chosen": "the last epoch",
            "label_pixels": {str(k): int(n) for k, n in enumerate(seen) if n},
            "backbone": settings.backbone,
            "weights": settings.weights or "none",
        },
    )
    _save(network, run, settings.backbone, facts)


def _save(network: Segmenter, run: RunDir, backbone: str, facts: dict[str, Any]) -> None:
    from syn4seg.segmenter.network import save_segmenter

    save_segmenter(network, run.base, backbone=backbone, facts=facts)


def _import(config: Config, run: RunDir, classes: int) -> None:
    network, facts = _read(config, classes)
    digest = hashlib.sha256(Path(config.base.checkpoint).read_bytes()).hexdigest()
    write_json(
        run.base_facts,
        {
            "origin": "imported",
            "family": facts["family"],
            "sha256": digest,
            "notes": facts.get("notes", []),
            "images": None,
            "chosen": "by whoever trained it",
            "label_pixels": None,
        },
    )
    learned = {key: facts[key] for key in ("base", "novel") if key in facts}
    _save(network, run, config.segmenter.backbone, {"imported": facts["family"], "sha256": digest, **learned})


def check_checkpoint(config: Config, fold: Fold) -> None:
    """Reads the checkpoint file of a config and refuses one that does not fit.

    Raises:
        UserError: no such file, no checkpoint, or of another fold, backbone or width.
    """
    path = Path(config.base.checkpoint)
    if not path.is_file():
        raise UserError(f"base.checkpoint={path}: no such file; expected shipped, train, or a checkpoint file")
    if path.suffix == ".safetensors":
        _fits(config, fold, f"base.checkpoint={path}", _header(path))
        _same_fold(fold, path, _header(path, "facts"))
    try:
        network, facts = _read(config, 1 + len(fold.base))
    except UserError as error:
        raise UserError(f"base.checkpoint={path}: {error}") from None
    _fits(
        config,
        fold,
        f"base.checkpoint={path}",
        {
            "backbone": facts["backbone"],
            "classes": len(network.weight),
            "channels": network.weight.shape[1],
            "ppm_bins": list(network.ppm.bins),
            "align_corners": network.align_corners,
            "cosine": network.cosine,
        },
    )


def _read(config: Config, classes: int) -> tuple[Segmenter, dict[str, Any]]:
    """A segmenter of ours or of a public repository, and its facts: at least family and backbone."""
    from syn4seg.segmenter.importers import import_checkpoint
    from syn4seg.segmenter.network import load_segmenter

    path = Path(config.base.checkpoint)
    if path.suffix != ".safetensors":
        return import_checkpoint(path, classes)
    network, facts = load_segmenter(path)
    return network, {"family": "syn4seg", **facts, "backbone": _header(path)["backbone"]}


def _same_fold(fold: Fold, path: Path, facts: dict[str, Any]) -> None:
    """Raises a ValueError if a checkpoint of ours learned classes that are novel here."""
    names = {"base": {fold.names[k - 1] for k in fold.base}, "novel": {fold.names[k - 1] for k in fold.novel}}
    for kind, wanted in names.items():
        if kind in facts and set(facts[kind]) != wanted:
            raise UserError(
                f"base.checkpoint={path}: made for another fold: its {kind} classes are {', '.join(facts[kind])}, "
                f"here they are {', '.join(sorted(wanted))}, so it may have learned novel ones; set data.fold, or "
                "base.checkpoint=train"
            )


def _header(path: Path, key: str = "network") -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            return json.loads((f.metadata() or {})[key])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"base.checkpoint={path}: no checkpoint of ours ({type(error).__name__}: {error}); expected a file of "
            "`save_segmenter`, or a public checkpoint (.pth)"
        ) from None


def _check_shipped(config: Config, fold: Fold) -> None:
    _fits(config, fold, "base.checkpoint=shipped", _header(shipped_base(config.data.fold)))


def _fits(config: Config, fold: Fold, what: str, shape: dict[str, Any]) -> None:
    """Raises a ValueError if a checkpoint is not the network that the settings describe."""
    settings = config.segmenter
    wanted = {
        "backbone": settings.backbone,
        "classes": 1 + len(fold.base),
        "channels": settings.channels,
        "ppm_bins": list(settings.ppm_bins),
        "align_corners": settings.align_corners,
        "cosine": settings.cosine,
    }
    for key, value in wanted.items():
        if shape.get(key, False) != value:
            name = "1 + the fold's base classes" if key == "classes" else f"segmenter.{key}"
            raise UserError(
                f"{what}: the checkpoint has {key}={shape.get(key, False)!r}, but {name} is {value!r}; set the "
                "section segmenter (and data.fold) as the checkpoint has it, or base.checkpoint=train"
            )
