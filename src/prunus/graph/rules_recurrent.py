"""Label rules of recurrent layers that run whole, and of sequences packed for them.

Where torch runs a layer step by step (GRU, RNN, an LSTM in float64), the rules of its products and
gates say the same. The states that a layer begins with are zeros of the size that it names, and follow
it (``Walk.size_used``): so all layers and directions of one module keep the same units.
"""

from typing import Any

from prunus.graph.labels import Factor, Labels
from prunus.graph.rules_contract import couple, own_ids
from prunus.graph.walk import Walk, rule
from prunus.plan import IntArray

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@rule("mkldnn_rnn_layer")
def recurrent(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """One direction of one LSTM layer, where a processor's library runs it whole.

    ``args`` begins with the input ``[steps, batch, features]``, the weights ``[gates * units,
    features]`` and ``[gates * units, units]``, two biases ``[gates * units]`` and two states ``[batch,
    units]``. A unit is its row of every gate, its column of the recurrent weights, its state.
    """
    x, weight, hidden, has_biases = args[0], args[1], args[2], args[12]
    last = x.dim() - 1
    out = func(walk.mask(x, last), weight, walk.mask(hidden, 1), *args[3:], **kwargs)
    labels, w, h = walk.labels(x), walk.labels(weight), walk.labels(hidden)
    features, units = own_ids(w, 1), own_ids(h, 1)
    walk.contracted(w, features)
    walk.contracted(h, units)
    reason = walk.reason("LSTM", "reads features that cannot be cut")
    labels, _ = walk.algebra.single(labels, last, reason)
    couple(walk, labels, last, w, 1, reason)
    for dim in range(last):
        labels = walk.algebra.keep_size(labels, dim, walk.reason("LSTM", "its steps cannot be cut"))
    by_gate = [w, h, *(walk.labels(bias) for bias in args[3:5] if has_biases)]
    _couple_units(walk, units, by_gate, [walk.labels(state) for state in args[5:7]])
    for result in out[:3]:
        own = () if units is None else (Factor((result.dim() - 1,), units),)
        walk.mark(result, Labels(own))
    steps = x.numel() // x.shape[-1]
    for matrix, gates, read in ((weight, w, features), (hidden, h, units)):
        rows = (matrix.shape[0], own_ids(gates, 0))
        walk.count("lstm", [(steps, None), rows, (matrix.shape[1], read)])
    return out


def _couple_units(
    walk: Walk, units: IntArray | None, by_gate: list[Labels], states: list[Labels]
) -> None:
    """A unit goes with its row of each gate, in weights and biases, and with its state."""
    reason = walk.reason("LSTM", "its units cannot be cut")
    for labels in by_gate:
        rows = own_ids(labels, 0)
        if units is None or rows is None:
            walk.algebra.pin_all(labels, reason)
        else:
            walk.atoms.union(rows.reshape(-1, units.size), units, reason)
    for labels in states:
        walk.algebra.keep_size(labels, 0, reason)
        state = own_ids(labels, 1)
        if units is None:
            walk.algebra.pin_all(labels, reason)
        elif state is None:
            walk.atoms.pin(
                units, walk.reason("LSTM", "begins with a state whose size is not followed")
            )
        else:
            walk.atoms.union(state, units, reason)


@rule("_pack_padded_sequence")
def packed(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Samples of unequal length, their steps in one row ``[steps, features]``: the features follow."""
    out = func(*args, **kwargs)
    labels = walk.labels(args[0])
    for dim in range(2):
        labels = walk.algebra.keep_size(
            labels, dim, walk.reason("packing", "its steps cannot be cut")
        )
    rest = Labels(tuple(f for f in labels.factors if f.dims == (2,)))
    walk.mark(out[0], rest.moved({2: 1}, keep_param=False))
    return out
