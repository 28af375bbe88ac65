"""Files of a run that are gone or damaged: made anew, or refused with a way on that works."""

from pathlib import Path

import pytest

from prunus.errors import PrunusError
from prunus.quantize import load_deployed
from prunus.recipe import Deploy, Prune, Step, Train, compress
from tests.recipe.subjects import Killed, Killer, few_digits, same_state, trained_cnn

TRAIN = Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous")
CUT = Prune(method="l1", target="macs=0.5")


def _told(steps: list[Step], out: Path) -> str:
    """What a resumed run is refused with, in one line."""
    with pytest.raises(PrunusError) as caught:
        compress(trained_cnn(), steps, few_digits(), out=out, resume=True, latency=None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("harm", ["cut short", "gone", "no record"])
def test_a_deployed_network_that_is_damaged_is_no_finished_step(harm: str, tmp_path: Path) -> None:
    steps, out = [CUT, Deploy(engine="onnxruntime")], tmp_path / "run"
    compress(trained_cnn(), steps, few_digits(), out=out, latency=None)
    place = out / "steps" / "02-deploy.onnxruntime"
    file = place / ("deployed.json" if harm == "no record" else "model.onnx")
    if harm == "cut short":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.unlink()
    mark = out / "steps" / "02-deploy.json"
    said = _told(steps, out)
    assert file.name in said
    assert said.endswith(f"to do this step and those after it anew, delete {mark} and resume")
    mark.unlink()
    compress(trained_cnn(), steps, few_digits(), out=out, resume=True, latency=None)
    load_deployed(place)


def test_the_step_is_named_whose_network_is_damaged(tmp_path: Path) -> None:
    """The network before the first cut is read of an earlier step than the last."""
    steps, out = [TRAIN, CUT, TRAIN], tmp_path / "run"
    with pytest.raises(Killed):
        compress(
            trained_cnn(), steps, few_digits(), out=out, progress=Killer("train", 9), latency=None
        )
    file, mark = out / "steps" / "01-train" / "model.safetensors", out / "steps" / "01-train.json"
    file.write_bytes(b"")
    said = _told(steps, out)
    assert str(file) in said
    assert said.endswith(f"delete {mark} and resume")
    mark.unlink()
    again = compress(trained_cnn(), steps, few_digits(), out=out, resume=True, latency=None)
    whole = compress(trained_cnn(), steps, few_digits(), latency=None)
    assert same_state(again.network, whole.network)
