"""The data set card: front matter that Hugging Face reads, tables that no name of a class can break."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from syn4seg.exports.card import TITLES, card
from syn4seg.exports.info import ExportInfo

COMMON = dict.fromkeys(TITLES, "") | {"generator": "renderer", "images_fingerprint": "0123456789abcdef"}


def made(counts: Counter, licences: dict[str, str] | None = None, classes=("background", "cat")) -> tuple[dict, str]:
    """Front matter and text."""
    info = ExportInfo("some name", classes, 10**6, licences or {"renderer": "Apache-2.0"}, COMMON)
    _, front, text = card(info, counts).split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_names_every_split_and_the_files_of_each():
    head, text = made(Counter({("train", "cat"): 3, ("rejected", "cat"): 1}))
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in ("rejected", "train")]
    assert head["configs"] == [{"config_name": "default", "data_files": files}]
    assert (head["pretty_name"], head["license"], head["size_categories"]) == ("some name", "apache-2.0", ["n<1K"])
    assert "| rejected | cat | 1 |" in text and "| train | cat | 3 |" in text and "| 1 | cat |" in text


@pytest.mark.parametrize(("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "n>1M")])
def test_the_size_is_that_of_all_splits_together(count, size):
    assert made(Counter({("train", "cat"): count - 1, ("rejected", "cat"): 1}))[0]["size_categories"] == [size]


def test_one_model_under_another_licence_makes_the_whole_data_set_so():
    licences = {"renderer": "Apache-2.0", "some/model": "see the model's own licence"}
    head, text = made(Counter({("train", "cat"): 1}), licences)
    assert head["license"] == "other" and "some/model | see the model's own licence" in text


def test_what_is_known_of_the_lineage_is_listed_and_what_is_not_is_left_out():
    text = made(Counter({("train", "cat"): 1}))[1]
    assert "| image model | renderer |" in text and "| images fingerprint | 0123456789abcdef |" in text
    assert "boundary refinement" not in text


def test_no_name_breaks_out_of_its_cell():
    name = "a|b <script> `x` [y](z)\n# head"
    lines = made(Counter({("train", name): 1}), classes=("background", name))[1].splitlines()
    escaped = r"a\|b &lt;script&gt; \`x\` \[y\](z) \# head"
    assert f"| train | {escaped} | 1 |" in lines and f"| 1 | {escaped} |" in lines
    assert not any(line.startswith("# head") for line in lines)
