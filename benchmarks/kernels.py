"""Small functions that run once per image, query or file: CPU milliseconds before and now, in one process and one thread.

"Before" is the plain form, kept here: all classes brought to the pixels and then argmax, a dense matrix of regions and cells,
every SAM mask compared and painted as a whole frame, `bincount`, reversed slices. Both forms see the same made-up input and must
agree: labels and counts exactly, sums and interpolated values within rounding. Times are the best of several, taken in turns:
load blurs these least.

    python benchmarks/kernels.py       # writes benchmarks/results/DATE-kernels.json
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from label_arithmetic import milliseconds
from record import machine, one_thread, write

from syn4seg.data.canvas import Canvas
from syn4seg.labeling.components import find_components
from syn4seg.labeling.prototypes import pool, region_occupancy
from syn4seg.labeling.refinement import boundary_band, refine_boundary
from syn4seg.segmenter.evaluation import Query, confusion, predictor_of, scores_at_pixels
from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.store.images import decode_image, encode_image

REPEATS = 7
CHANNELS, STRIDE = 512, 8
GRIDS = [  # classes, grid, pixels, with its backward pass
    (81, (355, 473), (480, 640), False),
    (81, (355, 473), (480, 640), True),
    (81, (60, 60), (473, 473), False),
    (81, (53, 53), (417, 417), False),
    (21, (53, 53), (417, 417), False),
    (21, (53, 53), (417, 417), True),
    (21, (128, 128), (512, 512), True),
    (21, (32, 32), (256, 256), False),
    (16, (16, 16), (128, 128), False),
    (16, (16, 16), (128, 128), True),
]
Row = dict[str, Any]


def in_turns(functions: list[Callable[[], Any]]) -> list[float]:
    """Best milliseconds of each function, measured one after the other and again, so that load meets all of them."""
    times = [[milliseconds(function, 1)[0][1] for function in functions] for _ in range(REPEATS)]
    return [min(of_one) for of_one in zip(*times, strict=True)]


def row(what: str, before: Callable[[], Any], now: Callable[[], Any], bar: str, same: Callable[[Any, Any], bool]) -> Row:
    """Times both forms and checks that they agree."""
    assert same(before(), now()), f"{what}: the two forms differ"
    slow, fast = in_turns([before, now])
    return {"what": what, "before": round(slow, 2), "now": round(fast, 2), "ratio": round(fast / slow, 2), "bar": bar}


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal within rounding."""
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(a).max()))))


