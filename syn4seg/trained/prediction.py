"""Predict many images into a folder: chunks of images, files of each, and lines that say what is done.

    DIR/masks/NAME.png overlays/NAME.jpg probabilities/NAME.npy|png
    DIR/index.html predictions.jsonl contact_sheet.png classes.json prediction.json

A chunk is one batch of the network and always holds the same images, so that neither the number of workers nor a kill changes a
byte. The files of an image are written before its line, and its mask last: an image whose mask and line are there is done.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from syn4seg.data.photos import decode_bytes
from syn4seg.errors import StoreError, UserError
from syn4seg.store.files import as_path, map_threads, to_json, write_atomically
from syn4seg.store.images import encode_image
from syn4seg.trained.inputs import ImageSource
from syn4seg.trained.model import BATCH, load
from syn4seg.trained.pictures import encode_jpeg, encode_palette, overlay

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.trained.model import Model

THREADS = 4
"""Threads that decode images, and that write files, beside the network."""
Line = dict[str, Any]
"""What predictions.jsonl says of an image."""


@dataclass(frozen=True)
class PredictionOptions:
    """What is written of each image, and how it is seen.

    Attributes:
        palette: masks are palette PNGs, which some programs read as colours; else plain 8-bit ones.
        overlays: write overlays/.
        probabilities: "classes": float16 (C, H, W) as .npy; "winner": that of the mask's class as 8-bit PNG, 255 for 1.
        tile: side in pixels of the tiles in which a larger image is seen; None: every image is seen whole, as in an evaluation.
        overlap: share of a tile that the next one covers.
        batch: images of a chunk, which the network sees at a time.
    """

    palette: bool = False
    overlays: bool = True
    probabilities: Literal["", "classes", "winner"] = ""
    tile: int | None = None
    overlap: float = 0.25
    batch: int = BATCH

    def check(self) -> None:
        """Raise UserError for a value that makes no sense."""
        if self.probabilities not in ("", "classes", "winner"):
            raise UserError(f"--probabilities {self.probabilities}: expected classes (all of them) or winner (the mask's class)")
        if self.tile is not None and self.tile < 16:
            raise UserError(f"--tile {self.tile}: expected the side of a tile in pixels, 16 or more")
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f"--overlap {self.overlap}: expected a share from 0 to 0.9")
        if not 1 <= self.batch <= 4096:
            raise UserError(f"--batch {self.batch}: expected 1 to 4096 images")

    def files(self, name: str) -> dict[str, str]:
        """Return the files of an image, by kind, the mask last."""
        files = {"overlay": f"overlays/{name}.jpg"} if self.overlays else {}
        if self.probabilities:
            files["probabilities"] = f"probabilities/{name}.{'npy' if self.probabilities == 'classes' else 'png'}"
        return files | {"mask": f"masks/{name}.png"}

    def is_tiled(self, image: np.ndarray) -> bool:
        """Return whether an image uint8 (H, W, 3) is seen in tiles."""
        return self.tile is not None and max(image.shape[:2]) > self.tile


@dataclass(frozen=True)
class Seen:
    """What the network says of an image.

    Attributes:
        label: class indices uint8 (H, W).
        confidence: probability float32 (H, W) of each.
        probabilities: float16 (C, H, W), if they were asked for.
    """

    label: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None = None


def see_whole(model: Model, scores: Tensor, shape: tuple[int, int], options: PredictionOptions) -> Seen:
    """Return what the network says of an image (H, W) = `shape`, of its scores (1, C, size, size) on the canvas."""
    from syn4seg.trained.pixels import label_pixels, probabilities

    label, confidence = label_pixels(scores, model.canvas, shape)
    full = probabilities(scores, model.canvas, shape).astype(np.float16) if options.probabilities == "classes" else None
    return Seen(label, confidence, full)


def see_tiles(model: Model, image: np.ndarray, options: PredictionOptions) -> Seen:
    """Return what the network says of an image uint8 (H, W, 3) that it sees in tiles."""
    from syn4seg.trained.pixels import tiled_probabilities

    assert options.tile is not None
    shape = image.shape[:2]
    label, confidence = np.empty(shape, np.uint8), np.empty(shape, np.float32)
    full = np.empty((len(model.classes), *shape), np.float16) if options.probabilities == "classes" else None
    for top, part in tiled_probabilities(image, model.scores, model.canvas, options.tile, options.overlap, options.batch):
        rows = slice(top, top + part.shape[1])
        label[rows], confidence[rows] = part.argmax(0), part.max(0)
        if full is not None:
            full[:, rows] = part
    return Seen(label, confidence, full)


class ChunkPredictor:
    """Predicts chunk after chunk of images and writes their files.

    Args:
        model: folder or URL.
        to: folder or URL.
        device: see `load`.
    """

    def __init__(self, model: str, to: str, options: PredictionOptions, device: str = "auto"):
        self.model: Model = load(model, device)
        self.to, self.options = as_path(to), options

    def __call__(self, chunk: list[ImageSource]) -> list[Line]:
        """Predict one chunk; return the line of each image, in order. A bad image has a line with its error, and no file."""
        return self.finish(chunk, map_threads(read_source, chunk, THREADS))

    def run(self, chunks: Iterable[list[ImageSource]]) -> Iterator[list[Line]]:
        """Predict chunk after chunk, while the images of the next one are decoded."""
        with ThreadPoolExecutor(1) as ahead:
            waiting: list[Any] = []
            for chunk in chunks:
                waiting.append((chunk, ahead.submit(map_threads, read_source, chunk, THREADS)))
                if len(waiting) > 1:
                    first, images = waiting.pop(0)
                    yield self.finish(first, images.result())
            for first, images in waiting:
                yield self.finish(first, images.result())

    def finish(self, chunk: list[ImageSource], images: list[np.ndarray | str]) -> list[Line]:
        """Predict and write one chunk of decoded images; an error stands in the place of a bad one."""
        lines: list[Future[Line]] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for number, (source, image, seen) in enumerate(zip(chunk, images, self._see(images), strict=True)):
                lines.append(pool.submit(self._write, source, image, seen))
                if number >= THREADS:
                    lines[number - THREADS].result()  # so that few results wait in memory
        return [line.result() for line in lines]

    def _see(self, images: list[np.ndarray | str]) -> Iterator[Seen | None]:
        """Yield what the network says of each image; a bad one is seen black, so that the others are seen as ever."""
        black = np.zeros((8, 8, 3), np.uint8)
        whole = [black if isinstance(image, str) or self.options.is_tiled(image) else image for image in images]
        all_scores = self.model.scores(whole) if any(image is not black for image in whole) else None
        for index, image in enumerate(images):
            if isinstance(image, str):
                yield None
            elif self.options.is_tiled(image):
                yield see_tiles(self.model, image, self.options)
            else:
                assert all_scores is not None
                yield see_whole(self.model, all_scores[index : index + 1], image.shape[:2], self.options)

    def _write(self, source: ImageSource, image: np.ndarray | str, seen: Seen | None) -> Line:
        line: Line = {"name": source.name, "image": source.label}
        if isinstance(image, str) or seen is None:
            return line | {"error": image}
        files = self.options.files(source.name)
        if "overlay" in files:
            write_atomically(self.to / files["overlay"], encode_jpeg(overlay(image, seen.label, self.model.palette)))
        if "probabilities" in files:
            write_atomically(self.to / files["probabilities"], _encode_probabilities(seen))
        mask = encode_mask(seen.label, self.model.palette if self.options.palette else None)
        write_atomically(self.to / files["mask"], mask)
        return line | {"height": image.shape[0], "width": image.shape[1], **files, **describe(seen, self.model.classes)}


def encode_mask(label: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """Return class indices uint8 (H, W) as PNG: 8-bit grey, or with a palette RGB uint8 (C, 3) the same indices in colours."""
    return encode_image(label) if palette is None else encode_palette(label, palette)


def _encode_probabilities(seen: Seen) -> bytes:
    if seen.probabilities is None:
        return encode_image(np.rint(seen.confidence * 255).astype(np.uint8))
    file = io.BytesIO()
    np.save(file, seen.probabilities)
    return file.getvalue()


def describe(seen: Seen, names: tuple[str, ...]) -> Line:
    """Return mean confidence of an image, and pixels, share and mean confidence of each class in it."""
    counts = np.bincount(seen.label.ravel(), minlength=len(names))
    sums = np.bincount(seen.label.ravel(), weights=seen.confidence.ravel(), minlength=len(names))
    classes = {
        names[k]: {
            "pixels": int(counts[k]),
            "share": round(float(counts[k] / seen.label.size), 6),
            "confidence": round(float(sums[k] / counts[k]), 4),
        }
        for k in np.flatnonzero(counts)
    }
    return {"confidence": round(float(sums.sum() / seen.label.size), 4), "classes": classes}


def read_source(source: ImageSource) -> np.ndarray | str:
    """Return the RGB image uint8 (H, W, 3) of a source, or what is wrong with it.

    Raises:
        StoreError: the file system fails, which is no fault of the image.
    """
    try:
        return decode_bytes(source.read(), source.label)
    except StoreError:
        raise
    except UserError as error:
        return str(error)


def chunked(sources: list[ImageSource], size: int) -> list[list[ImageSource]]:
    """Return the sources in chunks of `size`, the last one shorter."""
    return [sources[start : start + size] for start in range(0, len(sources), size)]


def encode_sources(sources: list[ImageSource]) -> str:
    """Return sources as JSON, for a process on another machine."""
    return json.dumps([asdict(source) for source in sources])


def decode_sources(text: str) -> list[ImageSource]:
    """Return the sources of `encode_sources`."""
    return [ImageSource(**facts) for facts in json.loads(text)]


def encode_line(line: Line) -> str:
    """Return a line of predictions.jsonl."""
    return json.dumps(to_json(line), ensure_ascii=False)


Runner = Callable[[list[list[ImageSource]]], Iterable[list[Line]]]
"""Predicts chunks; yields the lines of a chunk when its files are written, in any order."""
