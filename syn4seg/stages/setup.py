"""What a configuration names: data set, support images, base images, queries, input files and packaged weights."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.config.images import SynthesisConfig
from syn4seg.config.tree import Config
from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import Dataset, Fold, extended_fold, fold_of
from syn4seg.data.photos import PHOTO_SUFFIXES
from syn4seg.data.sources import dataset_source, open_dataset
from syn4seg.data.support import POP_SEEDS, base_ids, draw_support, is_reserved, pop_draw, query_ids, support_pools
from syn4seg.errors import UserError
from syn4seg.models.device import resolve_device
from syn4seg.models.hub import cached_revision
from syn4seg.seeds import seeded
from syn4seg.store.samples import escape_name

if TYPE_CHECKING:
    import numpy as np

    from syn4seg.models.picture_check import PictureCheck
    from syn4seg.models.protocols import Speed
    from syn4seg.models.support_images import SupportPicture

INPUT_KEYS = (
    *("synthesis.model", "synthesis.root", "synthesis.check"),
    *("base.checkpoint", "segmenter.weights", "refinement.model", "novel.base_photos"),
    *("labeling.features", "labeling.feature_weights"),
)
"""Keys that may name files of this machine."""
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Folder of the packaged weights."""


def canvas_of(config: Config) -> Canvas:
    """Return the canvas on which the segmenter of a configuration sees every image."""
    return Canvas(config.segmenter.size, config.segmenter.canvas)


def load_dataset(config: Config) -> tuple[Dataset, Fold]:
    """Return the data set of a configuration, cut to `train_images` and `val_images`, and its fold.

    Raises:
        UserError: the folder is incomplete or not prepared, or the fold does not exist.
    """
    data = config.data
    dataset = open_dataset(data)
    dataset.check()
    dataset.train, dataset.val = dataset.train[: data.train_images], dataset.val[: data.val_images]
    try:
        fold = fold_of(dataset, data.fold)
    except UserError as error:
        raise UserError(f"data.fold={data.fold}: {error}") from None
    try:
        return dataset, extended_fold(fold, config.base.classes) if config.base.is_model else fold
    except UserError as error:
        raise UserError(f"base.checkpoint={config.base.checkpoint}: {error}") from None


def is_prepared(config: Config) -> bool:
    """Return whether the data set can be opened as it is; an official one is to be prepared first."""
    if dataset_source(config.data.source).prepare is None:
        return True
    try:
        open_dataset(config.data)
    except UserError:
        return False
    return True


def support_of(config: Config, dataset: Dataset, fold: Fold, draw: int) -> dict[int, list[str]]:
    """Return the support images of one draw: novel dataset id -> image ids (method.md 7.8).

    They are from the train list, or (DIaM) from the val list and then none of this draw's queries, see `queries_of`.

    Raises:
        UserError: a class has too few images, or there is no published draw of that number.
    """
    data = config.data
    limits: dict[str, Any] = {
        "min_area": data.min_support_area,
        "min_pixels": data.min_support_pixels,
        "only_one_novel": data.only_one_novel,
        "reserve": data.support_reserve,
    }
    try:
        if data.support_draw != "pop":
            return draw_support(dataset, fold, data.shots, draw, seed=config.seed, source=data.support_from, **limits)
        if draw >= len(POP_SEEDS):
            raise UserError(f"draw {draw} has no published seed; POP's draws are 0 to {len(POP_SEEDS) - 1}")
        return pop_draw(support_pools(dataset, fold, data.support_from, **limits), data.shots, POP_SEEDS[draw])
    except UserError as error:
        raise UserError(
            f"data.shots={data.shots}: {error} (keys data.min_support_area, data.min_support_pixels, "
            "data.only_one_novel, data.support_reserve)"
        ) from None


def support_pictures(config: Config) -> dict[int, list[SupportPicture]]:
    """Return the support images from which images are made (`synthesis.support`): class index -> pictures of `synthesis.size`.

    Raises:
        UserError: as `load_dataset` and `support_of`.
    """
    from syn4seg.models.support_images import SupportPicture, square_around

    dataset, fold = load_dataset(config)
    pictures: dict[int, list[SupportPicture]] = {}
    for target, ids in support_of(config, dataset, fold, config.data.first_draw).items():
        squares = (square_around(dataset.image(i), dataset.mask(i) == target, config.synthesis.size) for i in ids)
        pictures[int(fold.to_index[target])] = [SupportPicture(i, square) for i, square in zip(ids, squares, strict=True)]
    return pictures


