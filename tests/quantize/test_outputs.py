"""Networks that return more than logits: a session gives the logits, whatever else comes first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.quantize import Deployment, deploy, load_deployed
from prunus.records import Source


class Several(nn.Module):
    """Features of eight numbers before, or after, logits of three."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input: Tensor) -> Any:  # noqa: A002
        features = self.first(input).relu()
        logits = self.last(features)
        return (
            {"features": features, "logits": logits} if self.form == "named" else (logits, features)
        )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("form", ["named", "tuple"])
def test_a_session_answers_with_logits(form: str, engine: str, tmp_path: Path) -> None:
    network, inputs = Several(form).eval(), torch.rand(5, 8)
    with torch.no_grad():
        output = network(inputs)
    wanted = output["logits"] if form == "named" else output[0]
    (tmp_path / "nets.py").write_text(
        "from tests.quantize.test_outputs import Several\n\n"
        f"def net():\n    return Several({form!r})\n"
    )
    source = Source(model=f"{tmp_path / 'nets.py'}:net")
    deploy(network, tmp_path / "d", Deployment(engine=engine), inputs=inputs, source=source)
    torch.testing.assert_close(load_deployed(tmp_path / "d")(inputs), wanted)
    assert not network._forward_hooks
