"""The prompt bank of HDIG: greedy de-duplication of candidates by text embedding, exact and blocked, and its diversity.

A candidate is accepted iff its largest cosine to what was accepted before it is below `lambda_prompt` (method.md
section 1). `accept_in_order` decides a block of candidates with two matrix products and gives the answer of the
one-by-one loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from syn4seg.errors import UserError
from syn4seg.prompts.english import mentions
from syn4seg.prompts.protocol import PromptAgent

EMPTY, REPEATED, TOO_LONG, OFF_CLASS, NEAR = "empty", "same text", "too long", "off class", "near duplicate"
"""Why a candidate was refused: no words, a text seen before, over `LONGEST`, class not named, similarity >= lambda_prompt."""
LONGEST = 300
"""Characters of a prompt; text encoders cut off what is far longer."""


class Decisions(NamedTuple):
    """What `accept_in_order` decided about the first M candidates (all of them, unless `limit` was reached)."""

    accepted: np.ndarray
    """int64 (A,): candidates accepted, ascending."""
    similarity: np.ndarray
    """float32 (M,): largest cosine to what was accepted before; -inf where that was nothing."""
    nearest: np.ndarray
    """int64 (M,): row of that nearest one in the bank followed by the accepted ones; -1 where there was none."""


def accept_in_order(candidates: np.ndarray, bank: np.ndarray, lambda_prompt: float, limit: int, block: int = 256) -> Decisions:
    """De-duplicate greedily in order of proposal: s = max over accepted u of u . phi(p), accepted iff s < lambda.

    A candidate nearer to the threshold than float32 can resolve is decided in float64, so neither the block size nor
    the linear-algebra library has a say in what is accepted.

    Args:
        candidates: float32 (N, E), L2-normalised rows, in order of proposal.
        bank: float32 (K, E), L2-normalised rows accepted earlier; K may be 0, then the first candidate is accepted.
        lambda_prompt: threshold on the cosine.
        limit: stop after this many acceptances.
        block: candidates per matrix product; a matter of speed and memory only.

    Raises:
        UserError: shapes that do not fit, or a row that is not of unit length (nan included).
    """
    if candidates.ndim != 2 or bank.ndim != 2 or candidates.shape[1] != bank.shape[1]:
        raise UserError(
            f"embeddings have shapes {candidates.shape} and {bank.shape} (bank); expected (N, E) and (K, E) from one text encoder"
        )
    accepted_rows = np.empty((len(bank) + min(limit, len(candidates)), bank.shape[1]), np.float32)
    accepted_rows[: len(bank)] = bank
    count, accepted, similarity, nearest = len(bank), [], [], []
    for start in range(0, len(candidates), block):
        if count == len(accepted_rows):
            break
        part = candidates[start : start + block]
        _check_unit(part, start)
        inside, best, where = _decide_block(part, accepted_rows[:count], lambda_prompt, len(accepted_rows) - count)
        accepted_rows[count : count + len(inside)] = part[inside]
        count += len(inside)
        accepted += [start + i for i in inside]
        similarity.append(best)
        nearest.append(where)
    if not similarity:
        return Decisions(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    return Decisions(np.array(accepted, np.int64), np.concatenate(similarity), np.concatenate(nearest))


def _check_unit(part: np.ndarray, start: int) -> None:
    lengths = np.sqrt(np.einsum("ij,ij->i", part, part))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
    if len(wrong):
        raise UserError(
            f"embedding of candidate {start + wrong[0]} has length {lengths[wrong[0]]}; expected 1: "
            "normalise with `unit_rows` first (nan or 0 means that the text encoder failed)"
        )


def _decide_block(
    part: np.ndarray, accepted_rows: np.ndarray, threshold: float, room: int
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return accepted rows of `part` in order, then similarity and nearest of every row up to the last one examined."""
    size, rounding = len(part), part.shape[1] * 2.0**-24  # bound on a float32 dot product of unit vectors
    outer, inner = part @ accepted_rows.T, part @ part.T
    best, nearest = np.full(size, -np.inf, np.float32), np.full(size, -1, np.int64)
    if len(accepted_rows):
        nearest = outer.argmax(1)
        best = outer[np.arange(size), nearest]
    inside: list[int] = []
    for i in range(size):
        similarity = float(best[i])
        if abs(similarity - threshold) <= rounding:
            near_bank = accepted_rows[outer[i] >= similarity - 2 * rounding]
            near_inside = part[[j for j in inside if inner[i, j] >= similarity - 2 * rounding]]
            exact = np.concatenate([near_bank, near_inside]).astype(np.float64) @ part[i].astype(np.float64)
            similarity = float(exact.max())
            best[i] = similarity
        if similarity < threshold or math.isinf(similarity):
            closer = inner[i + 1 :, i] > best[i + 1 :]
            best[i + 1 :][closer] = inner[i + 1 :, i][closer]
            nearest[i + 1 :][closer] = len(accepted_rows) + len(inside)
            inside.append(i)
            if len(inside) == room:
                return inside, best[: i + 1], nearest[: i + 1]
    return inside, best, nearest


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Return phi~: rows of (N, E) divided by their L2 norm, float32; a zero row stays zero."""
    wide = embeddings.astype(np.float64)
    return (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)).astype(np.float32)


@dataclass(frozen=True)
class Candidate:
    """One proposed prompt and what became of it.

    Attributes:
        text: the prompt as proposed.
        order: 0, 1, 2... over all candidates of the class.
        similarity: largest cosine to what was accepted before; None where nothing was compared.
        nearest: text of that nearest accepted prompt; "" where nothing was compared.
        why: "" if accepted, else the reason of the refusal.
    """

    text: str
    order: int
    similarity: float | None
    nearest: str
    why: str


@dataclass(frozen=True)
class Bank:
    """The prompts of one class: accepted ones in order with their embeddings float32 (K, E), and the refused ones.

    `stopped` says why no more were asked for; `warning` is "" unless the bank is shorter than was wanted.
    """

    class_name: str
    accepted: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]
    embeddings: np.ndarray
    stopped: Literal["size", "patience"]
    warning: str

    @property
    def acceptance_rate(self) -> float:
        """Share of the judged candidates that were accepted; 0 if there was none."""
        return len(self.accepted) / max(1, len(self.accepted) + len(self.refused))


def build_bank(
    agent: PromptAgent,
    encode: Callable[[list[str]], np.ndarray],
    class_name: str,
    *,
    size: int,
    lambda_prompt: float,
    patience: int,
    synonyms: Sequence[str] = (),
    cut_at: Callable[[list[str]], list[int]] | None = None,
) -> Bank:
    """Ask the agent for rounds of prompts until `size` are accepted, or `patience` candidates in a row were not.

    An empty, repeated, overlong or off-class prompt is refused without being encoded; an empty round costs one unit of patience.

    Args:
        encode: texts -> float32 (N, E), L2-normalised (see `unit_rows`).
        lambda_prompt: a prompt whose similarity is below this is accepted; the first one always is.
        synonyms: other names for the class; a prompt that has one of them is on class.
        cut_at: texts -> for each 0, or the tokens after which the encoder does not read on: such a text is not blamed for what it
            has in common with another one up to there, but for its length.

    Raises:
        UserError: `size`, `patience` or `lambda_prompt` out of range, or an embedding that is not of unit length.
    """
    if size < 1 or patience < 1 or not -1 < lambda_prompt <= 1:
        raise UserError(
            f"size is {size}, patience {patience}, lambda_prompt {lambda_prompt}; expected size >= 1, "
            "patience >= 1 and lambda_prompt, a cosine, in (-1, 1]"
        )
    accepted: list[Candidate] = []
    refused: list[Candidate] = []
    seen: set[str] = set()
    vectors: list[np.ndarray] = []
    idle, rounds = 0, 0
    while len(accepted) < size and idle < patience:
        texts = agent.propose(class_name, rounds, [c.text for c in accepted], [(c.text, c.why) for c in refused])
        unread = [refusal_before_encoding(text, class_name, seen, synonyms) for text in texts]
        verdicts = judge(texts, unread, encode, vectors, lambda_prompt, size - len(accepted))
        for text, (verdict, similarity, nearest, vector) in zip(texts, verdicts, strict=False):
            why = verdict
            if why == NEAR and cut_at is not None and (limit := cut_at([text])[0]):
                why = f"cut at {limit} tokens"
            order, near = len(accepted) + len(refused), accepted[nearest].text if nearest >= 0 else ""
            candidate = Candidate(text, order, similarity if nearest >= 0 else None, near, why)
            (refused if why else accepted).append(candidate)
            vectors += [] if why else [vector]
            idle = idle + 1 if why else 0
            if len(accepted) == size or idle == patience:
                break
        idle += not texts
        rounds += 1
    stopped = "size" if len(accepted) == size else "patience"
    warning = "" if stopped == "size" else _shortfall(class_name, accepted, refused, size, lambda_prompt, patience)
    embeddings = np.stack(vectors) if vectors else np.empty((0, 0), np.float32)
    return Bank(class_name, tuple(accepted), tuple(refused), embeddings, stopped, warning)


def judge(
    texts: list[str],
    unread: list[str],
    encode: Callable[[list[str]], np.ndarray],
    accepted_rows: list[np.ndarray],
    lambda_prompt: float,
    room: int,
) -> list[tuple[str, float, int, np.ndarray]]:
    """Return (why, similarity, nearest, embedding) of each text of a round, up to the one that fills the bank.

    Args:
        unread: `refusal_before_encoding` of each text; only texts without a reason are encoded.
        accepted_rows: embeddings of what was accepted before.
        room: how many may still be accepted.
    """
    fresh = [text for text, why in zip(texts, unread, strict=True) if not why]
    vectors = encode(fresh) if fresh else np.empty((0, 1), np.float32)
    assert len(vectors) == len(fresh), "encode must return one row per text"
    bank = np.stack(accepted_rows) if accepted_rows and fresh else vectors[:0]
    accepted, similarity, nearest = accept_in_order(vectors, bank, lambda_prompt, room)
    taken, verdicts, row = set(accepted.tolist()), [], 0
    for why in unread:
        if why:
            verdicts.append((why, -math.inf, -1, vectors[:0]))
        elif row < len(similarity):
            verdicts.append(("" if row in taken else NEAR, float(similarity[row]), int(nearest[row]), vectors[row]))
            row += 1
        else:
            break
    return verdicts


def refusal_before_encoding(text: str, class_name: str, seen: set[str], synonyms: Sequence[str] = ()) -> str:
    """Return why a text is not worth encoding, or "", and remember the text. Without a class name nothing is off class.

    Args:
        synonyms: other names for the class, as good as its name.
    """
    key = " ".join(text.lower().split()).rstrip(" .")
    if not key:
        return EMPTY
    if key in seen:
        return REPEATED
    seen.add(key)
    if len(text) > LONGEST:
        return TOO_LONG
    return "" if not class_name or any(mentions(text, name) for name in (class_name, *synonyms)) else OFF_CLASS


def _shortfall(
    class_name: str, accepted: list[Candidate], refused: list[Candidate], size: int, lambda_prompt: float, patience: int
) -> str:
    counts = Counter(c.why for c in refused)
    causes = ", ".join(f"{n} {why}" for why, n in counts.most_common()) or "the agent proposed nothing"
    remedy = "use another agent"
    if counts[NEAR]:
        remedy = f"raise lambda_prompt above {lambda_prompt:g} or {remedy}"
    return (
        f"class {class_name!r}: {len(accepted)} of {size} prompts; stopped after {patience} candidates without an "
        f"acceptance (refused: {causes}); {remedy}"
    )


def diversity(embeddings: np.ndarray) -> dict[str, float]:
    """Return how different the prompts of a bank are from each other.

    Args:
        embeddings: float32 (N, E), L2-normalised rows, N >= 1.

    Returns:
        `mean_cosine` and `max_cosine` over the pairs (nan if N = 1), and `vendi`: the effective number of different
        prompts, exp of the entropy of the eigenvalues of X X^T / N (Friedman and Dieng, 2023), in [1, N].
    """
    count = len(embeddings)
    if count == 0:
        raise UserError("diversity of an empty bank is undefined; expected at least one embedding")
    wide = embeddings.astype(np.float64)
    gram = wide @ wide.T if count <= wide.shape[1] else wide.T @ wide
    shares = np.linalg.eigvalsh(gram / count)
    shares = shares[shares > 1e-12]
    vendi = math.exp(-float((shares * np.log(shares)).sum()))
    if count == 1:
        return {"mean_cosine": math.nan, "max_cosine": math.nan, "vendi": vendi}
    pairs = count * (count - 1)
    mean = (float(np.square(wide.sum(0)).sum()) - float(np.square(wide).sum())) / pairs
    highest = -math.inf
    for start in range(0, count, 512):
        cosines = embeddings[start : start + 512] @ embeddings[start:].T
        cosines[np.tril_indices(len(cosines))] = -np.inf
        highest = max(highest, float(cosines.max()))
    return {"mean_cosine": mean, "max_cosine": highest, "vendi": vendi}
