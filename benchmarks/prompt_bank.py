"""De-duplicates 100,000 candidate prompts of 2,048 numbers into a bank of 5,000: seconds, memory, ratio to the loop.

Claim: under 60 s and 2 GiB on two cores, with the answer of the one-by-one loop. The candidates imitate CLIP's pooled
embeddings: a common direction, words that sentences share, and noise, so that the bank is full only near the end and
most candidates have a nearest cosine between 0.75 and 0.9. On a machine that is doing something else, CPU seconds with
OMP_NUM_THREADS=1 are the figure to compare: two threads spin while they wait for a core.

    python benchmarks/prompt_bank.py            # writes benchmarks/results/DATE-prompt-bank.json
"""

from __future__ import annotations

import json
import os
import resource
import time

import numpy as np
from record import machine, write

from syn4seg.prompts.bank import accept_in_order, diversity

CANDIDATES, WIDTH, BANK, LAMBDA = 100_000, 2048, 5_000, 0.79
LOOP_CANDIDATES = 8_000


def sentences(count: int) -> np.ndarray:
    """float32 (count, WIDTH) unit rows: six words out of six lists of forty, a common direction and a little noise."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(6, 40, WIDTH)).astype(np.float32)
    common = 3.0 * rng.normal(size=WIDTH).astype(np.float32)
    rows = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 2000):
        part = rows[start : start + 2000]
        rng.standard_normal(dtype=np.float32, out=part)
        part *= 0.25
        part += common
        for chosen in words:
            part += chosen[(40 * rng.random(len(part)) ** 3).astype(int)]  # some words are far more common
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def loop(candidates: np.ndarray, threshold: float, limit: int) -> list[int]:
    """The definition, one candidate after another: a matrix-vector product against the bank for each."""
    bank, accepted = np.empty((limit, WIDTH), np.float32), []
    for i, row in enumerate(candidates):
        if not accepted or float((bank[: len(accepted)] @ row).max()) < threshold:
            bank[len(accepted)] = row
            accepted.append(i)
            if len(accepted) == limit:
                break
    return accepted


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Runs the three measurements and writes the dated result."""
    about = machine()
    rows = sentences(CANDIDATES)
    data_mib, nothing = peak_mib(), rows[:0]
    started, cpu = time.perf_counter(), time.process_time()
    decisions = accept_in_order(rows, nothing, LAMBDA, BANK)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    few = rows[:LOOP_CANDIDATES]
    cpu = time.process_time()
    blocked = accept_in_order(few, nothing, LAMBDA, BANK).accepted
    blocked_cpu, cpu = time.process_time() - cpu, time.process_time()
    one_by_one = loop(few, LAMBDA, BANK)
    loop_cpu = time.process_time() - cpu
    assert blocked.tolist() == one_by_one, "the blocked decisions differ from the loop's"
    peak, quantiles = peak_mib(), np.quantile(decisions.similarity[1:], (0.05, 0.5, 0.95)).round(3).tolist()
    result = about | {
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "numpy": np.__version__,
        "candidates": CANDIDATES,
        "width": WIDTH,
        "lambda_prompt": LAMBDA,
        "examined": len(decisions.similarity),
        "accepted": len(decisions.accepted),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mib": round(peak),
        "candidates_mib": round(data_mib),
        "loop": {
            "candidates": LOOP_CANDIDATES,
            "accepted": len(one_by_one),
            "loop_cpu_seconds": round(loop_cpu, 2),
            "blocked_cpu_seconds": round(blocked_cpu, 2),
            "ratio": round(loop_cpu / blocked_cpu, 1),
            "same decisions": True,
        },
        "similarity_quantiles": dict(zip(("5 %", "50 %", "95 %"), quantiles, strict=True)),
        "diversity_of_the_bank": {k: round(v, 3) for k, v in diversity(rows[decisions.accepted]).items()},
    }
    print(json.dumps(result, indent=1))
    write("prompt-bank", result)


if __name__ == "__main__":
    main()
