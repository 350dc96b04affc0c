"""The data set of a config, and every check that can be made before a model loads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, EmbeddedDataset, Fold, fold_of
from syn4seg.data.embedded import CLASSES, seeded
from syn4seg.data.folder import FolderDataset
from syn4seg.data.support import (
    POP_SEEDS,
    base_ids,
    draw_support,
    pop_draw,
    query_ids,
    reserved,
    support_pools,
)
from syn4seg.rundir import RunDir
from syn4seg.samples import checked_name

if TYPE_CHECKING:
    from syn4seg.data.prepared import PreparedDataset
    from syn4seg.models.generators import Speed

EMBEDDED_MODELS = ("renderer", "embedded-sd3")
EMBEDDED_TRAIN, EMBEDDED_VAL = 6000, 300
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_dataset(config: Config) -> tuple[Dataset, Fold]:
    """The data set, cut to `train_images` and `val_images`, and its fold.

    Raises:
        ValueError: the folder is incomplete or not prepared, or the fold does not exist.
    """
    data = config.data
    if data.source == "embedded":
        dataset: Dataset = EmbeddedDataset(data.train_images or EMBEDDED_TRAIN, data.val_images or EMBEDDED_VAL)
    else:
        dataset = _on_disk(config)
        dataset.check()
        dataset.train, dataset.val = dataset.train[: data.train_images], dataset.val[: data.val_images]
    try:
        return dataset, fold_of(dataset, data.fold)
    except ValueError as error:
        raise ValueError(f"data.fold={data.fold}: {error}") from None


def _on_disk(config: Config) -> FolderDataset | PreparedDataset:
    from syn4seg.data.coco import CocoDataset
    from syn4seg.data.pascal import PascalDataset

    data = config.data
    assert data.root is not None
    if data.source == "pascal":
        return PascalDataset(data.root, data.train_list)
    if data.source == "coco":
        return CocoDataset(data.root, data.masks)
    return FolderDataset(data.root)


def is_prepared(config: Config) -> bool:
    """Whether the data set can be opened as it is; an official one is to be prepared first."""
    if config.data.source in ("embedded", "folder"):
        return True
    try:
        _on_disk(config)
    except ValueError:
        return False
    return True


def prepare(
    source: str, root: Path, masks: str, progress: Callable[[int, int], None], note: Callable[[str], None]
) -> dict[str, Any]:
    """Masks, lists and index of an official data set; what is there already is kept.

    Args:
        source: "pascal" or "coco".
        masks: COCO's variant, see `data.masks`.

    Raises:
        ValueError: another source or variant; official files are missing or damaged (all of them are named).
    """
    from syn4seg.data.prepare import prepare_coco, prepare_pascal

    if source == "pascal":
        return prepare_pascal(root, progress=progress, note=note)
    if source == "coco":
        return prepare_coco(root, masks, progress=progress, note=note)  # pyright: ignore[reportArgumentType]
    raise ValueError(f"{source!r}: expected pascal (VOC 2012 + SBD) or coco (2014)")


def support_of(config: Config, dataset: Dataset, fold: Fold, draw: int) -> dict[int, list[str]]:
    """Novel dataset id -> support image ids of one draw.

    They are from the train list, or (DIaM) from the val list and then none of this draw's queries, see `queries_of`.

    Raises:
        ValueError: a class has too few images, or there is no published draw of that number.
    """
    data = config.data
    try:
        if data.support_draw == "pop":
            if draw >= len(POP_SEEDS):
                raise ValueError(f"draw {draw} has no published seed; POP's draws are 0 to {len(POP_SEEDS) - 1}")
            pools = support_pools(dataset, fold, data.support_from, min_area=data.min_support_area,
                                  min_pixels=data.min_support_pixels, only_one_novel=data.only_one_novel,
                                  reserve=data.support_reserve)  # fmt: skip
            return pop_draw(pools, data.shots, POP_SEEDS[draw])
        return draw_support(dataset, fold, data.shots, draw, seed=config.seed, min_area=data.min_support_area,
                            min_pixels=data.min_support_pixels, source=data.support_from,
                            only_one_novel=data.only_one_novel, reserve=data.support_reserve)  # fmt: skip
    except ValueError as error:
        raise ValueError(f"data.shots={data.shots}: {error} (keys data.min_support_area, data.min_support_pixels, "
                         "data.only_one_novel, data.support_reserve)") from None  # fmt: skip


def base_images(config: Config, dataset: Dataset, fold: Fold) -> list[str]:
    """The base training images: the train list by the rule `base.images`, without those reserved for support draws.

    Raises:
        ValueError: nothing is left.
    """
    ids = [s for s in base_ids(dataset, fold, config.base.images) if not reserved(s, config.data.support_reserve)]
    if not ids:
        raise ValueError(f"base.images={config.base.images}: no image of the train list is left to train the base stage on; "
                         "choose another rule or a smaller data.support_reserve")  # fmt: skip
    return ids


def queries_of(config: Config, dataset: Dataset, support: dict[int, list[str]], draw: int) -> list[str]:
    """The images on which a draw is scored: the val list without its support images, or a named sample of them."""
    ids = query_ids(dataset, support)
    count = config.evaluation.queries
    if count is None or count >= len(ids):
        return ids
    chosen = seeded("queries", config.seed, draw).permutation(len(ids))[:count]
    return [ids[i] for i in sorted(chosen)]


def draws_of(config: Config) -> range:
    """Numbers of the support draws of a run."""
    return range(config.data.first_draw, config.data.first_draw + config.data.draws)


def imported_files(config: Config, name: str) -> list[str]:
    """Paths below `synthesis.root` of the images to import for one class, sorted, at most `images_per_class`.

    Raises:
        ValueError: there is no folder or no image for the class.
    """
    root = Path(str(config.synthesis.root))
    folder = root / name
    if not folder.is_dir():
        raise ValueError(
            f"synthesis.root={root}: no folder for class {name!r}; expected {folder} with .jpg or .png images"
        )
    files = sorted(p.relative_to(root).as_posix() for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"synthesis.root={root}: {folder} holds no image; expected .jpg, .jpeg or .png files")
    return files[: config.synthesis.images_per_class]


def check(config: Config, run: RunDir | None = None) -> tuple[Dataset, Fold]:
    """Everything checkable before any model loads; returns the data set and the fold.

    Args:
        run: where the run is or will be; what it has made already needs no model any more.

    Raises:
        ValueError: the first thing that is wrong: key, value, what was expected, the remedy.
    """
    dataset, fold = load_dataset(config)
    for name in fold.index_names:
        checked_name(name, "class")
    for draw in draws_of(config):
        support_of(config, dataset, fold, draw)
    novel = [fold.names[k - 1] for k in fold.novel]
    if config.synthesis.source == "folder":
        for name in novel:
            imported_files(config, name)
    elif config.synthesis.model in EMBEDDED_MODELS:
        foreign = [name for name in novel if name not in CLASSES]
        if foreign:
            raise ValueError(f"synthesis.model={config.synthesis.model}: cannot draw {foreign[0]!r}; it has {', '.join(CLASSES)}. "
                             "Use a Stable Diffusion 3 model, or import images with synthesis.source=folder")  # fmt: skip
    if config.base.checkpoint == "shipped" and not shipped_base(config.data.fold).is_file():
        raise ValueError(
            f"base.checkpoint=shipped: no checkpoint for fold {config.data.fold} is packaged; set base.checkpoint=train"
        )
    elif config.base.checkpoint == "train":
        base_images(config, dataset, fold)
    elif config.base.checkpoint != "shipped" and (run is None or not run.base.is_file()):
        from syn4seg.stages.base import check_checkpoint

        check_checkpoint(config, fold)
    check_models(config, run)
    return dataset, fold


def check_models(config: Config, run: RunDir | None) -> None:
    """Every model that the run will still load can be found, and fits, as far as that can be told without loading it.

    Raises:
        ValueError: the first model that is missing, damaged or unusable here.
    """
    from syn4seg.models.generators import check_model
    from syn4seg.models.sam_files import known_sam
    from syn4seg.prompts.agents import check_agent
    from syn4seg.segmenter.backbones import check_backbone

    synthesis, prompts, segmenter = config.synthesis, config.prompts, config.segmenter
    if synthesis.source == "generate":
        if run is None or not run.has_images():
            check_model(synthesis.model, speed_of(config))
        if run is None or not run.plan.is_file():
            check_agent(prompts.agent, llm=prompts.llm, base_url=prompts.base_url, key_variable=prompts.key_variable)
    if config.base.checkpoint == "train" and (run is None or not run.base.is_file()):
        try:
            check_backbone(segmenter.backbone, segmenter.weights or "none", segmenter.size)
        except ValueError as error:
            raise ValueError(
                f"segmenter.backbone={segmenter.backbone}, segmenter.weights={segmenter.weights}: {error}"
            ) from None
    try:
        known_sam(config.refinement.model)
    except ValueError as error:
        raise ValueError(f"refinement.model={config.refinement.model}: {error}") from None


def inputs_of(config: Config) -> dict[str, str]:
    """Digest of each input that is files on this machine, by the key that names it.

    Files up to 64 MB are hashed whole; of larger ones, and of folders, the names, sizes and first megabytes are.
    """
    named = {"synthesis.model": config.synthesis.model, "base.checkpoint": config.base.checkpoint,
             "segmenter.weights": config.segmenter.weights, "refinement.model": config.refinement.model,
             "synthesis.root": config.synthesis.root}  # fmt: skip
    found = {key: _digest(Path(value)) for key, value in named.items() if value and Path(value).exists()}
    if config.data.source in ("pascal", "coco"):
        found["data.root"] = _digest(_on_disk(config).folder / "manifest.json")  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _digest(path: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        total.update(f"{file.relative_to(path)}\x1f{size}\x1f".encode())
        with file.open("rb") as f:
            total.update(f.read(64_000_000 if path.is_file() and size <= 64_000_000 else 1_000_000))
    return total.hexdigest()


def speed_of(config: Config) -> Speed:
    """How the generator is to be made faster or smaller.

    Raises:
        ValueError: options that exclude each other.
    """
    from syn4seg.models.generators import Speed

    return Speed(**{key: getattr(config.synthesis, key) for key in Speed.__dataclass_fields__})


def weights_folder() -> Path:
    """Where the packaged weights are."""
    return Path(__file__).resolve().parent.parent / "weights"


def shipped_base(fold: int) -> Path:
    """The packaged base checkpoint of a fold of the embedded world."""
    return weights_folder() / "base" / f"fold{fold}.safetensors"
