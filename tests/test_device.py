"""Names of devices that cannot be used."""

from typing import Any

import pytest

from prunus.device import resolve_device
from prunus.errors import InputError


@pytest.mark.parametrize("device", ["tpu9", "meta", "cuda:99", None, 3.5])
def test_unusable_device_is_named(device: Any) -> None:
    with pytest.raises(InputError, match=str(device)):
        resolve_device(device)
