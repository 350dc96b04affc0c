"""A bank of prompts that differ from each other, filled by whoever has prompts and their text embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.library.arrays import check_floats, check_number, is_tensor, like_input
from syn4seg.library.progress import Progress, reporting
from syn4seg.prompts.bank import Candidate, judge, refusal_before_encoding, unit_rows

if TYPE_CHECKING:
    from syn4seg.library.arrays import Array


class PromptBank:
    """Prompts that differ from each other: one is accepted if its text embedding is near no prompt accepted before.

    Args:
        lambda_prompt: a prompt whose largest cosine to the accepted ones is below this is accepted; the first one always is.
        class_name: refuse prompts that do not name this class.
        synonyms: other names for the class that a prompt may have instead.
        encoder: texts -> embeddings (N, E), any length of rows; not needed by who gives embeddings.

    Attributes:
        accepted, refused: candidates in order, with `text`, `similarity` (None: nothing to compare with), `nearest` accepted
            prompt, and `why` it was refused.

    Source: HDIG, method.md 1; decides as `syn4seg.prompts.bank.build_bank`.
    """

    def __init__(
        self,
        lambda_prompt: float = 0.97,
        *,
        class_name: str = "",
        synonyms: Sequence[str] = (),
        encoder: Callable[[list[str]], Array] | None = None,
    ):
        check_number(lambda_prompt, "lambda_prompt", -1, 1, above=True)
        self.lambda_prompt, self.class_name, self.encoder = lambda_prompt, class_name, encoder
        self.synonyms = tuple(synonyms)
        self.accepted: list[Candidate] = []
        self.refused: list[Candidate] = []
        self._seen: set[str] = set()
        self._vectors: list[np.ndarray] = []
        self._kind: Any = None

    @property
    def prompts(self) -> list[str]:
        """Accepted prompts, in order."""
        return [candidate.text for candidate in self.accepted]

    @property
    def embeddings(self) -> Array:
        """Embeddings of the accepted prompts, float32 (K, E), of length 1."""
        return like_input(np.stack(self._vectors) if self._vectors else np.empty((0, 0), np.float32), self._kind)

    def offer(
        self, prompts: str | Sequence[str], embeddings: Array | None = None, *, batch: int = 1024, progress: Progress = False
    ) -> list[Candidate]:
        """Decide about prompts in their order; return one candidate each, accepted where `why` is empty.

        Args:
            prompts: texts; empty, repeated and overlong ones are refused without being encoded.
            embeddings: (N, E), one row per prompt; None asks the encoder.
            batch: prompts per call of the encoder and of `progress`; no matter for what is accepted.

        Raises:
            ValueError: neither embeddings nor an encoder, not one row per prompt, or a row that is zero or not finite.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"prompts holds {wrong[0]!r}; expected texts")
        if embeddings is None and self.encoder is None:
            raise ValueError("embeddings is missing and the bank has no encoder; give one of them: PromptBank(encoder=...)")
        rows = None if embeddings is None else _rows(embeddings, texts, self._vectors)
        batch, candidates = round(check_number(batch, "batch", 1)), []
        with reporting(progress, "prompts") as report:
            for start in range(0, len(texts), batch):
                part = slice(start, start + batch)
                candidates += self._decide(texts[part], None if rows is None else rows[part])
                self._kind = _kind(embeddings) if self._kind is None else self._kind
                report(len(candidates), len(texts))
        return candidates

    def _decide(self, texts: list[str], rows: np.ndarray | None) -> list[Candidate]:
        seen = set(self._seen)  # kept only once the encoder has not failed
        unread = [refusal_before_encoding(text, self.class_name, seen, self.synonyms) for text in texts]

        def encode(fresh: list[str]) -> np.ndarray:
            if rows is not None:
                return rows[[not why for why in unread]]
            assert self.encoder is not None
            encoded = self.encoder(fresh)
            self._kind = _kind(encoded) if self._kind is None else self._kind
            return _rows(encoded, fresh, self._vectors)

        verdicts = judge(texts, unread, encode, self._vectors, self.lambda_prompt, len(texts))
        self._seen, candidates = seen, []
        for text, (why, similarity, nearest, vector) in zip(texts, verdicts, strict=True):
            near = self.accepted[nearest].text if nearest >= 0 else ""
            order = len(self.accepted) + len(self.refused)
            candidates.append(Candidate(text, order, similarity if nearest >= 0 else None, near, why))
            (self.refused if why else self.accepted).append(candidates[-1])
            self._vectors += [] if why else [vector]
        return candidates


def _kind(embeddings: Any) -> Any:
    """Return an empty array or tensor like these, on their device; a slice of them would keep all of the caller's memory."""
    if embeddings is None:
        return None
    return embeddings.new_empty(0) if is_tensor(embeddings) else np.empty(0)


def _rows(embeddings: Array, texts: Sequence[str], accepted: Sequence[np.ndarray]) -> np.ndarray:
    """Return unit rows float32 (N, E) for N texts, as wide as the accepted ones."""
    if not texts:
        return np.empty((0, len(accepted[0]) if accepted else 1), np.float32)
    rows = check_floats(embeddings, "embeddings", (len(texts), len(accepted[0]) if accepted else "E"))
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not lengths.all():
        raise ValueError(
            f"embeddings: that of {texts[int(np.argmin(lengths))]!r} is zero, so it has no cosine; look at the encoder"
        )
    return unit_rows(rows)
