"""PASCAL VOC 2012 with SBD, from the official files: where they lie, which image is on which list, whose mask counts.

    ROOT/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}    (or ROOT/VOC2012, or ROOT itself)
    ROOT/benchmark_RELEASE/dataset/{cls,train.txt,val.txt}                          (or ROOT/sbd, or ROOT/SBD)
    ROOT/syn4seg-pascal/                                                            made by `syn4seg prepare pascal ROOT`

VOC's own mask wins where both have one (as in SegmentationClassAug, which the whole field uses): it has 255 borders, SBD's
has none. SBD's images are VOC's, so its own copies are not read.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from syn4seg.data.prepared import PreparedDataset
from syn4seg.data.published import VOC
from syn4seg.errors import UserError

_NAMES = (
    "airplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorcycle, person, potted "
    "plant, sheep, sofa, train, tv monitor"
)
CLASSES: tuple[str, ...] = tuple(_NAMES.split(", "))
"""By dataset id, in the order of VOC; spelled for prompts."""
FOLDS = tuple(tuple(range(5 * f + 1, 5 * f + 6)) for f in range(4))
"""PASCAL-5i."""
TrainList = Literal["noduplicate", "trainaug"]
_ID = re.compile(r"\d{4}_\d{6}")
_MAX_MAT = 4_000_000  # bytes of a .mat file; the official ones have some kB
_MAX_UNPACKED = 64_000_000


class PascalDataset(PreparedDataset):
    """PASCAL-5i.

    Args:
        root: folder that holds VOCdevkit/VOC2012 (or is VOC2012) and the prepared folder.
        train_list: "noduplicate" (5,953; BAM, DIaM, BCM) or "trainaug" (10,582; CAPL, POP).

    Raises:
        UserError: VOC 2012 is not there, or the folder is not prepared.
    """

    classes: tuple[str, ...] = CLASSES
    folds: tuple[tuple[int, ...], ...] = FOLDS

    def __init__(self, root: str | Path, train_list: TrainList = "noduplicate"):
        root = Path(root)
        voc = voc_folder(root)
        if voc is None:
            raise UserError(f"{root} holds no VOCdevkit/VOC2012; get {VOC.where(root)}, then run `syn4seg prepare pascal {root}`")
        self._voc = voc
        super().__init__(root, prepared_folder(root), train_list, f"syn4seg prepare pascal {root}")

    def image_path(self, sample_id: str) -> Path:
        """Return VOC2012/JPEGImages/ID.jpg."""
        return self._voc / "JPEGImages" / f"{sample_id}.jpg"


def prepared_folder(root: Path) -> Path:
    """Return the folder that `syn4seg prepare pascal` writes."""
    return root / "syn4seg-pascal"


def voc_folder(root: Path) -> Path | None:
    """Return the folder VOC2012 of an unpacked VOCtrainval."""
    candidates = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    return next((p for p in candidates if (p / "JPEGImages").is_dir() or (p / "ImageSets").is_dir()), None)


def sbd_folder(root: Path) -> Path | None:
    """Return the folder with cls/, train.txt and val.txt of an unpacked SBD."""
    candidates = (root / "benchmark_RELEASE" / "dataset", root / "sbd", root / "SBD")
    return next((p for p in candidates if p.is_dir()), None)


def read_ids(path: Path) -> list[str]:
    """Read the ids of an official list.

    Raises:
        UserError: a line is no id.
    """
    ids = path.read_text().split()
    wrong = next((s for s in ids if not _ID.fullmatch(s)), None)
    if wrong is not None or not ids:
        raise UserError(
            f"{path} {f'has the line {wrong!r}' if wrong else 'is empty'}; expected ids such as 2007_000032: "
            "unpack its archive again"
        )
    return ids


def derive_lists(
    voc_train: Sequence[str], voc_val: Sequence[str], sbd_train: Sequence[str], sbd_val: Sequence[str]
) -> dict[str, list[str]]:
    """Derive the lists of the field, in their published order (method.md 7.1).

    noduplicate: SBD's train images, then VOC's that are not among them; trainaug: all of SBD and VOC's train images; both
    without VOC's val images, each part sorted. val: VOC's.
    """
    held_out = set(voc_val)
    first = set(sbd_train) - held_out
    return {
        "noduplicate": sorted(first) + sorted(set(voc_train) - first - held_out),
        "trainaug": sorted((first | set(sbd_val) | set(voc_train)) - held_out),
        "val": sorted(held_out),
    }


def sbd_mask(path: Path) -> np.ndarray:
    """Read dataset ids uint8 (H, W) from an SBD file cls/ID.mat (`GTcls.Segmentation`); SBD marks no border.

    Raises:
        UserError: missing, damaged, too large, or of another layout; the file is named.
    """
    from scipy.io import loadmat

    data = _read_bounded(path)
    try:
        mask = np.asarray(loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
    except Exception as error:
        raise UserError(f"{path} is not an SBD file ({type(error).__name__}: {error}); unpack its archive again") from error
    if mask.ndim != 2 or mask.dtype.kind not in "uif" or not np.isin(mask, range(len(CLASSES) + 1)).all():
        raise UserError(f"{path}: GTcls.Segmentation is no map of class ids 0..{len(CLASSES)}; unpack its archive again")
    return np.ascontiguousarray(mask, np.uint8)


def _read_bounded(path: Path) -> bytes:
    """Read a .mat file (level 5) after checking that its unpacked size stays small."""
    size = path.stat().st_size if path.is_file() else 0
    if not 128 < size <= _MAX_MAT:
        raise UserError(f"{path} has {size} bytes; expected an SBD file of some kB: unpack its archive again")
    data = path.read_bytes()
    order = "little" if data[126:128] == b"IM" else "big"
    position, room = 128, _MAX_UNPACKED
    while position + 8 <= size:
        kind, length = (int.from_bytes(data[position + i : position + i + 4], order) for i in (0, 4))
        if kind == 15:  # a compressed element
            try:
                room -= len(zlib.decompressobj().decompress(data[position + 8 : position + 8 + length], room + 1))
            except zlib.error as error:
                raise UserError(f"{path} is damaged ({error}); unpack its archive again") from error
        if room < 0:
            raise UserError(f"{path} unpacks to more than {_MAX_UNPACKED} bytes, which no SBD file does; refused")
        position += 8 + length
    return data
