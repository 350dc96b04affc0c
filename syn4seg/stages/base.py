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
from syn4seg.stages.model_base import model_facts, read_base_model
from syn4seg.stages.network_base import check_network, import_network
from syn4seg.stages.readers import ReadAhead, read_ahead
from syn4seg.stages.setup import base_images, canvas_of, shipped_base, training_device
from syn4seg.store.files import exists
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed, write_sealed_json

if TYPE_CHECKING:
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.semantic_networks import SemanticShape

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
    """Write checkpoints/base.safetensors and base.json, unless they exist; training resumes after an interruption.

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
        path = shipped_base(config.data.fold)
        _check_network(config, fold, "base.checkpoint=shipped", _header(path))
        images = [f"train-{i:06d}" for i in range(EMBEDDED_TRAIN)]
        _write_facts(run, images, origin="packaged", rule="all", label_pixels=None)
        write_sealed(run.base, path.read_bytes())
    elif config.base.checkpoint == "train":

        def report(facts: dict[str, Any]) -> None:
            progress(facts["epoch"], facts["epochs"])
            run.log(stage="base", **facts)

        if train is None:
            train_base_stage(config, run, dataset, fold, training_device(config), report)
        else:
            train(report)
    elif config.base.is_model:
        network, found = read_base_model(config)
        facts = model_facts(found)
        _write_facts(run, None, chosen="by whoever trained it", origin="imported", label_pixels=None, **facts)
        learned = {"imported": facts["family"], "sha256": facts["sha256"], "base": [fold.names[k - 1] for k in fold.base]}
        _save(network, run, found.network.backbone, learned, whole=True)
    elif config.base.is_network:
        network, shape, facts = import_network(config, dataset, fold)
        _write_facts(run, None, chosen="by whoever trained it", origin="imported", family=shape.title, label_pixels=None, **facts)
        learned = {"imported": shape.title, "sha256": facts["sha256"], "base": [fold.names[k - 1] for k in fold.base]}
        _save(network, run, shape, learned)
    else:
        check_checkpoint(config, fold)
        network, facts = _read(config, 1 + len(fold.base))
        source = {"sha256": hashlib.sha256(Path(config.base.checkpoint).read_bytes()).hexdigest()}
        about = {"origin": "imported", "family": facts["family"], "notes": facts.get("notes", []), "label_pixels": None}
        _write_facts(run, None, chosen="by whoever trained it", **source, **about)
        learned = {key: facts[key] for key in ("base", "novel") if key in facts}
        _save(network, run, config.segmenter.backbone, {"imported": facts["family"], **source, **learned})


def _write_facts(run: RunDir, images: list[str] | None, chosen: str = "the last epoch", **facts: Any) -> None:
    """Write base.json: the training images (None: not known), how the checkpoint was chosen, and the other facts."""
    write_sealed_json(run.base_facts, {"images": images, "chosen": chosen, **facts})


def _save(network: Segmenter, run: RunDir, backbone: str | SemanticShape, facts: dict[str, Any], *, whole: bool = False) -> None:
    from syn4seg.segmenter.network import save_segmenter

    save_segmenter(network, run.base, backbone=backbone, facts=facts, write=write_sealed, whole=whole)


def train_base_stage(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, device: str, report: Report, read: ReadAhead = read_ahead
) -> None:
    """Train a network on base classes (method.md 5.2) and write both files; in a process group every process does its share.

    Process 0 alone writes and reports. All of them must see the run directory.

    Args:
        device: "cpu" or "cuda".
        read: who makes the batches, with `placement.training.readers` of them.

    Raises:
        UserError: see `train_base`.
    """
    import torch

    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.base import BaseSchedule, train_base
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.parallel import rank_and_world_size
    from syn4seg.segmenter.views import Augmentation

    base, settings, is_first = config.base, config.segmenter, rank_and_world_size()[0] == 0
    weights, ids = settings.weights or "none", base_images(config, dataset, fold)
    torch.manual_seed(config.seed)
    network = Segmenter(
        load_backbone(settings.backbone, weights),
        1 + len(fold.base),
        settings.channels,
        settings.ppm_bins,
        settings.dropout,
        settings.cosine,
        settings.align_corners,
    ).to(device)
    counts = train_base(
        network,
        dataset,
        fold,
        ids,
        schedule=BaseSchedule(**{key: getattr(base, key) for key in BaseSchedule.__dataclass_fields__}),
        augmentation=Augmentation(base.crop or settings.size, scale=base.scale, native=base.scale_of == "native", blur=base.blur),
        seed=config.seed,
        freeze_backbone=settings.freeze_backbone,
        cached_on=canvas_of(config) if settings.freeze_backbone else None,
        checkpoint=run.base.with_name("base-training.pt"),
        read=lambda views: read(views, config.placement.training.readers),
        progress=report if is_first else None,
    )
    if not is_first:
        return
    pixels = {str(k): int(n) for k, n in enumerate(counts) if n}
    names = {"backbone": settings.backbone, "weights": weights}
    _write_facts(run, ids, origin="trained here", rule=base.images, label_pixels=pixels, **names)
    facts = {"fold": config.data.fold, "base": [fold.names[k - 1] for k in fold.base], "epochs": base.epochs}
    _save(network, run, settings.backbone, facts)


def check_checkpoint(config: Config, fold: Fold) -> None:
    """Read the checkpoint file, or the network, of a configuration and refuse one that does not fit.

    Raises:
        UserError: no such file, no checkpoint, or of another fold, backbone or width; see `check_network` for a network.
    """
    if config.base.is_model:
        read_base_model(config)
        return
    if config.base.is_network:
        check_network(config, fold)
        return
    path = Path(config.base.checkpoint)
    key = f"base.checkpoint={path}"
    if not path.is_file():
        raise UserError(f"{key}: no such file; expected shipped, train, or a checkpoint file")
    if path.suffix == ".safetensors":
        _check_network(config, fold, key, _header(path))
        _check_fold(fold, key, _header(path, "facts"))
    try:
        network, facts = _read(config, 1 + len(fold.base))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    network_shape = {
        "backbone": facts["backbone"],
        "classes": len(network.weight),
        "channels": network.weight.shape[1],
        "ppm_bins": list(network.ppm.bins),
        "align_corners": network.align_corners,
        "cosine": network.cosine,
    }
    _check_network(config, fold, key, network_shape)


def _read(config: Config, classes: int) -> tuple[Segmenter, dict[str, Any]]:
    """Return a segmenter of this project or of a public repository, and its facts: at least family and backbone."""
    from syn4seg.segmenter.importers import import_checkpoint
    from syn4seg.segmenter.network import load_segmenter

    path = Path(config.base.checkpoint)
    if path.suffix != ".safetensors":
        return import_checkpoint(path, classes)
    network, facts = load_segmenter(path)
    return network, {"family": "syn4seg", **facts, "backbone": _header(path)["backbone"]}


def _check_fold(fold: Fold, key: str, facts: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint of this project learned classes that are novel in `fold`."""
    for kind, ids in (("base", fold.base), ("novel", fold.novel)):
        expected = {fold.names[k - 1] for k in ids}
        if kind in facts and set(facts[kind]) != expected:
            raise UserError(
                f"{key}: made for another fold: its {kind} classes are {', '.join(facts[kind])}, here they are "
                f"{', '.join(sorted(expected))}, so it may have learned novel ones; set data.fold, or base.checkpoint=train"
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


def _check_network(config: Config, fold: Fold, key: str, network: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint is not the network that the settings describe."""
    settings = config.segmenter
    if isinstance(network.get("backbone"), dict):
        raise UserError(
            f"{key}: the checkpoint is a run's copy of a network of {network['backbone'].get('library')}; set base.checkpoint to "
            "that network itself, and take the finished stage over with --reuse RUN"
        )
    expected = {
        "backbone": settings.backbone,
        "classes": 1 + len(fold.base),
        "channels": settings.channels,
        "ppm_bins": list(settings.ppm_bins),
        "align_corners": settings.align_corners,
        "cosine": settings.cosine,
    }
    for name, value in expected.items():
        if network.get(name, False) != value:
            setting = "1 + the fold's base classes" if name == "classes" else f"segmenter.{name}"
            raise UserError(
                f"{key}: the checkpoint has {name}={network.get(name, False)!r}, but {setting} is {value!r}; set the "
                "section segmenter (and data.fold) as the checkpoint has it, or base.checkpoint=train"
            )
