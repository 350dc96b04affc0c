"""Single rows of tensor files: the values of safetensors, and headers that this program did not write."""

from __future__ import annotations

import json

import pytest

from syn4seg.errors import DamagedError
from syn4seg.store.tensors import TensorFile, tensor_bytes

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_rows_are_those_of_the_whole_tensor(tmp_path, dtype):
    from safetensors.torch import save_file

    values = torch.randn(5, 2, 3, dtype=dtype)
    save_file({"first": torch.zeros(4), "values": values}, tmp_path / "x.safetensors")
    rows = TensorFile(tmp_path / "x.safetensors").rows("values", [4, 0, 4])
    assert (rows == values[[4, 0, 4]].float().numpy()).all()


@pytest.mark.parametrize(
    "facts",
    [
        1,
        {"dtype": "F32"},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]},
        {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    ],
)
def test_a_header_that_is_strange_or_promises_more_than_there_is_is_refused(tmp_path, facts):
    header = json.dumps({"x": facts}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(DamagedError, match="cut short, or not floats"):
        TensorFile(tmp_path / "x")


def test_equal_contents_give_equal_bytes_which_the_library_reads():
    from safetensors.torch import load

    tensors = {"b": torch.arange(6, dtype=torch.float16).reshape(2, 3), "a": torch.tensor(7), "é": torch.zeros(0, 3)}
    metadata = {f"key {i}": "x" * i for i in range(9)}
    data = tensor_bytes(tensors, metadata)
    assert data == tensor_bytes(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    found = load(data)
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], value) for key, value in tensors.items())
    size = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + size])["__metadata__"] == metadata and size % 8 == 0
