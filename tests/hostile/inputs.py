"""A seeded generator of hostile and damaged inputs: each is a name and a function that hands it to the program.

    python -m tests.hostile.inputs [--count 1500] [--seed 0]     (make hostile)

Allowed outcomes: the program takes the input, refuses it with one clear message (`UserError`), or `verify` names the damage. A
traceback, more than `SECONDS` of CPU time (`runs.SECONDS_TO_MAKE` where labels may be made again), a wait of more than `WAIT`, a
file outside the folder of the input, or more than 1 GiB of memory is a defect.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from syn4seg.errors import UserError
from tests.hostile.damage import WORDS, harm
from tests.hostile.runs import command, runs, sharded

SECONDS = 10
"""Of CPU time, so that a busy machine is no defect."""
WAIT = 100
"""Seconds of wall time after which a case counts as one that waits for ever."""
MEMORY = 2**30
Case = tuple[str, Callable[[Path], None]]


def overrides(dice: random.Random) -> Case:
    """A key of the configuration with a strange value."""
    from syn4seg.config.loading import load
    from syn4seg.config.tree import keys

    key = dice.choice(
        [*keys(), "placement", "data", "seed.x", "", "=", "a.b.c", "data.shots.x", "labeling.lambda_keep.support_quantile"]
    )
    text = f"{key}={dice.choice(WORDS)}"
    return f"override {text[:60]!r}", lambda _: load(None, [text]) and None


def config_files(dice: random.Random) -> Case:
    """A YAML file, damaged, or with one value replaced."""
    from syn4seg.config.loading import load
    from syn4seg.config.tree import Config, annotated

    text = annotated(Config())
    if dice.random() < 0.5:
        lines = text.splitlines()
        at = dice.choice([i for i, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")])
        lines[at] = f"{lines[at].partition(':')[0]}: {dice.choice(WORDS)}"
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        data = harm(text.encode(), dice)

    def use(folder: Path) -> None:
        (folder / "c.yaml").write_bytes(data)
        load(folder / "c.yaml")

    return f"config file {data[:40]!r}", use


def _dataset(folder: Path) -> dict[str, bytes]:
    """Return the files of a small, sound data set."""
    files = {"train.txt": b"a\nb\n", "val.txt": b"c\n"}
    files["classes.json"] = json.dumps({"classes": ["cat", "dog"], "folds_novel": {"fold0": ["dog"]}}).encode()
    rng = np.random.default_rng(0)
    for name in "abc":
        mask = rng.integers(0, 3, (24, 32), np.uint8)
        for place, pixels in (("masks", mask), ("images", np.repeat(mask[..., None] * 80, 3, 2))):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            files[f"{place}/{name}.png"] = out.getvalue()
    return files


def data_sets(dice: random.Random) -> Case:
    """A folder data set, one file of which is damaged, special or of another name."""
    from syn4seg.data.datasets import fold_of
    from syn4seg.data.folder import FolderDataset

    files = _dataset(Path())
    name, kind, which = dice.choice(sorted(files)), dice.randrange(5), dice.choice([0, 0, 0, 1, -1, "fold0", "x"])
    harmed = harm(files[name], dice)
    table: Any = dice.choice(
        [None, 3, "ab", [None], [1], ["a", "a"], {"a": 0}, {"a": 2}, ["background", "a"], [" "], ["\n"], ["a"] * 300, [["a"]]]
    )
    link = dice.choice(["/dev/zero", "/", "nowhere", "/etc/passwd"])

    def use(folder: Path) -> None:
        for path, data in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data)
        target = folder / name
        if kind == 0:
            target.unlink()
            os.mkfifo(target)
        elif kind == 1:
            target.unlink()
            target.symlink_to(link)
        elif kind == 2:
            (folder / "classes.json").write_text(json.dumps({"classes": table, "folds_novel": [["a"]]}))
        else:
            target.write_bytes(harmed)
        dataset = FolderDataset(folder)
        dataset.check()
        fold_of(dataset, which)
        dataset.check_files()

    return f"data set: {name}, {kind}, {str(table)[:20]}", use


def pictures(dice: random.Random) -> Case:
    """A photo or mask of any format and mode, damaged or not."""
    from syn4seg.data.photos import decode_image, decode_mask, decode_photo

    kind = dice.choice(["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"])
    mode = dice.choice(["RGB", "L", "P", "RGBA", "1", "I;16", "F", "CMYK", "LA"])
    pixels = np.random.default_rng(dice.randrange(2**32)).integers(0, 256, (13, 17, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = dice.choice([0, 1, 3, 6, 8, 9, 255])
    out = io.BytesIO()
    with contextlib.suppress(OSError, ValueError, KeyError):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        image.save(out, kind, **({} if kind in ("GIF", "PPM", "BMP") else {"exif": exif}))
    data = harm(out.getvalue(), dice) if dice.random() < 0.7 else out.getvalue()
    suffix = dice.choice([".png", ".jpg", ".tif", ".webp", ".bmp"])

    def use(folder: Path) -> None:
        path = folder / f"a{suffix}"
        path.write_bytes(data)
        for decode in (decode_image, lambda p: decode_photo(p, (17, 13)), lambda p: decode_mask(p, 2)):
            with contextlib.suppress(UserError):
                pixels = decode(path)
                assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3)

    return f"picture {kind} {mode} as {suffix}", use


def replies(dice: random.Random) -> Case:
    """A chat reply of any form."""
    from syn4seg.prompts.proposals import LONGEST, parse_reply

    parts = [
        "[",
        "]",
        "{",
        "}",
        '"',
        "a bus",
        ",",
        ":",
        "<think>",
        "</think>",
        "```json",
        "\n",
        "1. ",
        "- ",
        "\x00",
        "\ud800",
        "é",
        "\\u0000",
        " " * 50,
    ]
    text = "".join(dice.choice(parts) * dice.choice([1, 1, 1, 400]) for _ in range(dice.randrange(1, 60)))

    def use(_: Path) -> None:
        found = parse_reply(text, 16)
        assert len(found) <= 16 and all(len(t) <= LONGEST + 1 for t in found)

    return f"reply {text[:40]!r}", use


def checkpoints(dice: random.Random) -> Case:
    """A damaged checkpoint of this project."""
    from syn4seg.segmenter.importers import import_checkpoint
    from syn4seg.segmenter.network import load_segmenter
    from syn4seg.stages.classifiers import load_classifier
    from syn4seg.stages.setup import shipped_base

    data = harm(shipped_base(0).read_bytes(), dice)
    load = dice.choice([load_segmenter, load_classifier, import_checkpoint]) if dice.random() < 0.9 else load_segmenter
    suffix = ".pth" if load is import_checkpoint else ".safetensors"

    def use(folder: Path) -> None:
        (folder / f"a{suffix}").write_bytes(data)
        load(folder / f"a{suffix}")

    return f"checkpoint for {load.__name__}", use


GENERATORS = {
    "overrides": overrides,
    "config files": config_files,
    "data sets": data_sets,
    "pictures": pictures,
    "replies": replies,
    "checkpoints": checkpoints,
}
"""Kind -> generator of one case; `runs` needs a finished run besides, in files or in shards."""


def cases(seed: int, count: int, finished: Mapping[str, Path]) -> Iterator[tuple[str, Case]]:
    """Yield (kind, case): every third one a run directory, of the finished ones in turn, by kind; between them the others."""
    kinds = list(GENERATORS)
    for path in finished.values():
        command("plan", path)  # a sound run is taken; and what is imported now costs no case its time
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        if number % 3 == 0:
            kind = list(finished)[number // 3 % len(finished)]
            yield kind, runs(dice, finished[kind])
        else:
            kind = kinds[(number // 3 * 2 + number % 3) % len(kinds)]
            yield kind, GENERATORS[kind](dice)


def outcome(case: Case, folder: Path) -> str:
    """Return "taken", "refused", or what went wrong.

    Args:
        folder: empty; a file that the case leaves beside it is a defect.
    """

    def stop(*_: object) -> None:
        raise TimeoutError("no answer in time")

    inside = folder / "in"
    inside.mkdir()
    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAIT)
    try:
        case[1](inside)
        result = "taken"
    except UserError as error:
        text = str(error)
        result = (
            "refused" if text.strip() and "Traceback" not in text and len(text) < 5000 else f"an unclear message: {text[:300]!r}"
        )
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        import traceback

        result = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error)[-6:])}"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if len(list(folder.iterdir())) > 1:
        result = f"files outside: {[p.name for p in folder.iterdir()]}"
    return result


def main() -> None:
    """Make a small run, hand out the cases, print the counts and every defect; exit code 1 if there is one."""
    parser = argparse.ArgumentParser(description="Hand hostile inputs to the program.")
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="a finished run in files; made when empty")
    given = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    defects = []
    with tempfile.TemporaryDirectory(prefix="syn4seg-hostile-") as root:
        finished = given.run
        if finished is None:
            finished = Path(root, "finished")
            small = [
                "synthesis.images_per_class=2",
                "prompts.bank_size=2",
                "data.train_images=40",
                "data.val_images=10",
                "novel.steps=5",
            ]
            command("run", "placement.runner=inline", *small, "--out", finished)
        both = {"runs": finished, "sharded runs": sharded(finished, Path(root, "sharded"))}
        for number, (kind, case) in enumerate(cases(given.seed, given.count, both)):
            folder = Path(root, str(number))
            folder.mkdir()
            result = outcome(case, folder)
            shutil.rmtree(folder)
            word = result if result in ("taken", "refused") else "DEFECT"
            counts[kind, word] += 1
            if word == "DEFECT":
                defects.append(f"{number} {kind}: {case[0]}: {result}")
                print(defects[-1], flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for (kind, word), count in sorted(counts.items()):
        print(f"{kind:14}{word:10}{count:6}")
    print(f"{given.count} inputs, {len(defects)} defects, at most {memory / 2**20:.0f} MiB in this process")
    sys.exit(1 if defects or memory > 2 * MEMORY else 0)


if __name__ == "__main__":
    main()
