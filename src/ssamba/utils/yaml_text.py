"""Reading YAML with bounds: size, depth, digits, no aliases, plain types, no key twice; one line for each fault."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import yaml

from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.files import read_text
from ssamba.utils.json_text import DEPTH_LIMIT, DIGIT_LIMIT
from ssamba.utils.terminal import printable, shorten

YAML_LIMIT = 1 << 20
"""Most bytes of a YAML file: its parser is slow, 14 s for a file of this size that holds numbers alone."""
_PLAIN_KINDS = ("", "map", "seq", "str", "int", "float", "bool", "null", "merge")


def read_yaml(path: str | os.PathLike[str], error: type[SsambaError] = ConfigError) -> Any:
    """A YAML document from a file: mappings, lists, text, numbers, true, false and null. Raises ``error``."""
    return parse_yaml(read_text(path, YAML_LIMIT, error, "utf-8-sig"), os.fspath(path), error)


def parse_yaml(text: str, source: str, error: type[SsambaError] = ConfigError) -> Any:
    """A YAML document from text; ``source`` names it in an error."""
    try:
        return _BoundedLoader(text).get_single_data()
    except RecursionError:
        raise error(f"{source}: is nested more than {DEPTH_LIMIT} deep") from None
    except yaml.MarkedYAMLError as problem:
        line = f" in line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise error(f"{source}: is not YAML ({printable(problem.problem or 'cannot be read')}{line})") from None
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
    ) as problem:
        reason = printable(" ".join(str(problem).split())[:200])
        raise error(f"{source}: is not YAML ({reason})") from None


class _BoundedLoader(yaml.SafeLoader):
    """Refuses aliases (a few bytes of them make gigabytes), deep nesting, long numbers and a key twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _problem("aliases (*name) are not read, write the value out", self.peek_event())
        if self.depth >= DEPTH_LIMIT:
            raise RecursionError
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        kind = "" if node is None else node.tag.rpartition(":")[2]
        if kind not in _PLAIN_KINDS:
            raise _problem(f"values of type {shorten(kind)} are not read, put quotes around it", node)
        if isinstance(node, yaml.ScalarNode) and kind in ("int", "float") and len(node.value) > DIGIT_LIMIT:
            raise _problem(f"a number of {len(node.value)} characters", node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            twice = next((key for key, count in counts.items() if count > 1), "")
            raise _problem(f"the key {shorten(twice)} stands twice", node)
        return values


def _problem(text: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=place.start_mark)
