"""Set-up of all tests: where the data lies, how hypothesis runs, one thread per worker."""

import os
from pathlib import Path

import torch
from hypothesis import settings

_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
if "PRUNUS_DATA" not in os.environ and _SHARED_DATA.is_dir():
    os.environ["PRUNUS_DATA"] = str(_SHARED_DATA)

settings.register_profile("default", deadline=None, max_examples=30, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=1000)
settings.load_profile("default")  # --hypothesis-profile on the command line overrides this

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already
