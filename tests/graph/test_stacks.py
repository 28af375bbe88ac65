"""The stack of like layers that a network is built of."""

import pytest
from torch import nn

from prunus.errors import GraphError
from prunus.graph.stacks import layer_stacks, main_stack
from prunus.zoo import build


def block(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU())


def stack(width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(block(width) for _ in range(depth))


def test_the_stack_of_a_bert_is_its_encoder() -> None:
    network = build("bert_tiny", vocab_size=40, hidden=16, layers=3, max_length=8)
    assert layer_stacks(network) == ("bert.encoder.layer",)
    assert main_stack(network, "it") == "bert.encoder.layer"


def test_the_stack_of_most_parameters_comes_first() -> None:
    network = nn.ModuleDict({"deep": stack(3, 5), "wide": stack(9, 2), "also": stack(3, 5)})
    # 5 (9 + 3) = 60 of each deep one, 2 (81 + 9) = 180 of the wide one; like ones by name.
    assert layer_stacks(network) == ("wide", "also", "deep")


def test_a_stack_inside_a_layer_of_another_does_not_count() -> None:
    inner = [nn.Sequential(stack(4, 2)) for _ in range(3)]
    assert layer_stacks(nn.ModuleDict({"outer": nn.ModuleList(inner)})) == ("outer",)


@pytest.mark.parametrize(
    "path", ["deep", "other"], ids=["in the teacher's place", "of the teacher's kind"]
)
def test_one_layer_of_a_student_is_a_stack_where_its_teacher_says_what_a_layer_is(
    path: str,
) -> None:
    teacher = nn.ModuleDict(
        {"deep": nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 8) for _ in "ab")}
    )
    layer = nn.TransformerEncoderLayer(4, 1, 8) if path == "other" else block(4)
    student = nn.ModuleDict({"head": stack(4, 1), path: nn.ModuleList([layer])})
    assert main_stack(student, "it", teacher) == path
    # A network around the teacher puts its name in front.
    assert main_stack(student, "it", nn.ModuleDict({"network": teacher})) == path
    assert layer_stacks(student) == ()


def test_a_stack_within_the_only_layer_of_a_student_is_not_taken_for_its_layers() -> None:
    class Experts(nn.Module):
        """A layer that is built of a stack itself."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = stack(4, 2)

    teacher, student = (
        nn.ModuleDict({"deep": nn.ModuleList(Experts() for _ in n)}) for n in ("ab", "a")
    )
    assert main_stack(student, "it", teacher) == "deep"


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        ),  # plain layers are no blocks
        nn.ModuleDict({"one": stack(4, 1)}),
        nn.ModuleDict({"mixed": nn.ModuleList([block(4), nn.Bilinear(4, 4, 4)])}),
        nn.ModuleDict({"none": nn.ModuleList()}),
    ],
    ids=["plain", "one", "mixed", "empty"],
)
def test_what_is_no_stack_is_refused_with_a_way_out(network: nn.Module) -> None:
    assert layer_stacks(network) == ()
    with pytest.raises(
        GraphError, match=r"^this needs a stack of like layers.*use what works"
    ) as e:
        main_stack(network, "this")
    assert "\n" not in str(e.value)
