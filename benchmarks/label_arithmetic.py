"""APF, APR and SABR on one image without their networks, one thread: milliseconds, and the ratio to the plain loop.

Claim: under 15 ms for a 512 x 512 image with 512 feature channels at stride 8, 20 times faster than the loop, and the
same labels. The loop is what one writes first: features upsampled to pixels, one boolean mask per region, a softmax
over all pixels, one dilation per class, SAM masks compared frame by frame. Both read the same made-up image: 20
ellipses of six classes, a draft with wrong and ragged regions, a SAM mask per component that is a few pixels off.
Times are the thread's CPU time (on an idle machine, wall time): the median, and the best, which load blurs least.

    python benchmarks/label_arithmetic.py       # writes benchmarks/results/DATE-label-arithmetic.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from record import machine, one_thread, write
from scipy import ndimage

from syn4seg.labeling.components import Components, find_components
from syn4seg.labeling.filtering import Filtered, filter_regions
from syn4seg.labeling.prototypes import normalize
from syn4seg.labeling.refinement import Refined, refine_boundary
from syn4seg.labeling.relabeling import Relabeled, relabel

SIZES, REPEATS, LOOP_REPEATS = (512, 1024), 60, 3
CHANNELS, STRIDE = 512, 8
BASE, NOVEL, TARGET = (1, 2, 3), (4, 5, 6), 5
FILTER: dict[str, Any] = dict(target=TARGET, novel=NOVEL, lambda_keep=0.75, min_region=40, tau_base=0.3, tau_background=0.12)
RELABEL: dict[str, Any] = dict(target=TARGET, beta=0.5, tau=0.1, theta=0.45, lambda_keep=0.75)
REFINE: dict[str, Any] = dict(band_width=5, min_agreement=0.5)


@dataclass(frozen=True)
class Scene:
    """One made-up image: draft and confidence (H, W), features (D, h, w) and the global prototypes."""

    draft: np.ndarray
    confidence: np.ndarray
    features: np.ndarray
    prototypes: dict[int, np.ndarray]


# ------------------------------------------------------------------------------------------------ the image
def smooth(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """float32 (size, size), random values in [0, 1] on a coarse grid, interpolated."""
    coarse = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def make_scene(size: int) -> Scene:
    """Draws the ellipses, lets the draft be wrong about some, and builds features that follow the truth."""
    rng = np.random.default_rng(7)
    truth = np.zeros((size, size), np.uint8)
    for index in rng.permutation(np.resize(BASE + NOVEL, 20)):
        centre, axes = (size * rng.uniform(0.08, 0.92, 2)).astype(int), (size * rng.uniform(0.04, 0.13, 2)).astype(int)
        cv2.ellipse(truth, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, int(index), -1)
    rows, columns = np.indices(truth.shape, np.float32)
    wobble = [(smooth(rng, size, size // 16) - 0.5) * size * 0.03 for _ in range(2)]
    draft = cv2.remap(truth, columns + wobble[0], rows + wobble[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    for index in rng.permutation(np.resize((TARGET, 2, 4), 5)):  # regions that are not there
        centre = (size * rng.uniform(0.1, 0.9, 2)).astype(int)
        cv2.circle(draft, centre.tolist(), int(size * 0.03), int(index), -1)
    prototypes = np.maximum(rng.normal(0.1, 1, (7, CHANNELS)), 0).astype(np.float32)
    h = size // STRIDE
    cells = prototypes[truth[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]]
    noise = np.stack([smooth(rng, h, h // 4) for _ in range(CHANNELS)], 2)
    features = np.ascontiguousarray(np.maximum(cells + 2.4 * (noise - 0.5), 0).transpose(2, 0, 1), np.float32)
    return Scene(draft, smooth(rng, size, 16), features, dict(enumerate(normalize(prototypes))))


def make_sam_masks(found: Components) -> tuple[np.ndarray, np.ndarray]:
    """SAM's part: every component shifted and rounded by a few pixels, one in six another shape; predicted IoUs."""
    rng, masks = np.random.default_rng(11), np.zeros((len(found.area), *found.map.shape), bool)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    for row, mask in enumerate(masks):
        own = cv2.morphologyEx((found.map == row + 1).astype(np.uint8), cv2.MORPH_CLOSE, disc)
        change = (cv2.dilate, cv2.erode)[row % 2]
        by = 15 if row % 6 == 5 else 3
        mask[:] = np.roll(change(own, np.ones((by, by), np.uint8)), rng.integers(-2, 3, 2), (0, 1)) > 0
    return masks, rng.uniform(0.7, 1.0, len(masks)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- the loop
def loop_filter(scene: Scene) -> tuple[np.ndarray, list[tuple[int, int, float, str]]]:
    """APF: kept label and (class, area, similarity, why) per region."""
    pixels = scene.features.repeat(STRIDE, 1).repeat(STRIDE, 2)
    kept, records = scene.draft.copy(), []
    for index in np.unique(scene.draft[scene.draft > 0]).tolist():
        labelled: Any = ndimage.label(scene.draft == index, np.ones((3, 3)))
        ids, count = labelled
        for r in range(1, count + 1):
            region = ids == r
            area, mean = int(region.sum()), pixels[:, region].mean(1)
            similarity = float(mean / np.linalg.norm(mean) @ scene.prototypes[index])
            why = ""
            if index == TARGET:
                why = "similarity" if similarity < FILTER["lambda_keep"] else ""
                why = "area" if not why and area < FILTER["min_region"] else why
            elif index in NOVEL:
                why = "other_novel"
            if why:
                kept[region] = 255
            elif index in BASE:
                kept[region & (scene.confidence < FILTER["tau_base"])] = 255
                why = "" if (kept[region] == index).any() else "confidence"
            records.append((index, area, similarity, why))
    kept[(scene.draft == 0) & (scene.confidence < FILTER["tau_background"])] = 255
    return kept, records


def loop_relabel(kept: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """APR: label, and per pixel how far its decision was from another one."""
    pixels = scene.features.repeat(STRIDE, 1).repeat(STRIDE, 2)
    classes = sorted({0, TARGET, *np.unique(kept).tolist()} - {255})
    side = 2 * STRIDE + 1
    near = cv2.dilate((kept != 0).astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    adapted = []
    for index in classes:
        region = (kept == 0) & ~near if index == 0 else kept == index
        prototype = scene.prototypes[index]
        if region.any():
            local = pixels[:, region].mean(1)
            prototype = RELABEL["beta"] * prototype + (1 - RELABEL["beta"]) * local / np.linalg.norm(local)
        adapted.append(prototype / np.linalg.norm(prototype))
    units = scene.features / np.maximum(np.linalg.norm(scene.features, axis=0), 1e-12)
    for channel, unit in enumerate(units):
        pixels[channel] = cv2.resize(unit, kept.shape[::-1], interpolation=cv2.INTER_LINEAR)
    cosine = np.stack([np.einsum("dhw,d->hw", pixels, prototype) for prototype in adapted])
    odds = np.exp(cosine / RELABEL["tau"])
    odds /= odds.sum(0)
    winner, confidence = np.array(classes, np.uint8)[cosine.argmax(0)], odds.max(0)
    best = np.sort(cosine, 0)
    slack = np.minimum(np.abs(confidence - RELABEL["theta"]), best[-1] - best[-2])
    return np.where((kept == 255) & (confidence >= RELABEL["theta"]), winner, kept), slack


def loop_refine(label: np.ndarray, masks: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """SABR: the refined label. Components are numbered by `components`, so that they fit the masks."""
    found = find_components(label)
    width = REFINE["band_width"]
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    reach = {k: cv2.dilate((label == k).astype(np.uint8), window) > 0 for k in np.unique(label).tolist()}
    free = label == 255
    for index, near in reach.items():
        free |= near & (label != index)
    meeting = np.sum([near for index, near in reach.items() if index not in (0, 255)], 0) > 1
    claimed, strength = np.zeros_like(label), np.full(label.shape, -1.0, np.float32)
    given_back = np.zeros(label.shape, bool)
    for row, mask in enumerate(masks):
        own = found.map == row + 1
        if (own & mask).sum() / (own | mask).sum() < REFINE["min_agreement"]:
            continue
        wins = mask & (ious[row] > strength)  # ascending classes: an equal one never takes over
        claimed[wins], strength[wins] = found.class_index[row], ious[row]
        given_back |= own & ~mask
    refined = label.copy()
    refined[free & given_back] = np.where(meeting, 255, 0)[free & given_back]
    refined[free & (claimed > 0)] = claimed[free & (claimed > 0)]
    return refined


# -------------------------------------------------------------------------------------------------- measuring
def milliseconds(function: Callable[[], Any], repeats: int) -> tuple[tuple[float, float], Any]:
    """CPU time of a call in this thread, (median, best) after one that is not counted, and its value."""
    value, times = function(), []
    for _ in range(repeats):
        started = time.thread_time()
        function()
        times.append(1000 * (time.thread_time() - started))
    return (statistics.median(times), min(times)), value


def total(times: dict[str, tuple[float, float]], which: int) -> dict[str, float]:
    """Median (0) or best (1) milliseconds per step, and their sum as "all"."""
    steps = {step: round(pair[which], 2) for step, pair in times.items()}
    return steps | {"all": round(sum(steps.values()), 2)}


def measure(size: int) -> dict[str, Any]:
    """Times the three steps both ways on one image and checks that they agree."""
    scene = make_scene(size)
    filtered: Filtered
    relabeled: Relabeled
    refined: Refined
    fast, slow = {}, {}
    fast["APF"], filtered = milliseconds(
        lambda: filter_regions(scene.draft, scene.features, scene.prototypes, confidence=scene.confidence, **FILTER), REPEATS
    )
    fast["APR"], relabeled = milliseconds(
        lambda: relabel(filtered.kept, scene.features, prototypes=scene.prototypes, **RELABEL), REPEATS
    )
    masks, ious = make_sam_masks(find_components(relabeled.label))
    fast["SABR"], refined = milliseconds(
        lambda: refine_boundary(relabeled.label, find_components(relabeled.label), masks, ious, **REFINE), REPEATS
    )
    slow["APF"], (kept, records) = milliseconds(lambda: loop_filter(scene), LOOP_REPEATS)
    slow["APR"], (label, slack) = milliseconds(lambda: loop_relabel(filtered.kept, scene), LOOP_REPEATS)
    slow["SABR"], redrawn = milliseconds(lambda: loop_refine(relabeled.label, masks, ious), LOOP_REPEATS)

    assert (kept == filtered.kept).all(), "APF differs from the loop"
    told = [(r.class_index, r.area, round(r.similarity, 3), r.why) for r in filtered.regions]
    assert sorted(told) == sorted((k, a, round(s, 3), w) for k, a, s, w in records), "APF's record differs"
    differs = label != relabeled.label
    assert not (differs & (slack > 1e-5)).any(), "APR differs from the loop beyond rounding"
    assert (redrawn == refined.label).all(), "SABR differs from the loop"
    return {
        "size": size,
        "regions": len(filtered.regions),
        "components": len(masks),
        "free_share": round(float((filtered.kept == 255).mean()), 3),
        "relabeled": relabeled.changed,
        "refined": refined.changed,
        "masks_ignored": int((~refined.accepted).sum()),
        "ms": total(fast, 0),
        "best_ms": total(fast, 1),
        "loop_ms": total(slow, 0),
        "loop_best_ms": total(slow, 1),
        "ratio": {k: round(v / total(fast, 0)[k], 1) for k, v in total(slow, 0).items()},
        "pixels_that_differ": int(differs.sum()),
    }


def main() -> None:
    """Measures every size on one thread, prints a table and writes the dated result."""
    one_thread()
    cv2.setNumThreads(1)
    result = machine() | {
        "threads": 1,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "channels": CHANNELS,
        "stride": STRIDE,
        "images": [measure(size) for size in SIZES],
    }
    print(f"{'size':>5} {'step':>5} {'ms':>8} {'best':>8} {'loop ms':>10} {'ratio':>7}")
    for image in result["images"]:
        for step, median in image["ms"].items():
            loop = f"{image['loop_ms'][step]:10.1f} {image['ratio'][step]:7.1f}"
            print(f"{image['size']:5} {step:>5} {median:8.2f} {image['best_ms'][step]:8.2f} {loop}")
    write("label-arithmetic", result)


if __name__ == "__main__":
    main()
