"""The 8x8 handwritten digits that scikit-learn carries: small, and always there."""

import numpy as np
import torch

from prunus.data.roles import DataSplits, three_splits
from prunus.data.splits import Samples
from prunus.data.stores import Normalizer, TensorStore
from prunus.data.stratify import stratified_draw

# Mean and standard deviation of all pixels, from 0 to 16, divided by 16.
_NORMALIZER = Normalizer((0.3053,), (0.3760,))
_TEST_SEED = 0  # the test split is the same whatever seed a run has


def load_digits(*, normalizer: Normalizer | None, search_size: int | None, seed: int) -> DataSplits:
    """Load the 1797 digits: a fixed fifth is test, a fifth of the rest is search by default.

    Augmentation shifts by one pixel and never mirrors.

    References:
        Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998
        (https://doi.org/10.24432/C50P49).
    """
    # Here, not above: all processes import this module, few load digits, and it imports much.
    from sklearn.datasets import load_digits as sklearn_digits  # noqa: PLC0415

    bunch = sklearn_digits()
    # Ink from 0 to 16 becomes bytes from 0 to 255, as in all other images.
    pixels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    store = TensorStore(pixels.unsqueeze(1), labels, normalizer or _NORMALIZER, shift=1, flip=False)
    test = stratified_draw(labels, round(len(labels) / 5), _TEST_SEED)
    in_train = torch.ones(len(labels), dtype=torch.bool)
    in_train[test] = False
    train = torch.nonzero(in_train).flatten()
    return three_splits(
        Samples("digits", store, train, 10),
        Samples("digits", store, test, 10),
        search_size=search_size,
        seed=seed,
    )
