"""Networks as engines run them: quantized or not, written, loaded and measured there."""

from prunus.quantize.deploy import deploy, load_deployed, read_deployed, require_deployable
from prunus.quantize.fixed_shape import require_shape
from prunus.quantize.fresh import FreshRun, run_fresh
from prunus.quantize.options import Deployment
from prunus.quantize.parity import Parity, parity
from prunus.quantize.session import DEPLOYED_FILE, Deployed, Session

__all__ = [
    "DEPLOYED_FILE",
    "Deployed",
    "Deployment",
    "FreshRun",
    "Parity",
    "Session",
    "deploy",
    "load_deployed",
    "parity",
    "read_deployed",
    "require_deployable",
    "require_shape",
    "run_fresh",
]
