"""A training that goes on: killed and resumed, in another process, with all that a network holds."""

import copy
import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunus.data import SearchSplit, TrainSplit
from prunus.graph import hold_connections_
from prunus.graph.connections import register_held
from prunus.train import fit
from tests.train.fakes import (
    Steps,
    averaging,
    same_state,
    samples,
    search_digits,
    settings,
    small_cnn,
    train_digits,
)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_resumed_training_ends_with_the_same_weights(
    tmp_path: Path, optimizer: str, layout: str, select: str
) -> None:
    config = settings(optimizer=optimizer, layout=layout, select=select, lr=0.02)
    train, search = train_digits(0, 200), search_digits(200, 300)

    straight = small_cnn(dropout=0.3)
    whole = fit(straight, train, search, config, seed=3)

    steps = Steps(stop_at=2 * 7 + 3)  # 7 steps an epoch: in the middle of the third
    path = tmp_path / "training.pt"
    killed = small_cnn(dropout=0.3)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, train, search, config, seed=3, checkpoint=path, progress=steps)
    assert steps.finished == 1
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    assert not same_state(killed, straight)

    resumed, rest = small_cnn(dropout=0.3), Steps()
    torch.rand(5)  # the global random state does not matter
    result = fit(resumed, train, search, config, seed=3, checkpoint=path, progress=rest)
    assert len(rest.losses) == 2 * 7
    assert rest.done == rest.total == 4 * 7
    assert same_state(resumed, straight)
    assert [p.values for p in result.history] == [p.values for p in whole.history]

    again = small_cnn(dropout=0.3)
    done = Steps()
    assert fit(again, train, search, config, seed=3, checkpoint=path, progress=done) == result
    assert done.losses == []
    assert same_state(again, straight)


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_resumed_training_goes_on_with_buffers_that_a_state_dict_leaves_out(
    tmp_path: Path, select: str
) -> None:
    config, path = settings(select=select), tmp_path / "training.pt"
    train, search = train_digits(0, 64), search_digits(64, 96)
    straight, killed, resumed = averaging(), averaging(), averaging()
    fit(straight, train, search, config, seed=0)
    with pytest.raises(KeyboardInterrupt):  # in the third of four epochs of two steps
        fit(killed, train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    fit(resumed, train, search, config, seed=0, checkpoint=path)
    assert straight.mean.any()
    assert torch.equal(resumed.mean, straight.mean)
    assert same_state(resumed, straight)


class Growing(nn.Module):
    """Makes a buffer in its first pass: ones for its largest batch so far."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        ones = getattr(self, "ones", torch.empty(0, 1))
        if len(ones) < len(x):
            self.register_buffer("ones", torch.ones(len(x), 1), persistent=False)
        out: Tensor = self.head(x.flatten(1)) * self.get_buffer("ones")[: len(x)]
        return out


@pytest.mark.parametrize("met", [0, 1, 100], ids=["new", "small", "large"])
def test_buffers_that_a_forward_pass_makes_do_not_hinder_a_resumed_training(
    tmp_path: Path, met: int
) -> None:
    config, path = settings(select="best"), tmp_path / "training.pt"
    train, search = train_digits(0, 64), search_digits(64, 96)
    straight, resumed = Growing(), Growing()
    fit(straight, train, search, config, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(Growing(), train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    if met:
        resumed(torch.zeros(met, 64))
    fit(resumed, train, search, config, seed=0, checkpoint=path)
    assert same_state(resumed, straight)


def test_seconds_of_a_resumed_training_are_those_of_all_its_lives(tmp_path: Path) -> None:
    path, config = tmp_path / "training.pt", settings()
    train, search = train_digits(0, 64), search_digits(64, 96)
    with pytest.raises(KeyboardInterrupt):  # in the third of four epochs of two steps
        fit(small_cnn(), train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    content = torch.load(path, weights_only=True)
    content["history"][-1]["seconds"] = 1000.0
    torch.save(content, path)
    result = fit(small_cnn(), train, search, config, seed=0, checkpoint=path)
    assert 1000 < result.history[2].seconds < result.seconds < 1100


def digest_of_a_training(seed: int) -> str:
    network = small_cnn(dropout=0.3)
    fit(network, train_digits(0, 100), search_digits(100, 150), settings(epochs=2), seed=seed)
    raw = b"".join(t.numpy().tobytes() for t in network.state_dict().values())
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.slow  # starts a process that imports torch
def test_same_seed_same_weights_in_another_process() -> None:
    torch.rand(3)
    here = digest_of_a_training(5)
    code = "from tests.train.test_going_on import digest_of_a_training as d; print(d(5))"
    root = Path(__file__).parents[2]
    prelude = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'src')!r}]; "
        f"import torch; torch.set_num_threads({torch.get_num_threads()}); "
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here
    assert digest_of_a_training(6) != here


def held_cnn() -> nn.Module:
    """With every second kernel of its first convolution held at zero."""
    network = small_cnn()
    kept = torch.ones(network.get_parameter("0.weight").shape, dtype=torch.bool)
    kept[1::2] = False
    register_held(network.get_submodule("0"), "weight", kept)
    return network


@pytest.mark.parametrize("before", [0, 1, 2], ids=["never", "once", "twice"])
def test_held_connections_of_a_copy_stay_zero(before: int) -> None:
    """Hooks do not survive a copy; where they are there, they are not set again."""
    network = copy.deepcopy(held_cnn())
    for _ in range(before):
        hold_connections_(network)
    fit(network, train_digits(0, 96), search_digits(96, 128), settings(epochs=2), seed=0)
    weight = network.get_parameter("0.weight")
    assert not weight[1::2].any()
    assert weight[::2].all()
    assert weight._backward_hooks is not None
    assert len(weight._backward_hooks) == 1


def test_held_connections_stay_zero_in_a_resumed_training(tmp_path: Path) -> None:
    path, config = tmp_path / "training.pt", settings()
    train, search = train_digits(0, 64), search_digits(64, 96)
    straight, resumed = held_cnn(), held_cnn()
    fit(straight, train, search, config, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(held_cnn(), train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    fit(resumed, train, search, config, seed=0, checkpoint=path)
    assert same_state(resumed, straight)
    assert not resumed.get_parameter("0.weight")[1::2].any()


class TextNet(nn.Module):
    """Called by keyword, answers with an object, as the models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask = attention_mask.unsqueeze(-1)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.classifier(mean))


def test_texts_are_trained_on_with_a_checkpoint(tmp_path: Path) -> None:
    # Class 1: token 7 stands first; masked positions hold noise.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, 20, (300, 6), generator=generator)
    labels = torch.randint(2, (300,), generator=generator)
    tokens[labels == 1, 0] = 7
    mask = torch.ones(300, 6)
    mask[:, 4:] = 0
    part = [
        samples({"input_ids": tokens[rows], "attention_mask": mask[rows]}, labels[rows], 2)
        for rows in (slice(0, 200), slice(200, 300))
    ]
    config = settings(epochs=5, optimizer="adamw", lr=0.05, augment=False, precision="auto")
    torch.manual_seed(0)
    network, path = TextNet(), tmp_path / "text.pt"
    result = fit(
        network, TrainSplit(part[0]), SearchSplit(part[1]), config, seed=0, checkpoint=path
    )
    assert result.search_top1 == 1.0
    assert path.exists()
