"""Batch-norm statistics behind a cut: of which images, how many, and when they stay."""

import pytest
import torch
from torch import Tensor

from prunus.recipe import (
    Prune,
    Recalibrate,
    Step,
    compress,
)
from prunus.recipe.execute import step_seed
from prunus.train import recalibrate_batch_norm_
from tests.recipe.subjects import (
    STEPS,
    few_digits,
    same_state,
    trained_cnn,
)


def test_a_network_that_was_not_cut_keeps_its_batch_norm_statistics() -> None:
    # Of a few images they are worse than those of its whole training.
    dense = trained_cnn()
    before = {name: value.clone() for name, value in dense.state_dict().items()}

    def statistics_after(method: str, target: str) -> tuple[bool, list[str]]:
        steps: list[Step] = [Prune(method=method, target=target), Recalibrate(images=64)]
        done = compress(dense, steps, few_digits(), latency=None)
        after = done.network.state_dict()
        same = after.keys() == before.keys() and all(
            after[name].shape == before[name].shape and torch.equal(after[name], before[name])
            for name in before
            if "running" in name
        )
        return same, [note for note in done.record.notes if "statistics stay" in note]

    same, notes = statistics_after("l1", "macs=1")
    assert same and len(notes) == 1 and notes[0].startswith("steps[1].recalibrate: nothing was cut")
    assert statistics_after("l1", "macs=0.5") == (False, [])
    assert statistics_after("scratch", "macs=1") == (False, [])  # its weights are others


@pytest.mark.parametrize("own", [True, False])
def test_statistics_are_of_the_images_that_the_dense_network_was_trained_on(own: bool) -> None:
    data, dense = few_digits(), trained_cnn()
    recalibrate_batch_norm_(dense, data.train, images=256, augment=own, seed=5)

    def running_means(step: Recalibrate) -> dict[str, Tensor]:
        steps: list[Step] = [Prune(method="l1", target="macs=0.5"), step]
        state = compress(dense, steps, data, latency=None).network.state_dict()
        return {name: value for name, value in state.items() if name.endswith("running_mean")}

    asked = [Recalibrate(), Recalibrate(augment=True), Recalibrate(augment=False)]
    auto, augmented, plain = (running_means(step) for step in asked)
    assert all(torch.equal(auto[name], (augmented if own else plain)[name]) for name in auto)
    assert not any(torch.equal(augmented[name], plain[name]) for name in auto)


def test_a_recalibration_takes_the_images_and_batches_asked_for_and_draws_by_its_place() -> None:
    step = Recalibrate(images=96, batch_size=32, augment=False)
    done = compress(trained_cnn(), [STEPS[0], step], few_digits(), seed=3, latency=None)
    alone = compress(trained_cnn(), STEPS[:1], few_digits(), seed=3, latency=None).network
    train = few_digits().train
    recalibrate_batch_norm_(alone, train, images=96, batch_size=32, seed=step_seed(3, 1))
    assert same_state(done.network, alone)
