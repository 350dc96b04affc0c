"""What is in the folders of a run: every file once, with its size; hidden and unfinished files, and links in a circle, are none."""

from __future__ import annotations

import os

import fsspec
import pytest
from upath import UPath

from syn4seg.errors import StoreError
from syn4seg.store.listing import count_partial_files, list_files, list_names

FILES = {"a.png": 1, "b/c.png": 2, "b/d/e.json": 3, "b/empty": 0}
HIDDEN = (".seals/a.png.json", "b/.c.png.partial", ".hidden")


def fill(folder) -> None:
    for name, size in {**FILES, **dict.fromkeys(HIDDEN, 5)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    """A folder on the disk, and one in an object store."""
    if request.param == "disk":
        yield tmp_path / "run"
        return
    yield UPath("memory://listing/run")
    store = fsspec.filesystem("memory")
    if store.exists("/listing"):
        store.rm("/listing", recursive=True)


def test_files_are_listed_by_path_with_their_sizes_and_what_begins_with_a_dot_is_none(folder):
    fill(folder)
    assert list_files(folder) == FILES
    assert list_files(folder / "b") == {"c.png": 2, "d/e.json": 3, "empty": 0}


def test_a_folder_that_is_not_there_holds_nothing(folder):
    assert list_files(folder / "none") == {} and list_names(folder / "none") == []
    assert count_partial_files(folder / "none") == 0


def test_names_of_a_folder_are_sorted(folder):
    fill(folder)
    assert list_names(folder / "b") == [".c.png.partial", "c.png", "d", "empty"]
    assert list_names(folder / "a.png") == [], "a file is no folder"


def test_unfinished_files_are_counted_on_the_disk_alone(tmp_path):
    fill(tmp_path / "run")
    assert count_partial_files(tmp_path / "run") == 1


def test_a_link_to_another_folder_is_followed_and_one_that_leads_back_is_not(tmp_path):
    fill(tmp_path / "elsewhere")
    (tmp_path / "run/deep").mkdir(parents=True)
    (tmp_path / "run/images").symlink_to(tmp_path / "elsewhere")
    for name, target in (("self", "run"), ("up", ""), ("deep/root", "/"), ("deep/back", "run/deep")):
        (tmp_path / "run" / name).symlink_to(tmp_path / target)
    (tmp_path / "run/nowhere").symlink_to(tmp_path / "absent")
    assert list_files(tmp_path / "run") == {f"images/{name}": size for name, size in FILES.items()}


def test_a_folder_that_may_not_be_read_is_an_error_with_a_reason(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        list_files(tmp_path)
