"""Plans survive JSON, fingerprints tell networks apart, and broken files are one-line errors."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from prunus.errors import InputError, PlanMismatchError, SettingError
from prunus.plan import (
    Axis,
    Bits,
    KeepChannels,
    NetworkShape,
    Plan,
    Record,
    ReindexBuffer,
    SetAttribute,
    ZeroConnections,
)

booleans = st.lists(st.booleans(), max_size=40)


def example(keep: list[bool] | None = None) -> Plan:
    bits = Bits.pack([True, False, True] if keep is None else keep)
    return Plan(
        source=NetworkShape(tensors={"a.weight": (3, 2), "b.weight": (1, 3)}),
        result=NetworkShape(tensors={"a.weight": (2, 2), "b.weight": (1, 2)}),
        edits=(
            KeepChannels(
                group="a",
                keep=bits,
                axes=(
                    Axis(tensor="a.weight", dim=0, keep=bits),
                    Axis(tensor="b.weight", dim=1, keep=bits),
                ),
            ),
            SetAttribute(module="a", attribute="heads", before=3, after=2),
            ReindexBuffer(buffer="index", keep=bits),
            ZeroConnections(
                tensor="b.weight", level="weight", shape=(1, 3), keep=Bits.pack([True, True, False])
            ),
        ),
    )


@given(booleans)
def test_bits_unpack_to_what_was_packed(flags: list[bool]) -> None:
    bits = Bits.pack(flags)
    assert bits.unpack().tolist() == flags
    assert Bits.pack(np.array(flags, bool)) == bits
    assert Bits.model_validate_json(bits.model_dump_json()) == bits


def test_first_flag_is_the_highest_bit() -> None:
    # 1010 0000 1 -> bytes 0xA0 0x80 -> base64 "oIA="
    assert Bits.pack(np.array([1, 0, 1, 0, 0, 0, 0, 0, 1], bool)).packed == "oIA="


@pytest.mark.parametrize(
    ("size", "packed"), [(9, "oA=="), (3, "oIA="), (0, "oA=="), (3, "!!!!"), (3, "é"), (-1, "")]
)
def test_bits_of_another_length_or_alphabet_are_refused(size: int, packed: str) -> None:
    with pytest.raises(SettingError):
        Bits(size=size, packed=packed)


def test_equal_flags_have_one_packing() -> None:
    with pytest.raises(SettingError):
        Bits(size=3, packed="/w==")  # 1111 1111


def test_plan_survives_json(tmp_path: Path) -> None:
    plan = example()
    plan.save(tmp_path / "deep" / "plan.json")
    again = Plan.load(tmp_path / "deep" / "plan.json")
    assert again == plan
    assert again.digest == plan.digest
    assert [type(e) for e in again.edits] == [type(e) for e in plan.edits]
    assert not list(tmp_path.glob("**/*.part"))


def test_digest_ignores_the_order_of_edits_and_tells_decisions_apart() -> None:
    plan = example()
    turned = plan.model_copy(update={"edits": plan.edits[::-1]})
    assert turned.digest == plan.digest
    assert example([True, True, False]).digest != plan.digest
    other = plan.model_copy(update={"source": NetworkShape(tensors={"a.weight": (3, 3)})})
    assert other.digest != plan.digest


def test_channels_and_emptiness() -> None:
    plan = example()
    assert {k: v.tolist() for k, v in plan.channels.items()} == {"a": [True, False, True]}
    assert not plan.is_empty
    assert Plan(source=plan.source, result=plan.source).is_empty


def test_records_are_frozen_and_closed() -> None:
    plan = example()
    with pytest.raises(ValidationError):
        plan.version = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Bits.model_validate({"size": 0, "packed": "", "extra": 1})


def test_a_text_in_place_of_a_list_is_told_how_one_is_written() -> None:
    class Listed(Record):
        widths: tuple[float, ...]

    with pytest.raises(SettingError, match=r"widths='3': give a list, such as \[3\]"):
        Listed(widths="3")


def test_a_boolean_is_no_number_however_deep_it_stands() -> None:
    class Sized(Record):
        count: int = 1
        share: Annotated[float, Field(ge=0)] | None = None
        shape: tuple[Annotated[int, Field(ge=0)], ...] = ()
        costs: dict[str, float] = Field(default_factory=dict)
        version: Literal[1] = 1
        free: dict[str, Any] = Field(default_factory=dict)
        flag: bool = False
        choice: Literal["auto", True, False] = "auto"

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"count": True}, "count"),
        ({"share": False}, "share"),
        ({"shape": (3, True)}, r"shape\.1"),
        ({"costs": {"macs": False}}, r"costs\.macs"),
        ({"version": True}, "version"),
    ]
    for values, where in wrong:
        with pytest.raises(SettingError, match=f"Sized: {where}=(True|False): input should be a"):
            Sized(**values)
        with pytest.raises(ValidationError, match="not a boolean"):
            Sized.model_validate_json(json.dumps(values))
    kept = Sized(free={"a": True}, flag=True, choice=True, count=0)
    assert Sized.model_validate_json(kept.model_dump_json()) == kept
    with pytest.raises(SettingError, match="Sized: count=True: input should be a"):
        Sized(count=np.bool_(True))


def test_zeroed_connections_must_fill_their_shape() -> None:
    with pytest.raises(SettingError, match="does not hold 3 bits"):
        ZeroConnections(tensor="w", level="kernel", shape=(2, 2), keep=Bits.pack([True] * 3))


def corrupt(text: str, key: str, value: object) -> str:
    body = json.loads(text)
    body[key] = value
    return json.dumps(body)


BROKEN = {
    "empty": lambda _: "",
    "truncated": lambda text: text[: len(text) // 2],
    "a list": lambda _: "[]",
    "version 2": lambda text: corrupt(text, "version", 2),
    "unknown edit": lambda text: corrupt(text, "edits", [{"kind": "edges"}]),
    "stray key": lambda text: corrupt(text, "note", "x"),
    "negative dim": lambda text: text.replace('"dim":0', '"dim":-1'),
    "short bits": lambda text: text.replace('"size":3', '"size":30'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_file_is_an_input_error_of_one_line(how: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(BROKEN[how](example().model_dump_json()), encoding="utf-8")
    with pytest.raises(InputError, match="plan.json is not a valid Plan: ") as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent\.json: No such file"):
        Plan.load(tmp_path / "absent.json")


def test_file_that_is_no_text_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError):
        Plan.load(path)


def test_shape_digest_ignores_order_and_sees_names_and_sizes() -> None:
    one = NetworkShape(tensors={"a": (1, 2), "b": (3,)})
    assert one.digest == NetworkShape(tensors={"b": (3,), "a": (1, 2)}).digest
    assert one.digest != NetworkShape(tensors={"a": (2, 1), "b": (3,)}).digest
    assert one.digest != NetworkShape(tensors={"a": (1, 2), "c": (3,)}).digest


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": (2, 2), "b": (3,)}, r"'a' should be \[1, 2\] but is \[2, 2\]"),
        ({"a": (1, 2)}, r"'b' should be \[3\] but is absent"),
        ({"a": (1, 2), "b": (3,), "c": ()}, r"'c' should be absent but is \[\]"),
    ],
)
def test_another_network_is_refused_by_its_first_difference(
    other: dict[str, tuple[int, ...]], message: str
) -> None:
    wanted = NetworkShape(tensors={"a": (1, 2), "b": (3,)})
    with pytest.raises(PlanMismatchError, match=f"the plan is for another network: {message}"):
        wanted.require(NetworkShape(tensors=other), "the plan")
    wanted.require(NetworkShape(tensors={"b": (3,), "a": (1, 2)}), "the plan")
