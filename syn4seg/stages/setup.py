"""The data set of a config, and every check that can be made before a model loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, EmbeddedDataset, Fold, fold_of
from syn4seg.data.embedded import CLASSES
from syn4seg.data.folder import FolderDataset
from syn4seg.data.support import draw_support
from syn4seg.rundir import checked_name

EMBEDDED_MODELS = ("renderer", "embedded-sd3")
EMBEDDED_TRAIN, EMBEDDED_VAL = 6000, 300
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_dataset(config: Config) -> tuple[Dataset, Fold]:
    """The data set, cut to `train_images` and `val_images`, and its fold.

    Raises:
        ValueError: the folder is incomplete, or the fold does not exist.
    """
    data = config.data
    if data.source == "embedded":
        dataset: Dataset = EmbeddedDataset(data.train_images or EMBEDDED_TRAIN, data.val_images or EMBEDDED_VAL)
    else:
        assert data.root is not None
        dataset = FolderDataset(data.root)
        dataset.check()
        dataset.train, dataset.val = dataset.train[: data.train_images], dataset.val[: data.val_images]
    try:
        return dataset, fold_of(dataset, data.fold)
    except ValueError as error:
        raise ValueError(f"data.fold={data.fold}: {error}") from None


def support_of(config: Config, dataset: Dataset, fold: Fold, draw: int) -> dict[int, list[str]]:
    """Novel dataset id -> support image ids of one draw, from the train list; a query is never among them.

    Raises:
        ValueError: a class has too few images.
    """
    data = config.data
    try:
        return draw_support(dataset, fold, data.shots, draw, seed=config.seed, min_area=data.min_support_area,
                            source="train", only_one_novel=data.only_one_novel)  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"data.shots={data.shots}: {error} (keys data.min_support_area, data.only_one_novel)"
        ) from None


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


def check(config: Config) -> tuple[Dataset, Fold]:
    """Everything checkable before any model loads; returns the data set and the fold.

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
    _check_backbone(config)
    if config.refinement.model == "embedded-sam":
        return dataset, fold
    if not Path(config.refinement.model).exists():
        raise ValueError(f"refinement.model={config.refinement.model}: no such file; expected embedded-sam or a checkpoint file "
                         "of segment-anything (ViT-B, L or H)")  # fmt: skip
    return dataset, fold


def _check_backbone(config: Config) -> None:
    """The backbone's module can be found and its weights are there."""
    name, weights = config.segmenter.backbone, config.segmenter.weights
    package, sign, _ = name.partition(":")
    if sign:
        try:
            found = importlib.util.find_spec(package)
        except ImportError:
            found = None
        if found is None:
            raise ValueError(f"segmenter.backbone={name}: there is no module {package}; expected package.module:factory, "
                             "importable from the directory in which you run")  # fmt: skip
    if weights not in (None, "none", "imagenet") and not Path(weights).exists():
        raise ValueError(f"segmenter.weights={weights}: no such file; expected a weights file, `imagenet` or nothing")


def weights_folder() -> Path:
    """Where the packaged weights are."""
    return Path(__file__).resolve().parent.parent / "weights"


def shipped_base(fold: int) -> Path:
    """The packaged base checkpoint of a fold of the embedded world."""
    return weights_folder() / "base" / f"fold{fold}.safetensors"
