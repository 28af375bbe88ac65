"""What another process builds from a setup scores bit by bit as what it was made from."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.candidates.setup import Blueprint, Setup, make_scorer
from prunus.candidates.task import Task
from prunus.errors import InputError
from prunus.graph import cut, held_connections, trace
from prunus.records import Source
from prunus.seeding import host_states
from prunus.zoo import build, load_source
from tests.candidates.subjects import (
    bits_of,
    flags,
    forward,
    inner,
    random_plan,
    same_bits,
    small_images,
    unchanged,
    zero,
)
from tests.helpers import Wired, chain, enliven_, images, random_choice

DIGITS = images(2, 1, 8, 8)


def there(value: Any) -> Any:
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value))


def setup_of(network: nn.Module, held: Images, **given: Any) -> Setup:
    return Setup.of(Blueprint.of(network, **given), held, Execution(), 64, Tricks(), "cpu")


def test_network_without_source_comes_back_bit_by_bit() -> None:
    network = enliven_(build("digits_cnn"))
    before = bits_of(network)
    again = there(Blueprint.of(network)).build()
    assert unchanged(again, before) and unchanged(network, before)
    assert not again.training and str(again) == str(network)
    assert same_bits(forward(again, DIGITS), forward(network, DIGITS))
    assert not {p.data_ptr() for p in again.parameters()} & {
        p.data_ptr() for p in network.parameters()
    }


def test_structure_travels_without_its_values() -> None:
    network = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 10))
    blueprint = Blueprint.of(network)
    assert blueprint.structure is not None
    assert len(blueprint.structure) < 20_000
    assert 4 * 255_000 < len(blueprint.weights) < 4 * 256_000 + 5_000


def test_training_network_with_frozen_parts_stays_so_and_arrives_in_evaluation() -> None:
    network = enliven_(chain()).train()
    inner(network, "1").eval()
    inner(network, "0").weight.requires_grad_(False)
    again = Blueprint.of(network).build()
    assert [m.training for m in network.modules()] == [True, True, False] + [True] * 5
    assert not any(m.training for m in again.modules())
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in network.parameters()
    ]


def test_source_and_cuts_of_it() -> None:
    """The dense network by its constructor, cut twice, with connections held; then its values."""
    dense = enliven_(build("digits_cnn", width=0.5), seed=3)
    found = trace(dense, DIGITS)
    keep = flags(*dense.get_parameter("conv2.weight").shape[:2])
    first = found.plan(random_choice(found, 1, 0.8), [zero("conv2.weight", keep)])
    middle = cut(dense, first)
    second = random_plan(trace(middle, DIGITS), 2, 0.8)
    network = cut(middle, second)
    with torch.no_grad():
        network.get_parameter("fc.bias").add_(1.0)  # trained since
    source = Source(model="digits_cnn", arguments={"width": 0.5})
    blueprint = there(Blueprint.of(network, source, (first, second)))
    assert blueprint.structure is None
    again = blueprint.build()
    assert unchanged(again, bits_of(network))
    assert held_connections(again).keys() == {"conv2.weight"}
    assert same_bits(forward(again, DIGITS), forward(network, DIGITS))


OWN = """
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.order = np.random.default_rng().permutation(64).tolist()

    def forward(self, x):
        return self.layer(x.flatten(1)[:, self.order])
"""


@pytest.mark.parametrize(
    ("old", "new", "how"),
    [
        ("random.default_rng().permutation(64)", "arange(64)", "answers differ by"),
        ("nn.Linear(64, 10)", "nn.Linear(64, 12)", r"'layer.bias' is \[12\], not \[10\]"),
        ("self.layer", "self.other", "'layer.bias' is absent, not"),
        ("x.flatten(1)", "x.flatten(2)", "it does not run"),
        ("64, 10", "64, 10", "answers differ by"),  # its order is drawn anew, from no seed
    ],
)
def test_a_source_that_builds_another_network_than_it_did_is_refused(
    old: str, new: str, how: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    source = Source(model=f"{file}:Net")
    blueprint = Blueprint.of(load_source(source), source, samples=DIGITS)
    file.write_text(OWN.replace(old, new))
    with pytest.raises(InputError, match=f"own.py:Net', called again, builds another .*{how}.*"):
        blueprint.build()


@pytest.mark.parametrize("drawn", ["np.random.permutation(64)", "random.sample(range(64), 64)"])
def test_what_a_source_draws_from_global_generators_is_the_same_again(
    drawn: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    text = OWN.replace("np.random.default_rng().permutation(64).tolist()", f"list({drawn})")
    file.write_text(f"import random\n{text}")
    source = Source(model=f"{file}:Net")
    states = host_states()
    first = load_source(source)
    assert same_bits(
        forward(Blueprint.of(first, source, samples=DIGITS).build(), DIGITS), forward(first, DIGITS)
    )
    assert sorted(inner(first, "").order) == list(range(64)) != inner(first, "").order
    assert host_states() == states


def test_a_source_that_builds_the_same_is_not_refused_for_other_rounding(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("random.default_rng().permutation(64)", "arange(64)"))
    source = Source(model=f"{file}:Net")
    blueprint = Blueprint.of(load_source(source), source, samples=DIGITS)
    rounded = file.read_text().replace("return ", "return (1 + 1e-5) * ")
    file.write_text(rounded)
    assert not blueprint.build().training


def test_tied_weights_stay_tied() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    again = there(Blueprint.of(network)).build()
    assert again[2].weight is again[0].weight
    assert same_bits(forward(again, images(3, 4)), forward(network.eval(), images(3, 4)))


def test_network_that_cannot_be_sent_is_refused() -> None:
    network = Wired(lambda m, x: m.a(x), a=nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"network Wired cannot be sent .*FILE.py:FACTORY"):
        Blueprint.of(network)


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20"])
def test_scorer_from_a_setup_gives_the_same_bits(model: str) -> None:
    shape = (1, 8, 8) if model == "digits_cnn" else (3, 8, 8)
    arguments = {} if model == "digits_cnn" else {"width": 0.2}
    network = enliven_(build(model, **arguments))
    held = small_images(network, shape, 100)
    here = Scorer(network, held)
    away = make_scorer(there(setup_of(network, held)))
    assert away.prefix.boundaries == here.prefix.boundaries
    found = trace(network, images(2, *shape), verify=False)
    for seed in range(2):
        task = Task("k", random_plan(found, seed), 0, 100)
        mine, theirs = here(task), away(there(task))
        assert mine.kl.tobytes() == theirs.kl.tobytes()
        assert mine.loss.tobytes() == theirs.loss.tobytes()
        assert mine.correct.tobytes() == theirs.correct.tobytes()
        assert mine.statistics == theirs.statistics


def test_images_that_cannot_be_written_to() -> None:
    """As arrays from shared memory are; the scorer neither warns nor fails."""
    network = enliven_(build("digits_cnn"))
    setup = setup_of(network, small_images(network, (1, 8, 8), 64))
    for array in (setup.search, setup.labels, setup.reference, *setup.calibration):
        assert isinstance(array, np.ndarray)
        array.flags.writeable = False
    plan = trace(network, DIGITS, verify=False).plan({})
    assert len(make_scorer(setup)(Task("k", plan, 0, 64)).kl) == 64


def test_transformer_with_named_inputs(architectures: Any) -> None:
    network, inputs = architectures("Bert")
    network.eval()
    again = there(Blueprint.of(network)).build()
    assert same_bits(forward(again, inputs), forward(network, inputs))
    assert unchanged(again, bits_of(network))
