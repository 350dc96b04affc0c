"""Shared by the tests of the exports: a run made by hand, in both layouts."""

from __future__ import annotations

import pytest

from tests.shared_exports import made_run


@pytest.fixture(scope="module", params=["files", "sharded"])
def made(request, tmp_path_factory):
    return made_run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """The same in files alone, with the figures that filters compare, not to be changed: for what does not depend on the layout."""
    return made_run(tmp_path_factory.mktemp("plain"), figures=True)
