"""`syn4seg prepare`: from the official files of a benchmark to masks, index and lists, once; see `prepared` for what is made.

Everything that is missing is named at once, before any work. A mask on disk means done, so the same command resumes.
Official files that turn out to be bad are collected, and named together at the end; the good ones are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.data import coco, pascal
from syn4seg.data.photos import decode_mask, decode_photo, open_image
from syn4seg.data.prepared import FORMAT, file_facts, index_row, write_index, write_list, write_manifest
from syn4seg.data.published import COCO_ANNOTATIONS, COCO_IMAGES, SBD, VOC, Archive, compare, ids_digest
from syn4seg.errors import UserError
from syn4seg.store.files import write_atomically, write_json
from syn4seg.store.images import write_image
from syn4seg.store.partials import remove_abandoned

Progress = Callable[[int, int], None]
Note = Callable[[str], None]
_SHOWN = 20  # bad files in the message; all of them are in bad-files.txt
_AGAIN = "unpack its archive again"


@dataclass(frozen=True)
class _Job:
    """An image, its photo, and how its mask is made from the official files."""

    sample_id: str
    photo: Path
    make: Callable[[], np.ndarray]


def prepare_pascal(root: str | Path, *, progress: Progress, note: Note) -> dict[str, Any]:
    """Build masks, index and lists of PASCAL VOC 2012 + SBD under ROOT/syn4seg-pascal.

    A mask is VOC's own where VOC has one (255 borders kept), else SBD's.

    Args:
        root: folder that holds VOCdevkit/VOC2012 (or is VOC2012) and benchmark_RELEASE/dataset (or sbd, SBD).
        progress: called with (masks done, masks in all).
        note: called with a sentence on what was found and made.

    Returns:
        {"folder", "images", "kept", "lists": {name: {"ids", "digest", "published"}}}.

    Raises:
        UserError: official files are missing (all of them are named, with their archives), or bad.
    """
    root = Path(root)
    voc, sbd = pascal.voc_folder(root), pascal.sbd_folder(root)
    official = {
        "voc_train": voc and voc / "ImageSets" / "Segmentation" / "train.txt",
        "voc_val": voc and voc / "ImageSets" / "Segmentation" / "val.txt",
        "sbd_train": sbd and sbd / "train.txt",
        "sbd_val": sbd and sbd / "val.txt",
    }
    ids = {name: pascal.read_ids(path) if path and path.is_file() else [] for name, path in official.items()}
    lists = pascal.derive_lists(**ids)
    own = {*ids["voc_train"], *ids["voc_val"]}
    needed = sorted({*lists["trainaug"], *lists["val"]})
    voc_files = {"JPEGImages": [f"{s}.jpg" for s in needed], "SegmentationClass": [f"{s}.png" for s in sorted(own)]}
    sbd_files = {"cls": [f"{s}.mat" for s in needed if s not in own]}
    sources = list(official.values())
    missing = _missing_files(root, voc, "VOCdevkit/VOC2012", VOC, sources[:2], voc_files)
    missing += _missing_files(root, sbd, "benchmark_RELEASE/dataset", SBD, sources[2:], sbd_files)
    if missing or voc is None or sbd is None:
        raise _incomplete(root, missing)

    jobs = [_Job(s, voc / "JPEGImages" / f"{s}.jpg", partial(_voc_or_sbd, voc, sbd, s, s in own)) for s in needed]
    return _prepare(
        "pascal", "", root, pascal.prepared_folder(root), [path for path in sources if path], lists, jobs, progress, note
    )


def _voc_or_sbd(voc: Path, sbd: Path, sample_id: str, own: bool) -> np.ndarray:
    if own:
        return decode_mask(voc / "SegmentationClass" / f"{sample_id}.png", len(pascal.CLASSES), _AGAIN)
    return pascal.sbd_mask(sbd / "cls" / f"{sample_id}.mat")


def prepare_coco(root: str | Path, masks: coco.Variant = "all_polygons", *, progress: Progress, note: Note) -> dict[str, Any]:
    """Build masks, index and lists of COCO 2014 under ROOT/syn4seg-coco/VARIANT.

    Listed are the images with at least one instance that is no crowd. The published lists are shuffled, and no official file
    gives their order; ours ascend by id, and the ids are compared.

    Args:
        root: folder that holds annotations/, train2014/ and val2014/.
        masks: the variant, see `coco.CocoDataset`.
        progress: called with (masks done, masks in all).
        note: called with a sentence on what was found and made.

    Returns:
        {"folder", "images", "kept", "lists": {name: {"ids", "digest", "published"}}}.

    Raises:
        UserError: official files are missing (all of them are named, with their archives), or bad.
    """
    root, folder = Path(root), coco.prepared_folder(Path(root), masks)
    sources = [root / "annotations" / f"instances_{part}.json" for part in coco.SPLITS.values()]
    photos: dict[str, list[coco.Photo]] = {}
    missing = _missing_files(root, root, "annotations", COCO_ANNOTATIONS, sources, {})
    for (split, part), path in zip(coco.SPLITS.items(), sources, strict=True):
        if path.is_file():
            note(f"reading {path}")
            photos[split] = [photo for photo in coco.read_annotations(path) if photo.listed]
        names = [f"{photo.sample_id}.jpg" for photo in photos.get(split, [])]
        missing += _missing_files(root, root, part, COCO_IMAGES[part], [], {part: names})
    if missing:
        raise _incomplete(root, missing)
    lists = {split: [photo.sample_id for photo in photos[split]] for split in photos}
    jobs = [
        _Job(photo.sample_id, root / coco.SPLITS[split] / f"{photo.sample_id}.jpg", partial(coco.draw_mask, photo, masks))
        for split in photos
        for photo in photos[split]
    ]
    return _prepare("coco", masks, root, folder, sources, lists, jobs, progress, note)


def _missing_files(
    root: Path, folder: Path | None, name: str, archive: Archive, files: Sequence[Path | None], contents: dict[str, list[str]]
) -> list[str]:
    """Return one line per missing file, per missing folder, and per folder that lacks files."""
    where = f"in {archive.where(root)}"
    if folder is None:
        return [f"{root / name}: {where}"]
    lines = [f"{path}: {where}" for path in files if path and not path.is_file()]
    for part, names in contents.items():
        path = folder / part
        if not path.is_dir():
            lines.append(f"{path}/: {where}")
            continue
        present = {p.name for p in path.iterdir()}
        missing = [n for n in names if n not in present]
        if missing:
            first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            lines.append(f"{path}/: {len(missing)} of {len(names)} files ({first}): {where}")
    return lines


def _incomplete(root: Path, missing: list[str]) -> UserError:
    return UserError(
        f"{root}: official files are missing; download and unpack, then run the same command again:\n  " + "\n  ".join(missing)
    )


def _prepare(
    dataset: str,
    variant: str,
    root: Path,
    folder: Path,
    sources: list[Path],
    lists: dict[str, list[str]],
    jobs: list[_Job],
    progress: Progress,
    note: Note,
) -> dict[str, Any]:
    facts = {path.relative_to(root).as_posix(): file_facts(path) for path in sources}
    classes = pascal.CLASSES if dataset == "pascal" else coco.CLASSES
    begun = {"format": FORMAT, "variant": variant, "sources": facts}
    for part in (folder, folder / "masks", folder / "lists"):
        remove_abandoned(part)
    rows, bad, kept = _masks(folder, jobs, len(classes), _begun_from_same_files(folder, begun), progress)
    report = folder / "bad-files.txt"
    if bad:
        write_atomically(report, "".join(f"{line}\n" for line in bad).encode())
        more = f"\n  and {len(bad) - _SHOWN} more, all in {report}" if len(bad) > _SHOWN else ""
        raise UserError(
            f"{root}: {len(bad)} official files are bad; {len(rows)} masks are done and kept. Mend these and run "
            "the same command again:\n  " + "\n  ".join(bad[:_SHOWN]) + more
        )
    report.unlink(missing_ok=True)
    compared = {}
    for name, ids in lists.items():
        equal, sentence = compare(dataset, name, ids)
        note(sentence)
        write_list(folder, name, ids)
        compared[name] = {"ids": len(ids), "digest": ids_digest(ids), "published": equal}
    index = write_index(folder, rows)
    counts = {"classes": classes, "images": len(rows), "lists": compared}
    write_manifest(folder, {"dataset": dataset, "variant": variant, **counts, "index": index, "sources": facts})
    note(f"{folder}: {len(rows)} masks, {kept} of them from an earlier call")
    return {"folder": str(folder), "images": len(rows), "kept": kept, "lists": compared}


def _begun_from_same_files(folder: Path, begun: dict[str, Any]) -> bool:
    """Return whether masks on disk were begun from the same official files in the same format; note what is begun now."""
    path = folder / "begun.json"
    try:
        same = json.loads(path.read_text()) == begun
    except (OSError, ValueError):
        same = False
    if not same:
        write_json(path, begun)
    return same


def _masks(
    folder: Path, jobs: Sequence[_Job], classes: int, keep: bool, progress: Progress
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Make every missing mask; return the index rows, what is wrong with bad files, and how many masks were kept."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    kept = 0
    for done, job in enumerate(jobs, 1):
        path = folder / "masks" / f"{job.sample_id}.png"
        existing = _read_existing_mask(path, classes) if keep else None
        try:
            mask = job.make() if existing is None else existing
            _check_photo(job.photo, mask.shape)
        except UserError as error:
            bad.append(str(error))
        else:
            if existing is None:
                write_image(path, mask)
            else:
                kept += 1
            rows.append(index_row(job.sample_id, mask))
        progress(done, len(jobs))
    return rows, bad, kept


def _read_existing_mask(path: Path, classes: int) -> np.ndarray | None:
    """Read a mask that an earlier call wrote; None where it is missing or damaged and must be made again."""
    try:
        return decode_mask(path, classes)
    except UserError:
        return None


def _check_photo(path: Path, shape: tuple[int, ...]) -> None:
    """Check that a photo is complete and has the size of its mask; decode it only where its header and end leave a doubt."""
    size = (shape[1], shape[0])
    with open_image(path, _AGAIN) as stored:
        fits = stored.size == size
    with path.open("rb") as f:
        f.seek(-2, 2)
        complete = f.read() == b"\xff\xd9"  # a JPEG's end
    if not (fits and complete):
        decode_photo(path, size, _AGAIN, "stored_first")