# ------------------------------------------------------------------------------------------------ scores
def products(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation as two matrix products, whatever the size."""
    sides = [F.interpolate(torch.eye(old)[None], new, mode="linear")[0].T for old, new in zip(x.shape[2:], shape, strict=True)]
    return sides[0] @ x @ sides[1].T


def upsampling() -> list[Row]:
    """`upsample` beside both ways that it chooses from."""
    rows = []
    for classes, grid, shape, training in GRIDS:
        x = torch.randn(1, classes, *grid, generator=torch.Generator().manual_seed(0), requires_grad=training)

        def run(function: Callable[..., torch.Tensor], x: torch.Tensor = x, shape: tuple[int, int] = shape) -> np.ndarray:
            found = function(x, shape)
            if x.requires_grad:
                x.grad = None
                found.sum().backward()
            return found.detach().numpy()

        def torch_only(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
            return F.interpolate(x, shape, mode="bilinear")

        ways = {"interpolate": torch_only, "products": products}
        assert all(close(run(upsample), run(way)) for way in ways.values())
        now, *others = in_turns([lambda way=way, run=run: run(way) for way in (upsample, *ways.values())])
        times = {name: round(best, 2) for name, best in zip(ways, others, strict=True)}
        what = f"upsample {classes} classes, {' x '.join(map(str, grid))} -> {' x '.join(map(str, shape))}"
        what += ", and backward" if training else ""
        ratio = round(now / min(times.values()), 2)
        rows.append({"what": what, "before": times, "now": round(now, 2), "ratio": ratio, "bar": "<= 1.0 x the better"})
    return rows


def coco_query() -> Row:
    """One query of COCO's size and one row of the table: features to classes."""
    generator = torch.Generator().manual_seed(0)
    classifier = Classifier(torch.randn(81, CHANNELS, generator=generator) / 20, torch.zeros(81))
    features = torch.randn(CHANNELS, 60, 60, generator=generator).relu().half()
    query = Query("", features, np.zeros((480, 640), np.uint8), Canvas(473), (480, 640))

    def together() -> np.ndarray:
        with torch.no_grad():
            scores = products(classifier(features.float()[None]), (473, 473))
            return scores_at_pixels(scores, query.canvas, (480, 640))[0].argmax(0).byte().numpy()

    predict = predictor_of(classifier)
    return row("one COCO query and row, 81 classes, 480 x 640", together, lambda: predict(query), "<= 200 ms", np.array_equal)


def confusions() -> Row:
    """The confusion matrix of one image of 512 x 512 with 21 classes."""
    label, prediction = np.random.default_rng(0).integers(0, 21, (2, 512, 512), dtype=np.uint8)
    label[:40] = 255

    def counted() -> np.ndarray:
        use = (label != 255) & (prediction != 255)
        return np.bincount(label[use].astype(np.int64) * 21 + prediction[use], minlength=21 * 21).reshape(21, 21)

    return row("confusion matrix, 512 x 512", counted, lambda: confusion(prediction, label, 21), "<= 0.4 ms", np.array_equal)


# ------------------------------------------------------------------------------------------------ regions
def squares(count: int, size: int) -> np.ndarray:
    """A label uint8 (size, size) of exactly `count` regions: small rectangles of six classes that do not touch."""
    rng, side = np.random.default_rng(0), int(np.ceil(count**0.5))
    label, pitch = np.zeros((size, size), np.uint8), size // side
    for index in range(count):
        y, x = index // side * pitch, index % side * pitch
        height, width = rng.integers(pitch // 2, pitch, 2)
        label[y : y + height, x : x + width] = rng.integers(1, 7)
    return label


def pooling(count: int, size: int, bar: str) -> Row:
    """Region sums of features at stride 8, and the memory that they take at most."""
    regions, grid = find_components(squares(count, size)).map, size // STRIDE
    features = np.random.default_rng(1).random((CHANNELS, grid, grid), dtype=np.float32)

    def dense() -> np.ndarray:
        share = region_occupancy(regions, count, (grid, grid)).reshape(count, -1)
        return (features.reshape(CHANNELS, -1) @ share.T).T * np.float32(STRIDE**2)

    found = row(f"region sums, {size} x {size}, {count} regions", dense, lambda: pool(features, regions, count), bar, close)
    tracemalloc.start()
    pool(features, regions, count)
    found["mib"] = round(tracemalloc.get_traced_memory()[1] / 2**20, 1)
    tracemalloc.stop()
    return found


def refinement(count: int) -> list[Row]:
    """SABR with one SAM mask per component, each a pixel beside it; and what reading the masks once takes."""
    label, settings = squares(count, 512), {"band_width": 5, "min_agreement": 0.3}
    found = find_components(label)
    masks = np.zeros((count, 512, 512), bool)
    for index, mask in enumerate(masks):
        mask[:] = np.roll(found.map == index + 1, 1, 1)
    ious = np.random.default_rng(2).uniform(0.7, 1, count).astype(np.float32)

    def whole_frames() -> np.ndarray:
        withdrawn, claimed, accepted = np.zeros(label.shape, bool), np.zeros_like(label), []
        for index, (x0, y0, x1, y1) in enumerate(found.box.astype(int)):
            own, mask = found.map[y0:y1, x0:x1] == index + 1, masks[index, y0:y1, x0:x1]
            common = np.count_nonzero(own & mask)
            union = found.area[index] + np.count_nonzero(masks[index]) - common
            accepted.append(np.float32(common / union) >= settings["min_agreement"])
            if accepted[-1]:
                withdrawn[y0:y1, x0:x1] |= own & ~mask
        for index in np.lexsort((-found.class_index, ious)):
            if accepted[index]:
                np.copyto(claimed, np.uint8(found.class_index[index]), where=masks[index])
        free, refined = boundary_band(label, 5), label.copy()
        refined[free & (claimed > 0)] = claimed[free & (claimed > 0)]
        given_back = free & withdrawn & (claimed == 0)
        window = np.ones((11, 11), np.uint8)
        high, low = cv2.dilate(label, window), cv2.erode(np.where(label == 0, np.uint8(255), label), window)
        refined[given_back] = np.where(high != low, 255, 0)[given_back]
        return refined

    def now() -> np.ndarray:
        return refine_boundary(label, find_components(label), masks, ious, **settings).label

    once = row(
        f"of which reading {masks.nbytes / 2**20:.0f} MiB of masks once",
        lambda: [int(np.count_nonzero(mask)) for mask in masks],
        lambda: [int(cv2.sumElems(mask)[0]) for mask in masks.view(np.uint8)],
        "none",
        lambda a, b: a == b,
    )
    return [row(f"SABR, 512 x 512, {count} components", whole_frames, now, "<= 60 ms", np.array_equal), once]


# ------------------------------------------------------------------------------------------------ files
def colours() -> list[Row]:
    """The order of colours alone, and with the PNG around it, 512 x 512."""
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), (512, 512))
    data = encode_image(pixels)

    def encoded() -> bytes:
        return cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()

    def decoded() -> np.ndarray:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert found is not None
        return np.ascontiguousarray(found[..., ::-1])

    def sliced() -> np.ndarray:
        return np.ascontiguousarray(pixels[..., ::-1])

    def swapped() -> np.ndarray:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)

    return [
        row("order of colours, 512 x 512", sliced, swapped, "0.05 ms", np.array_equal),
        row("encode_image, 512 x 512 x 3", encoded, lambda: encode_image(pixels), "none", lambda a, b: a == b),
        row("decode_image, 512 x 512 x 3", decoded, lambda: decode_image(data), "none", np.array_equal),
    ]


def main() -> None:
    """Measures everything on one thread, prints a table and writes the dated result."""
    one_thread()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = [*upsampling(), coco_query(), confusions(), pooling(18, 512, "<= 40 ms"), pooling(4442, 512, "<= 40 ms")]
    rows += [pooling(4442, 1024, "<= 150 ms and 200 MiB"), *refinement(2019), *colours()]
    result = machine() | {"threads": 1, "torch": torch.__version__, "opencv": cv2.__version__, "cpu_ms": rows}
    print(f"{'what':62} {'before':>9} {'now':>9} {'ratio':>6}  bar")
    for one in rows:
        before = min(one["before"].values()) if isinstance(one["before"], dict) else one["before"]
        print(f"{one['what']:62} {before:9.2f} {one['now']:9.2f} {one['ratio']:6.2f}  {one['bar']} {one.get('mib', '')}")
    write("kernels", result)


if __name__ == "__main__":
    main()
