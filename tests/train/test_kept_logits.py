"""Logits of a teacher that are kept for other trainings: what is read is what was written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunus.data import SearchSplit, TrainSplit, tensors_digest
from prunus.errors import InputError
from prunus.train import fit
from tests.train.fakes import same_state, samples, settings

SAMPLES = 40


def _split(count: int, kind: type) -> TrainSplit | SearchSplit:
    values = torch.randn(count, 20, generator=torch.Generator().manual_seed(count))
    found: TrainSplit | SearchSplit = kind(
        samples(values, (values[:, 0] > 0).long(), num_classes=2)
    )
    return found


def _linear(seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(20, 2)


def _distilled(store: Path) -> nn.Module:
    student, train, search = _linear(0), _split(SAMPLES, TrainSplit), _split(20, SearchSplit)
    assert isinstance(train, TrainSplit)
    assert isinstance(search, SearchSplit)
    config = settings(distill_alpha=0.5, augment=False, epochs=1)
    fit(student, train, search, config, seed=0, teacher=_linear(1), teacher_store=store)
    return student


def _rewritten(file: Path, logits: Tensor) -> None:
    """With the digest of what is written, as an honest writer would."""
    content = {"logits": logits.contiguous()}
    save_file(content, file, metadata={"sha256": tensors_digest(content)})


def _few_rows(file: Path) -> None:
    _rewritten(file, load_file(file)["logits"][: SAMPLES // 2])


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x40
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [_flipped, _few_rows])
def test_logits_that_are_not_those_written_are_refused_and_made_anew(
    harm: object, tmp_path: Path
) -> None:
    first = _distilled(tmp_path)
    (file,) = tmp_path.iterdir()
    assert callable(harm)
    harm(file)
    with pytest.raises(InputError, match="delete the file to compute them anew") as caught:
        _distilled(tmp_path)
    assert str(file) in str(caught.value)
    file.unlink()
    assert same_state(_distilled(tmp_path), first)


def test_logits_without_a_digest_are_computed_anew(tmp_path: Path) -> None:
    """Those of earlier versions: nothing tells whether they are whole."""
    first = _distilled(tmp_path)
    (file,) = tmp_path.iterdir()
    save_file({"logits": torch.zeros(SAMPLES, 2)}, file)
    assert same_state(_distilled(tmp_path), first)
    assert load_file(file)["logits"].abs().sum() > 0
