"""Shared by the tests of the data sets: official files of PASCAL and SBD in small, prepared, and a copy that a test may damage."""

from __future__ import annotations

import shutil

import pytest

from syn4seg.data.prepare import prepare_pascal
from tests.official import write_pascal


def _silent(*_):
    pass


@pytest.fixture(scope="session")
def prepared_pascal(tmp_path_factory):
    root = tmp_path_factory.mktemp("pascal")
    truth = write_pascal(root)
    prepare_pascal(root, progress=_silent, note=_silent)
    return root, truth


@pytest.fixture
def copied(prepared_pascal, tmp_path):
    shutil.copytree(prepared_pascal[0], tmp_path / "data")
    return tmp_path / "data"
