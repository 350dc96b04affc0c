"""The class table: the right ids from every form in which people write one, or a refusal that names file and value."""

from __future__ import annotations

import codecs
import json

import pytest

from syn4seg.data.class_table import ClassTable, fold_number, read_class_table
from syn4seg.errors import UserError


def _read(folder, classes, folds=None, name="classes.json"):
    first = next(iter(classes), "") if isinstance(classes, (list, dict)) else ""
    (folder / name).write_text(json.dumps({"classes": classes, "folds_novel": [[first]] if folds is None else folds}))
    return read_class_table(folder / name)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ({"road": 2, "building": 1}, ("building", "road")),
        ({"1": "building", "2": "road"}, ("building", "road")),
        ({"background": 0, "building": 1, "road": 2}, ("building", "road")),
        ({"0": "background", "1": "building", "2": "road", "255": "void"}, ("building", "road")),
        (["background", "building", "road"], ("building", "road")),
        (["__ignore__", "_background_", "building", "road"], ("building", "road")),
        (
            ["rock/stone", "Gebäude", "Car (old)", "men's shoe", "a, b"],
            ("rock/stone", "Gebäude", "Car (old)", "men's shoe", "a, b"),
        ),
        (["hot dog", "hot_dog"], ("hot dog", "hot_dog")),
    ],
)
def test_ids_are_those_that_were_given(tmp_path, classes, names):
    table = _read(tmp_path, classes, [[names[0]]])
    assert table.names == names and table.folds == ((1,),)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("abcde", "'classes' is 'abcde'"),
        (None, "'classes' is None"),
        ([None, "a"], "holds None, which is no text"),
        ([1, 2], "holds 1, which is no text"),
        ([["a"], "b"], "no text"),
        ({"road": 3, "building": 1}, r"ids \[1, 3\]; expected 1\.\.2"),
        ({"road": 1, "building": 1}, "ids"),
        ({"road": 0, "building": 1}, "ids"),
        ({"road": True, "building": 1}, "whole numbers"),
        ({"road": 1.0}, "whole numbers"),
        (["road", "background"], "'background' as class 2"),
        (["unlabeled", "road"], "'unlabeled' as class 1"),
        (["void", "road"], "'void' as class 1"),
        (["Car", "car"], "differ only in case"),
        (["a", "a"], "twice"),
        ([" a", "b"], "printable"),
        (["a\nb", "b"], "printable"),
        ([], "0 entries"),
        ([f"c{i}" for i in range(255)], "255 entries"),
    ],
)
def test_what_is_no_table_is_refused_by_value(tmp_path, classes, words):
    with pytest.raises(UserError, match=rf"classes\.json.*{words}"):
        _read(tmp_path, classes, [["road"]])


def test_folds_are_found_by_the_number_in_their_names(tmp_path):
    from syn4seg.data.datasets import fold_of
    from syn4seg.data.folder import FolderDataset

    names = [f"c{i}" for i in range(13)]
    folds = {f"fold{i}": [names[i]] for i in range(12)}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).write_text("x\n")

    def novel(folds, which):
        (tmp_path / "classes.json").write_text(json.dumps({"classes": names, "folds_novel": folds}))
        dataset = FolderDataset(tmp_path)
        return [names[k - 1] for k in fold_of(dataset, which).novel]

    assert novel({k: folds[k] for k in sorted(folds)}, 2) == ["c2"] == novel({k: folds[k] for k in sorted(folds)}, "fold2")
    assert novel({"fold1": ["c5"], "fold0": ["c7"]}, 0) == ["c7"]
    assert novel([["c1"], ["c3"]], 1) == ["c3"]
    assert novel({"animals": ["c1"], "things": ["c2"]}, "things") == ["c2"]
    assert novel({"mine": ["c4"]}, 0) == ["c4"]
    for given, which in (
        ({"animals": ["c1"], "things": ["c2"]}, 0),
        ({"fold1": ["c1"]}, 0),
        ({"fold1": ["c1"]}, "x"),
        ([["c1"]], -1),
    ):
        with pytest.raises(UserError, match="does not exist; this data set has the folds"):
            novel(given, which)
    for wrong in (
        {"fold1": ["c1"], "fold01": ["c2"]},
        {"fold0": "c1"},
        {"fold0": [1]},
        {},
        [],
        None,
        "c1",
        {"fold0": ["c1", "c1"]},
        {"f": names},
    ):
        with pytest.raises(UserError, match="folds_novel"):
            novel(wrong, 0)
    assert [fold_number(n) for n in ("fold2", "fold_02", "7", "animals", "3 b")] == [2, 2, 7, None, None]


@pytest.mark.parametrize("mark, encoding", [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (b"", "utf-8")])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path, mark, encoding):
    for name, text in (
        ("classes.json", '{"classes": ["ä", "b"],\r\n"folds_novel": [["ä"]]}'),
        ("classes.yaml", "classes: [ä, b]\r\nfolds_novel:\r\n- [ä]\r\n"),
    ):
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
        assert read_class_table(tmp_path / name).names == ("ä", "b")


@pytest.mark.parametrize(
    "data",
    ['{"classes": ["ä"]}'.encode("latin-1"), '{"classes": ["a"]}'.encode("utf-16-le"), b"{", b"[" * 9000, b'{"a": 1, "a": 2}', b""],
)
def test_other_texts_are_refused_by_file(tmp_path, data):
    for name in ("classes.json", "classes.yaml"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_class_table(tmp_path / name)


def test_a_table_of_new_classes_needs_no_folds(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text('{"classes": ["kite", "drone"]}')
    assert read_class_table(path, all_new=True) == ClassTable(("kite", "drone"), ("all",), ((1, 2),))
    with pytest.raises(UserError, match="folds_novel"):
        read_class_table(path)
    path.write_text('{"names": []}')
    with pytest.raises(UserError, match="names of the new classes"):
        read_class_table(path, all_new=True)
