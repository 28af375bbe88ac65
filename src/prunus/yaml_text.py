"""YAML as users write it, in recipes and on the command line: no key twice, and numbers such as 1e-3."""

import math
import re
from typing import Any

import yaml

_FLOAT = "tag:yaml.org,2002:float"
# YAML 1.1, which PyYAML speaks, wants a dot and a sign: to it 1e-3 and 1.5e3 are texts. 1.2 does not.
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_BEGINNINGS = list("-+.0123456789")


class KeyTwiceError(yaml.constructor.ConstructorError):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """YAML's plain loader, which lets the last of two equal keys win without a word, but for that."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse a key that comes twice, before merged ones are written beside those that replace them.

        An anchored mapping comes here again wherever it is merged, and has them by then.
        """
        if node not in self._checked:
            self._checked.add(node)
            self._require_once(node)
        super().flatten_mapping(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        """A number; the text where that is beyond all numbers, such as a digest with one e in it."""
        value = super().construct_yaml_float(node)
        return str(node.value) if math.isinf(value) and _EXPONENT.match(node.value) else value

    @staticmethod
    def _require_once(node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise KeyTwiceError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(str(key.value))


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that the loader would take for numbers."""


_Loader.add_constructor(_FLOAT, _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, _BEGINNINGS)
_Dumper.add_implicit_resolver(_FLOAT, _EXPONENT, _BEGINNINGS)


def read_yaml(text: str) -> Any:
    """What a text in YAML holds.

    Raises:
        KeyTwiceError: A mapping has a key twice.
        yaml.YAMLError: The text is no YAML, or holds more than plain values.
        RecursionError: It is nested too deep.

    >>> read_yaml("{lr: 1e-3, steps: [1, true, text]}")
    {'lr': 0.001, 'steps': [1, True, 'text']}
    """
    return yaml.load(text, Loader=_Loader)


def write_yaml(content: Any) -> str:
    """Plain values as a text that ``read_yaml`` reads back, in the order of their keys."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
