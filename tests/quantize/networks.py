"""Small networks, batches for them, and their deployments."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.data import Inputs
from prunus.quantize import Deployed, Deployment, deploy
from prunus.records import Source
from prunus.zoo import load_source

BERT = Source(
    model="bert_tiny", arguments={"vocab_size": 900, "hidden": 32, "layers": 2, "max_length": 24}
)
LSTM = Source(model="bilstm", arguments={"vocab_size": 900, "embedding": 12, "hidden": 8})
DIGITS = Source(model="digits_cnn")


def texts(samples: int, length: int) -> Inputs:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, 900, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, samples):
        mask[row, length - row % length :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def images(samples: int) -> Inputs:
    return torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(samples))


def batches(source: Source) -> list[Inputs]:
    if source is DIGITS:
        return [images(8), images(5)]
    return [texts(6, 9), texts(4, 17), texts(1, 5)]


def written(
    source: Source, folder: Path, network: nn.Module | None = None, **choices: Any
) -> Deployed:
    given = batches(source)
    return deploy(
        load_source(source) if network is None else network,
        folder,
        Deployment(**choices),
        inputs=given[0],
        calibration=given,
        source=source,
        dynamic_length=source is not DIGITS,
    )


class Tied(nn.Module):
    """A table of words whose rows are the output layer's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.wpe = nn.Embedding(8, 16)
        self.out = nn.Linear(16, 40)
        self.out.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1])
        hidden = (self.words(input_ids) + self.wpe(places)).mean(1)
        logits: Tensor = self.out(hidden)
        return logits


class Rows(nn.Module):
    """Of each sample some rows: two layers, one behind the other, and one on their mean.

    ``large`` multiplies two columns that the second layer reads, and divides its weights there.
    """

    def __init__(self, large: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 3)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        with torch.no_grad():
            self.second.weight[:, 5:7] /= large
        self.register_buffer("sizes", torch.ones(96))
        self.get_buffer("sizes")[5:7] = large

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(functional.gelu(self.first(x)) * self.get_buffer("sizes"))
        out: Tensor = self.last(torch.tanh(hidden).mean(1))
        return out


ROWS = Source(model=f"{__file__}:Rows")


class Twins(nn.Module):
    """Two layers of one shape, one behind the other, on inputs of ``Rows``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(functional.gelu(self.first(x))))
        out: Tensor = self.last(hidden.mean(1))
        return out


TWINS = Source(model=f"{__file__}:Twins")


def correlated(samples: int, width: int, seed: int) -> Tensor:
    """Inputs of a few directions and a little of all, as hidden states are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width // 4, width, generator=torch.Generator().manual_seed(99))
    few = torch.randn(samples, width // 4, generator=generator) @ directions
    return few + 0.3 * torch.randn(samples, width, generator=generator)


def rows(samples: int, seed: int) -> Tensor:
    """Inputs ``[samples, 10, 64]`` of ``Rows``."""
    return correlated(samples * 10, 64, seed).reshape(samples, 10, 64)
