"""Faulty images, the embedding store, and loading by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.errors import StoreError, UserError
from syn4seg.models import generators
from syn4seg.models.embeddings import EmbeddingStore, Encoded, concatenate, save_embeddings
from syn4seg.models.generators import load_generator, load_text_encoder
from syn4seg.models.images import image_fault, to_uint8
from syn4seg.models.protocols import AuditingGenerator, Speed
from syn4seg.store.tensors import TensorFile


def made_up(seed: int, count: int, exact_in_bfloat16: bool = False) -> Encoded:
    rng = np.random.default_rng(seed)
    shapes = (count, 6), (count, 4, 3), (1, 6), (1, 4, 3)
    if exact_in_bfloat16:
        return Encoded(*(rng.integers(-100, 100, s).astype(np.float32) for s in shapes))
    return Encoded(*(rng.normal(size=s).astype(np.float32) for s in shapes))


def assert_same(a: Encoded, b: Encoded) -> None:
    for name in vars(a):
        left, right = getattr(a, name), getattr(b, name)
        if left is None and right is None:
            continue
        assert left.dtype == right.dtype == np.float32 and left.shape == right.shape
        np.testing.assert_array_equal(left, right)


# ------------------------------------------------------------------------------------------ faulty images
def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((8, 9, 3)).astype(np.float32)


def test_each_fault_is_named_and_a_sound_image_has_none():
    one_nan, infinite = picture(), picture()
    one_nan[3, 4, 1], infinite[0, 0, 0] = np.nan, np.inf
    assert image_fault(picture()) == "" and image_fault((picture() * 255).astype(np.uint8)) == ""
    assert image_fault(one_nan) == image_fault(infinite) == "nan"
    assert image_fault(np.zeros((8, 9, 3), np.float32)) == image_fault(np.full((8, 9, 3), 2, np.uint8)) == "black"
    assert image_fault(np.full((8, 9, 3), 0.4, np.float32)) == image_fault(np.full((8, 9, 3), 255, np.uint8)) == "flat"


def test_a_dim_image_of_one_colour_channel_with_detail_is_sound():
    dim = np.zeros((8, 9, 3), np.uint8)
    dim[:4, :, 2] = 5
    assert image_fault(dim) == ""


def test_quantisation_reports_the_fault_of_each_image_and_harms_no_neighbour():
    images = np.stack([picture(0), picture(1), picture(2)])
    images[1, 0, 0, 0] = np.nan
    bytes_, faults = to_uint8(images)
    assert faults == ["", "nan", ""] and bytes_.dtype == np.uint8 and bytes_[1, 0, 0, 0] == 0
    for i in (0, 2):
        for value, level in zip(images[i].flat, bytes_[i].flat, strict=True):
            assert level == round(float(value) * 255) or abs(float(value) * 255 % 1 - 0.5) < 1e-4
    outside, _ = to_uint8(np.array([[[[-0.5, 1.7, 0.5]]]], np.float32))
    assert outside.tolist() == [[[[0, 255, 128]]]]


# ------------------------------------------------------------------------------------------------ the store
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.booleans(), st.data())
def test_the_store_gives_back_every_bit_of_the_rows_asked_for(tmp_path_factory, seed, count, exact, data):
    path, encoded = tmp_path_factory.mktemp("store") / "e.safetensors", made_up(seed, count, exact)
    save_embeddings(path, encoded)
    indices = data.draw(st.lists(st.integers(0, count - 1), max_size=12))
    store = EmbeddingStore(path)
    assert len(store) == count
    assert_same(store.rows(indices), encoded.rows(indices))
    assert sorted(p.name for p in path.parent.iterdir()) == [".seals", "e.safetensors"]


def test_embeddings_of_a_bfloat16_model_take_half_the_room(tmp_path):
    for name, exact in (("full", False), ("half", True)):
        save_embeddings(tmp_path / name, made_up(0, 5000, exact))
    assert (tmp_path / "half").stat().st_size < 0.52 * (tmp_path / "full").stat().st_size


def test_only_the_rows_asked_for_are_read(tmp_path):
    class Watched(type(tmp_path)):
        """A path whose files note how many bytes are read."""

        read: ClassVar[list[int]] = []

        def open(self, *mode):
            file = super().open(*mode)

            class Noting:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def seek(self, *at):
                    return file.seek(*at)

                def read(self, size=-1):
                    Watched.read.append(size)
                    return file.read(size)

            return Noting()

    made = made_up(0, 9)
    save_embeddings(tmp_path / "e", made)
    store = TensorFile(Watched(tmp_path / "e"))
    Watched.read.clear()
    np.testing.assert_array_equal(store.rows("sequence", [2, 7]), made.sequence[[2, 7]])
    assert len(Watched.read) == 2 and sum(Watched.read) <= made.sequence[:2].nbytes


def test_a_store_can_be_pickled_and_then_read_elsewhere(tmp_path):
    save_embeddings(tmp_path / "e", made_up(1, 4))
    assert_same(pickle.loads(pickle.dumps(EmbeddingStore(tmp_path / "e"))).rows([2]), made_up(1, 4).rows([2]))


def test_joined_parts_are_the_whole():
    whole = made_up(2, 7)
    assert_same(concatenate([whole.rows([0, 1]), whole.rows([2]), whole.rows([3, 4, 5, 6])]), whole)
    assert len(whole) == 7


def test_a_missing_damaged_or_foreign_store_and_a_missing_row_are_errors_that_name_the_file(tmp_path):
    path = tmp_path / "e.safetensors"
    with pytest.raises(UserError, match=r"e\.safetensors cannot be read.*delete the file"):
        EmbeddingStore(path)
    save_embeddings(path, made_up(0, 3))
    with pytest.raises(UserError, match=r"asked for rows 0 to 3, but they are 0 to 2.*different runs"):
        EmbeddingStore(path).rows([0, 3])
    with pytest.raises(UserError, match="asked for rows -1"):
        EmbeddingStore(path).rows([-1])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"e\.safetensors cannot be read"):
        EmbeddingStore(path)
    from safetensors.numpy import save_file

    save_file({"pooled": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(UserError, match=r"no empty_pooled, empty_sequence, sequence in it"):
        EmbeddingStore(path)


# ------------------------------------------------------------------------------------------------- loading
def test_weights_that_were_not_shipped_are_an_error_that_names_the_alternative(tmp_path, monkeypatch):
    monkeypatch.setitem(generators.GENERATORS, "embedded-sd3", generators.diffusers_source(str(tmp_path / "embedded-sd3")))
    with pytest.raises(UserError, match=r"embedded-sd3.*no weights.*synthesis\.model=renderer"):
        load_text_encoder("embedded-sd3")
    with pytest.raises(UserError, match=r"embedded-sd3.*no weights.*synthesis\.model=renderer"):
        load_generator("embedded-sd3", steps=4, guidance=3.0, size=64)


def test_every_generator_says_what_it_is_and_only_one_with_weights_tries_a_faulty_image_again():
    renderer = load_generator("renderer", steps=4, guidance=3.0, size=48)
    assert renderer.facts() == {"model": "renderer", "size": 48}
    assert not isinstance(renderer, AuditingGenerator)
    packaged = load_generator("embedded-sd3", steps=4, guidance=3.0, size=64, device="cpu")
    assert isinstance(packaged, AuditingGenerator)
    assert packaged.facts() == {
        "model": "embedded-sd3",
        "revision": packaged.facts()["revision"],
        "dtype": "float32",
        "device": "cpu",
        "steps": 4,
        "guidance": 3.0,
        "size": 64,
        **vars(Speed()),
    }


def test_importing_the_module_and_using_the_renderer_loads_no_heavy_library():
    code = (
        "import sys; from syn4seg.models.generators import load_generator, load_text_encoder as load;"
        "g = load_generator('renderer', steps=1, guidance=1.0, size=64); e = load('renderer');"
        "g.generate(['a star'], e.encode(['a star']), [1]);"
        "from syn4seg.models.generators import check_model; check_model('renderer'); check_model('embedded-sd3');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_store_that_cannot_be_read_for_now_is_not_called_damaged(tmp_path, monkeypatch):
    save_embeddings(tmp_path / "e", made_up(0, 3))

    def no(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(tmp_path), "open", no)
    with pytest.raises(StoreError, match=r"Input/output error.*the connection") as refused:
        EmbeddingStore(tmp_path / "e")
    assert "delete" not in str(refused.value)
