"""The digits network learns in seconds."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prunus.data import load_data
from prunus.zoo import build, normalization


@pytest.mark.slow
def test_digits_cnn_learns_to_97_percent() -> None:
    mean, std = normalization("digits_cnn")
    data = load_data("digits", mean=mean, std=std)
    network = build("digits_cnn")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    epochs = 10
    batches = -(-len(data.train) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for inputs, labels in data.train.batches(64, generator=generator, augment=True):
            assert isinstance(inputs, Tensor)
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        inputs, labels = next(data.search.batches(len(data.search)))
        top1 = (network(inputs).argmax(1) == labels).float().mean()
    assert float(top1) > 0.97
