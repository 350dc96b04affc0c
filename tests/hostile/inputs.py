"""A seeded generator of hostile and damaged inputs: each is a name and a function that hands it to the program.

    python -m tests.hostile.inputs [--count 1500] [--seed 0]     (make hostile)

Allowed outcomes: the program takes the input, refuses it with one clear message (`UserError`), or `verify` names the damage. A
traceback, more than `SECONDS`, a file outside the folder of the input, or more than 1 GiB of memory is a defect.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from syn4seg.errors import UserError

SECONDS = 10
MEMORY = 2**30
Case = tuple[str, Callable[[Path], None]]

WORDS = [
    *(
        "",
        " ",
        "~",
        "null",
        "true",
        "no",
        "nan",
        ".inf",
        "-1",
        "0",
        "1e400",
        "9" * 400,
        "0x10",
        "1_000",
        "[]",
        "{}",
        "[[]]",
        "{a: {}}",
    ),
    *(
        "!!bool foo",
        "!!int ''",
        "!!timestamp foo",
        "!!python/object:os.system x",
        "!!binary aGk=",
        "&a [*a]",
        "*b",
        "[" * 500,
        "{a: " * 300,
    ),
    *(
        "2026-11-29",
        "'",
        '"',
        "\\",
        "\x00",
        "\n",
        "a\nb: c",
        "../../etc/passwd",
        "/dev/zero",
        "~root",
        "é",
        "日本語",
        "\udcff",
        "A" * 5000,
    ),
    *(
        "- 1",
        "a: b: c",
        "? [1]\n: 2",
        "<<: 1",
        "!!set {a}",
        "%TAG",
        "---\n---",
        "1:30",
        "os:system",
        "1,2,3",
        "[1, 2, 3]",
        "embedded",
    ),
]


def _harm(data: bytes, dice: random.Random) -> bytes:
    """Return bytes that a disk, a transfer or a person may have made of a file."""
    kind, at = dice.randrange(9), dice.randrange(max(1, len(data)))
    if kind == 0:
        return b""
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data + dice.randbytes(dice.randrange(1, 200))
    if kind == 3:
        return bytes(len(data))
    if kind == 4:
        return dice.choice(
            [b"{}", b"[]", b"null", b"{}{}", b'"x"', b"3", b'{"support": 3}', b"\xff\xfe", b"[" * 5000, b'{"rows": [1]}']
        )
    if kind == 5:
        return dice.randbytes(min(len(data), 4096))
    harmed = bytearray(data)
    for _ in range(1 if kind == 6 else dice.randrange(2, 30)):
        if harmed:
            harmed[dice.randrange(len(harmed) if kind < 8 else min(len(harmed), 64))] = dice.randrange(256)
    return bytes(harmed)


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
        data = _harm(text.encode(), dice)

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
    harmed = _harm(files[name], dice)
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
    data = _harm(out.getvalue(), dice) if dice.random() < 0.7 else out.getvalue()
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

    data = _harm(shipped_base(0).read_bytes(), dice)
    load = dice.choice([load_segmenter, load_classifier, import_checkpoint]) if dice.random() < 0.9 else load_segmenter
    suffix = ".pth" if load is import_checkpoint else ".safetensors"

    def use(folder: Path) -> None:
        (folder / f"a{suffix}").write_bytes(data)
        load(folder / f"a{suffix}")

    return f"checkpoint for {load.__name__}", use


VERBS = (
    *(["verify"], ["verify", "--quick"], ["watch", "--once"], ["report"], ["audit"], ["plan"], ["config"]),
    *(
        ["export", "--format", "voc"],
        ["export", "--format", "coco"],
        ["export", "--format", "parquet"],
        ["compare"],
        ["prompts"],
        ["evaluate"],
    ),
)


def runs(dice: random.Random, finished: Path) -> Case:
    """A run directory, one file of which is damaged, special or gone; with its seal, or as an earlier version left it."""
    files = sorted(
        p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file() and p.suffix not in (".html", ".tfevents")
    )
    plain = [f for f in files if "/labels/" not in f and "/stages/" not in f and "images/" not in f and "/records/" not in f]
    name = dice.choice(plain if dice.random() < 0.7 else files)
    words, kind, sealed = dice.choice(VERBS), dice.randrange(10), dice.random() < 0.4
    harmed = _harm((finished / name).read_bytes(), dice)

    def use(folder: Path) -> None:
        run = folder / "run"
        shutil.copytree(finished, run)
        target = run / name
        if not sealed:
            for path in run.rglob(".seals"):
                shutil.rmtree(path)
        if not target.parent.exists():
            return
        target.unlink(missing_ok=True)
        if kind == 0:
            os.mkfifo(target)
        elif kind == 1:
            target.symlink_to(dice.choice(["/dev/zero", "/", "nowhere"]))
        elif kind == 2:
            target.mkdir()
        elif kind > 3:
            target.write_bytes(harmed)
        verb, *options = words
        places = (
            [run, run]
            if verb == "compare"
            else ["--out", run, "placement.runner=inline"]
            if verb in ("prompts", "evaluate")
            else [run]
        )
        if verb in ("export", "compare", "report"):
            options = [*options, "--to", folder / ("page.html" if verb != "export" else "out")]
        _command(verb, *places, *options)

    return f"run: {name}, {kind}, {' '.join(words)}, {'sealed' if sealed else 'no seals'}", use


def _command(*words: object) -> None:
    """Run the command line in this process; a code other than 0, 1 and 2 is a defect, as is more than one line of error."""
    from syn4seg import cli

    argv, sys.argv = sys.argv, ["syn4seg", *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        if stop.code not in (0, 1, 2, None):
            place = err.getvalue().rpartition("the traceback is in ")[2].partition(" ")[0]
            trace = Path(place).read_text() if place and Path(place).is_file() else err.getvalue()
            raise AssertionError(f"exit code {stop.code}: {trace[-1500:]}") from None
        if stop.code == 2:
            raise UserError(err.getvalue()) from None
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


GENERATORS = {
    "overrides": overrides,
    "config files": config_files,
    "data sets": data_sets,
    "pictures": pictures,
    "replies": replies,
    "checkpoints": checkpoints,
}
"""Kind -> generator of one case; `runs` needs a finished run besides."""


def cases(seed: int, count: int, finished: Path | None) -> Iterator[tuple[str, Case]]:
    """Yield (kind, case): every third one a run directory, if there is a finished run, the others in turn."""
    kinds = list(GENERATORS)
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        if finished is not None and number % 3 == 0:
            yield "runs", runs(dice, finished)
        else:
            kind = kinds[(number // 3 * 2 + number % 3) % len(kinds)]
            yield kind, GENERATORS[kind](dice)


def outcome(case: Case, folder: Path) -> str:
    """Return "taken", "refused", or what went wrong.

    Args:
        folder: empty; a file that the case leaves beside it is a defect.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    inside = folder / "in"
    inside.mkdir()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
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
        signal.signal(signal.SIGALRM, before)
    if len(list(folder.iterdir())) > 1:
        result = f"files outside: {[p.name for p in folder.iterdir()]}"
    return result


def main() -> None:
    """Make a small run, hand out the cases, print the counts and every defect; exit code 1 if there is one."""
    parser = argparse.ArgumentParser(description="Hand hostile inputs to the program.")
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="a finished run; made when empty")
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
            _command("run", "embedded", "placement.runner=inline", *small, "--out", finished)
        for number, (kind, case) in enumerate(cases(given.seed, given.count, finished)):
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
