"""The folder of predictions: what is done there already, the lines as they come, and the whole at the end."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from syn4seg.errors import UserError
from syn4seg.segmenter.model_folder import ModelConfig
from syn4seg.store.files import append_line, as_path, check_reachable, exists, parse_json, read_bytes, write_atomically, write_json
from syn4seg.store.listing import list_files
from syn4seg.store.partials import remove_abandoned
from syn4seg.store.readback import Facts, read_checked
from syn4seg.trained.browse import write_pages
from syn4seg.trained.inputs import ImageSource
from syn4seg.trained.pictures import View, Views
from syn4seg.trained.prediction import Line, PredictionOptions, Runner, chunked, encode_line, read_source

IDENTITY, LINES, SHEET = "prediction.json", "predictions.jsonl", "contact_sheet.png"
SHEET_IMAGES = 24
"""Images on the contact sheet, the first ones."""
KEEP_SECONDS = 2.0
"""How long the lines of finished images may wait before they are written."""
MAX_LINES = 2**32


class PredictionFolder:
    """Where predictions go.

    Args:
        to: folder or URL: empty, not there yet, or begun by the same model with the same options; images may be added.

    Raises:
        UserError: something else is there.
    """

    def __init__(self, to: str, config: ModelConfig, options: PredictionOptions):
        self.root, self.config, self.options = as_path(to), config, options
        check_reachable(self.root)
        if exists(self.root):
            raise UserError(f"--to {to}: is a file; give a folder that is empty or not there yet")
        self.identity = {"model": config.weights.sha256, "options": asdict(options)}
        self.files = list_files(self.root)
        if IDENTITY in self.files:
            self._check_same(to)
        elif self.files:
            raise UserError(f"--to {to}: holds other files ({min(self.files)}); give a folder that is empty or not there yet")

    def _check_same(self, to: str) -> None:
        old = read_checked(self.root / IDENTITY, Facts)
        before = old.get("options") if isinstance(old.get("options"), dict) else {}
        changed = [f"--{key} {before.get(key)!r}" for key, value in self.identity["options"].items() if before.get(key) != value]
        if old.get("model") != self.identity["model"]:
            changed.insert(0, "another model")
        if changed:
            raise UserError(f"--to {to}: was begun with {', '.join(changed)}; use the same model and options, or another folder")

    def predict(
        self, sources: list[ImageSource], run: Runner, progress: Callable[[int, int], None], warn: Callable[[str], None]
    ) -> list[Line]:
        """Predict the images that are not done yet; return the lines of all of them, in order.

        Args:
            run: predicts chunks, here or elsewhere.
            progress: called with (images done, images in all).
            warn: called with one line per bad image.

        Raises:
            StoreError: a file system fails; the same command goes on.
        """
        if IDENTITY not in self.files:
            write_json(self.root / IDENTITY, self.identity)
            names = [entry.name for entry in self.config.classes]
            facts = {"classes": names, "palette": [list(entry.color) for entry in self.config.classes]}
            write_atomically(self.root / "classes.json", (json.dumps(facts, indent=1) + "\n").encode())
        if isinstance(self.root, Path):
            for folder in {path.parent for path in self.root.rglob(".*.partial")}:
                remove_abandoned(folder)
        lines = self._done(sources)
        chunks = [c for c in chunked(sources, self.options.batch) if any(source.name not in lines for source in c)]
        done = sum(source.name in lines for source in sources)
        progress(done, len(sources))
        with self._keeping() as keep:
            for found in run(chunks):
                for line in found:
                    done += line["name"] not in lines
                    lines[line["name"]] = line
                    if "error" in line:
                        warn(f"left out: {line['image']}: {line['error']}")
                keep(found)
                progress(done, len(sources))
        ordered = [lines[source.name] for source in sources]
        asked = {source.name for source in sources}
        others = [line for name, line in lines.items() if name not in asked]
        everything = [*ordered, *sorted(others, key=lambda line: line["name"])]
        write_atomically(self.root / LINES, "".join(f"{encode_line(line)}\n" for line in everything).encode())
        write_pages(self.root, everything, self.config, is_palette=self.options.palette)
        self._write_sheet(sources, lines)
        return ordered

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[Callable[[list[Line]], None]]:
        """Yield a function that appends lines to predictions.jsonl, some at a time; also when the block ends early."""
        kept: list[str] = []
        last = time.monotonic()

        def flush() -> None:
            if kept:
                append_line(self.root / LINES, "\n".join(kept))
                kept.clear()

        def keep(lines: list[Line]) -> None:
            nonlocal last
            kept.extend(map(encode_line, lines))
            if time.monotonic() - last > KEEP_SECONDS:
                flush()
                last = time.monotonic()

        try:
            yield keep
        finally:
            flush()

    def _done(self, sources: list[ImageSource]) -> dict[str, Line]:
        """Return the lines of the images whose mask is there too, also of earlier commands; a torn line counts for nothing."""
        data = read_bytes(self.root / LINES, MAX_LINES) if LINES in self.files else b""
        if data and not data.endswith(b"\n"):  # a kill tore the last one
            data = data[: data.rfind(b"\n") + 1]
            write_atomically(self.root / LINES, data)
        places, lines = {source.name: source.label for source in sources}, {}
        for row in data.splitlines():
            line = parse_json(row, f"{self.root / LINES}")
            name = line.get("name") if isinstance(line, dict) else None
            if isinstance(name, str) and line.get("mask") in self.files and "error" not in line:
                if places.get(name, line.get("image")) != line.get("image"):
                    raise UserError(
                        f"--to {self.root}: {line.get('mask')} is that of {line.get('image')}, not of {places[name]}; "
                        "use another folder"
                    )
                lines[name] = line
        return lines

    def _write_sheet(self, sources: list[ImageSource], lines: dict[str, Line]) -> None:
        """Write contact_sheet.png of the first images that have a mask."""
        views: list[View] = []
        for source in sources:
            line: dict[str, Any] = lines[source.name]
            image = read_source(source) if "mask" in line else ""
            if isinstance(image, str):
                continue
            mask = _read_indices(read_bytes(self.root / line["mask"]))
            if mask is not None and mask.shape == image.shape[:2]:
                scale = min(1.0, 480 / max(mask.shape))
                size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
                small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                views.append(View(source.name, small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)))
            if len(views) == SHEET_IMAGES:
                break
        palette = np.array([entry.color for entry in self.config.classes], np.uint8)
        sheet = Views(views, [entry.name for entry in self.config.classes], palette)
        write_atomically(self.root / SHEET, sheet._repr_png_())


def _read_indices(data: bytes) -> np.ndarray | None:
    """Return the class indices uint8 (H, W) of a plain or palette PNG, or None."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            return np.array(picture) if picture.mode in ("L", "P") else None
    except (OSError, ValueError):
        return None
