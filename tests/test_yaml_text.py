"""YAML 1.2's numbers, which PyYAML takes for texts, and back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.yaml_text import KeyTwiceError, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+1e+3", 1000.0),
        ("-2.5e3", -2500.0),
        ("2.e1", 20.0),
        (".5e1", 5.0),
        ("5e1234567", "5e1234567"),  # beyond all numbers, as a digest may be
        # What was read before is read as before.
        ("12", 12),
        ("0x1e3", 0x1E3),
        ("0.5", 0.5),
        (".inf", math.inf),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e-3-4", "1e-3-4"),
        ("'1e3'", "1e3"),
    ],
)
def test_numbers_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    found = read_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_a_key_twice_is_refused_at_any_depth() -> None:
    with pytest.raises(KeyTwiceError, match="the key 'b' is given twice"):
        read_yaml("a: [{b: 1, b: 2}]")


NUMBER = st.from_regex(r"[-+]?[0-9]{0,2}\.?[0-9]{0,2}[eE][-+]?[0-9]{1,2}", fullmatch=True)
VALUE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), NUMBER)


@given(st.dictionaries(NUMBER, st.one_of(VALUE, st.lists(VALUE, max_size=3)), max_size=3))
def test_what_is_written_is_read_back(content: dict[str, object]) -> None:
    assert read_yaml(write_yaml(content)) == content
