"""Text embeddings and their file: rows come back to the bit, in the order that is asked for, and errors say what to do."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from syn4seg.errors import UserError
from syn4seg.models.embeddings import EmbeddingStore, Encoded, concatenate, save_embeddings


def encoded(count: int, seed: int = 0, half: bool = False, masked: bool = False) -> Encoded:
    rng = np.random.default_rng(seed)
    shapes = ((count, 6), (count, 3, 4), (1, 6), (1, 2, 4), *(((count, 3), (1, 2)) if masked else ()))
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return Encoded(*((np.round(a * 4) / 4 if half else a) for a in arrays))  # quarters fit into bfloat16


def same(a: Encoded, b: Encoded) -> bool:
    pairs = list(zip(vars(a).values(), vars(b).values(), strict=True))
    return all((x is None and y is None) or (np.array_equal(x, y) and x.dtype == y.dtype == np.float32) for x, y in pairs)


@pytest.mark.parametrize(("half", "masked"), [(False, False), (True, True)])
def test_every_row_comes_back_to_the_bit_in_any_order_with_repeats(tmp_path, half, masked):
    whole = encoded(5, half=half, masked=masked)
    save_embeddings(tmp_path / "e.safetensors", whole)
    store = EmbeddingStore(tmp_path / "e.safetensors")
    assert len(store) == len(whole) == 5
    for rows in (range(5), [4, 0, 4], [2], []):
        assert same(store.rows(list(rows)), whole.rows(list(rows)))
        assert np.array_equal(store.pooled(list(rows)), whole.pooled[list(rows)])


def test_numbers_that_lose_nothing_are_kept_in_half_the_room(tmp_path):
    for half in (False, True):
        save_embeddings(tmp_path / f"{half}.safetensors", encoded(400, half=half))
    assert (tmp_path / "True.safetensors").stat().st_size < 0.6 * (tmp_path / "False.safetensors").stat().st_size


def test_parts_are_put_behind_each_other(tmp_path):
    one, two = encoded(2, 1), encoded(3, 2)
    both = concatenate([one, two])
    assert len(both) == 5 and np.array_equal(both.pooled[2:], two.pooled) and np.array_equal(both.sequence[:2], one.sequence)
    assert np.array_equal(both.empty_pooled, one.empty_pooled)


def test_a_store_travels_to_another_process_and_reads_there(tmp_path):
    save_embeddings(tmp_path / "e.safetensors", whole := encoded(3))
    assert same(pickle.loads(pickle.dumps(EmbeddingStore(tmp_path / "e.safetensors"))).rows([1]), whole.rows([1]))


def test_rows_that_are_not_there_are_refused_with_those_that_are(tmp_path):
    save_embeddings(tmp_path / "e.safetensors", encoded(3))
    store = EmbeddingStore(tmp_path / "e.safetensors")
    for rows in ([3], [-1], [0, 7]):
        with pytest.raises(UserError, match="they are 0 to 2; the plan and this file are of different runs"):
            store.rows(rows)


def test_a_file_that_is_none_says_what_to_delete(tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_embeddings(tmp_path / "cut.safetensors", encoded(3))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-9])
    for name in ("text", "cut", "none"):
        with pytest.raises(
            UserError, match=rf"{name}\.safetensors cannot be read .*delete the file and, beside it, prompts\.parquet"
        ):
            EmbeddingStore(tmp_path / f"{name}.safetensors")