def _support_digest(config: Config) -> str:
    """Return the digest of the support images and masks of the draw from which images are made."""
    dataset, fold = load_dataset(config)
    total = hashlib.blake2b(digest_size=16)
    for target, ids in sorted(support_of(config, dataset, fold, config.data.first_draw).items()):
        for image_id in ids:
            image, mask = dataset.image(image_id), dataset.mask(image_id)
            total.update(f"{target}\x1f{image_id}\x1f{image.shape}\x1f".encode() + image.tobytes() + mask.tobytes())
    return total.hexdigest()


def base_images(config: Config, dataset: Dataset, fold: Fold) -> list[str]:
    """Return the ids of the base training images: the train list by the rule `base.images`, without the reserved support images.

    Raises:
        UserError: nothing is left.
    """
    ids = [s for s in base_ids(dataset, fold, config.base.images) if not is_reserved(s, config.data.support_reserve)]
    if not ids:
        raise UserError(
            f"base.images={config.base.images}: no image of the train list is left to train the base stage on; "
            "choose another rule or a smaller data.support_reserve"
        )
    return ids


def queries_of(config: Config, dataset: Dataset, support: dict[int, list[str]], draw: int) -> list[str]:
    """Return the ids of the images on which a draw is scored: the val list without its support images, or a seeded sample."""
    ids, count = query_ids(dataset, support), config.evaluation.queries
    if count is None or count >= len(ids):
        return ids
    return [ids[i] for i in sorted(seeded("queries", config.seed, draw).permutation(len(ids))[:count])]


def draws_of(config: Config) -> range:
    """Return the numbers of the support draws of a run."""
    return range(config.data.first_draw, config.data.first_draw + config.data.draws)


@dataclass(frozen=True)
class ImportedFiles:
    """The images to import for one class.

    Attributes:
        paths: below `synthesis.root`, sorted.
        available: images in the folder of the class.
        ignored: names in it that are no images: hidden files, folders, other suffixes.
    """

    paths: list[str]
    available: int
    ignored: list[str]

    def summary(self, name: str) -> str:
        """Return a line that says what is imported and what is left out."""
        text = f"{name}: {len(self.paths)} of {self.available} images imported"
        if len(self.paths) < self.available:
            text += ", a random sample (synthesis.images_per_class)"
        return text + (f"; {len(self.ignored)} other files left out ({self.ignored[0]})" if self.ignored else "")


def planned_images(config: Config, fold: Fold) -> int:
    """Return how many images a run makes from its prompt bank."""
    made = config.synthesis
    return len(fold.novel) * made.images_per_class * (2 if made.class_name_bank else 1)


def image_share(settings: SynthesisConfig, planned: int) -> int:
    """Return how often a service may be asked for each of the planned images.

    Raises:
        UserError: not even once.
    """
    allowed = settings.max_images or 0
    if planned > allowed:
        raise UserError(
            f"synthesis.max_images={allowed}: the plan needs {planned} images of the service, so nothing is asked for; raise it, "
            "lower synthesis.images_per_class, or set synthesis.class_name_bank=false"
        )
    return allowed // max(1, planned)


def imported_files(config: Config, name: str) -> ImportedFiles:
    """Return the images to import for one class: all, or `images_per_class` of them, drawn by the seed.

    The folder of a class has its name, or the form of `escape_name` where the name cannot be a folder's.

    Raises:
        UserError: there is no folder or no image for the class.
    """
    root = Path(str(config.synthesis.root))
    names = [escape_name(name)] if re.search(r"[/\\]|^\.", name) else [name, escape_name(name)]
    folder = next((root / n for n in names if (root / n).is_dir()), None)
    if folder is None:
        raise UserError(f"synthesis.root={root}: no folder for class {name!r}; expected {root / names[0]} with images in it")
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    files = [p for p in entries if p.suffix.lower() in PHOTO_SUFFIXES and p.name[0] != "." and p.is_file()]
    if not files:
        raise UserError(f"synthesis.root={root}: {folder} holds no image; expected files {', '.join(PHOTO_SUFFIXES)}")
    chosen = seeded("import", config.seed, name).permutation(len(files))[: config.synthesis.images_per_class]
    paths = [files[i].relative_to(root).as_posix() for i in sorted(chosen)]
    return ImportedFiles(paths, len(files), [p.name for p in entries if p not in set(files)])


