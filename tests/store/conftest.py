"""Shared by the tests of the store: a run directory in a folder, and one in memory."""

from __future__ import annotations

import pytest

from syn4seg.store.files import as_path


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path):
    """A run directory in a folder, and one in fsspec's file system in memory."""
    if request.param == "folder":
        (tmp_path / "run").mkdir()
        yield tmp_path / "run"
        return
    path = as_path(f"memory://{tmp_path.name}/run")
    yield path
    path.fs.rm(path.path, recursive=True)
