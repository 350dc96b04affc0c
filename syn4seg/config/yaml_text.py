"""Text and YAML from people and from received runs: any Unicode encoding with a mark, bounded size, plain values alone."""

from __future__ import annotations

import codecs
from typing import Any, ClassVar

import yaml

MAX_NODES = 50_000
"""Values of a YAML text, those behind aliases counted as often as they are used."""
MAX_DEPTH = 40
MAX_BYTES = 4_000_000
"""Bytes of the largest text that is read."""
_MARKS = (  # the longer ones first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
        ValueError: too large, or of another encoding; one line that says where, without the name of the file.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"has {len(data):,} bytes; expected a text of at most {MAX_BYTES:,}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not {encoding.upper()} text ({error.reason}); save it as UTF-8") from None
    if "\x00" in text:
        raise ValueError("holds zero bytes, so it is no UTF-8 text (UTF-16 without a byte order mark?); save it as UTF-8")
    return text


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: None, numbers, text, lists and dicts; a date stays text.

    Raises:
        ValueError: one line; not YAML, another tag than those of plain values, a key twice, deeper than `MAX_DEPTH`, or with more
            than `MAX_NODES` values after its aliases are followed.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None
        _count(node, {})
        loader = _Loader("")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("an alias that holds itself") from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases followed."""
    if id(node) not in counts:
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(_count(item, counts) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            total += sum(_count(key, counts) + _count(value, counts) for key, value in node.value)
        if total > MAX_NODES:
            raise ValueError(f"stands for more than {MAX_NODES:,} values after its aliases are followed")
        counts[id(node)] = total
    return counts[id(node)]


class _Loader(yaml.SafeLoader):
    """Builds plain values alone."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in ("null", "bool", "int", "float", "str", "seq", "map"):
            raise ValueError(f"the tag {kind!r} is not read here; expected plain values")
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            if isinstance(node, yaml.ScalarNode):
                raise ValueError(f"{node.value[:60]!r} is no {kind}") from None
            raise ValueError(" ".join(str(error).split())) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("no mapping stands where one belongs")
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(names) < len(node.value):
            raise ValueError("a list or a mapping stands where a key belongs")
        if len(set(names)) < len(names):
            raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:60]!r} stands there twice")
        return super().construct_mapping(node, deep)