@dataclass(frozen=True, eq=False)
class ClassCheck:
    """The picture check of a run: `PictureCheck` by class index. `words`: by index, what each class is called in English."""

    judge: PictureCheck
    words: tuple[str, ...]

    def __call__(self, image: np.ndarray, target: int) -> tuple[str, dict[str, Any]]:
        """Return the reason why an RGB uint8 (H, W, 3) image made for class index `target` is rejected ("" if it is not), and
        the figures; see `PictureCheck`."""
        return self.judge(image, self.words[target])


def class_check(config: Config, names: Sequence[str], device: str) -> ClassCheck | None:
    """Return the picture check of a configuration, loaded; None where it is off.

    Args:
        names: of the classes by class index, background first.

    Raises:
        UserError: the model is not there or cannot be loaded.
    """
    if not config.synthesis.check:
        return None
    from syn4seg.models.picture_check import PictureCheck

    words = tuple(config.prompts.words(name).name for name in names)
    judge = PictureCheck(config.synthesis.check, words[1:], margin=config.synthesis.check_margin, device=device)
    return ClassCheck(judge, words)


def digest_inputs(config: Config) -> dict[str, str]:
    """Return the digest of each input that is files on this machine, by the key that names it; of a hub's image model, the commit.

    Files up to 64 MB are hashed whole; of larger ones, and of folders, the names, sizes and first megabytes are.
    """
    paths = {key: operator.attrgetter(key)(config) for key in INPUT_KEYS}
    if config.synthesis.source == "api":
        del paths["synthesis.model"]  # a name at the service, even if a file here has it too
    paths["labeling.features"] = config.labeling.feature_backbone if config.labeling.by_other_features else None
    if config.base.is_network:
        from syn4seg.segmenter.semantic_sources import source_path

        paths["base.checkpoint"] = source_path(config.base.checkpoint)
    if config.base.is_model and (Path(config.base.checkpoint) / "config.yaml").is_file():  # a run, of which the model alone counts
        paths["base.checkpoint"] = Path(config.base.checkpoint) / "model"
    digests = {key: file_digest(Path(path)) for key, path in paths.items() if path and Path(path).exists()}
    if config.synthesis.source == "generate" and (commit := cached_revision(config.synthesis.model)) is not None:
        digests["synthesis.model"] = commit
    if config.synthesis.support != "none":
        digests["synthesis.support"] = _support_digest(config)
    if (manifest := getattr(open_dataset(config.data), "manifest", None)) is not None:
        digests["data.root"] = file_digest(manifest)
    return digests


def file_digest(path: Path) -> str:
    """Return the digest (32 hex digits) of a file or folder, as in `digest_inputs`."""
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        total.update(f"{file.relative_to(path)}\x1f{size}\x1f".encode())
        with file.open("rb") as f:
            total.update(f.read(64_000_000 if path.is_file() and size <= 64_000_000 else 1_000_000))
    return total.hexdigest()


def speed_of(config: Config) -> Speed:
    """Return the options that make the generator faster or smaller.

    Raises:
        UserError: options that exclude each other.
    """
    from syn4seg.models.protocols import Speed

    return Speed(**{key: getattr(config.synthesis, key) for key in Speed.__dataclass_fields__})


def shipped_base(fold: int | str) -> Path:
    """Return the path of the packaged base checkpoint of a fold of the embedded world."""
    return WEIGHTS / "base" / f"fold{fold}.safetensors"


def training_device(config: Config) -> str:
    """Return where classifiers are trained: "cuda" where this process has a GPU and `placement.device` allows it, else "cpu"."""
    return "cpu" if config.placement.device == "cpu" else resolve_device("auto")
