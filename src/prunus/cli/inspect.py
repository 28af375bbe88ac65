"""What the commands measure and methods do: look, and change nothing."""

import re
from collections.abc import Iterator

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import prunus.prune  # registers the methods
from prunus.cli.build import require_numbers
from prunus.cli.given import Cut, Subject, Where, read_shape
from prunus.cli.show import console
from prunus.cli.source import data_name, make_source, text_options
from prunus.cli.work import set_threads
from prunus.data import DataSplits, LengthStatistics, length_statistics
from prunus.device import resolve_device
from prunus.errors import GraphError, InputError, PrunusError
from prunus.graph import Group, Inputs, Trace, trace
from prunus.graph.inputs import first_samples
from prunus.meter import (
    format_bytes,
    measure_cost,
    measure_latency,
    peak_memory_bytes,
)
from prunus.method import method_class, method_names
from prunus.recipe import resolve_subject
from prunus.zoo import load_source

METHODS_PACKAGE = prunus.prune.__name__
_SAMPLES = 2  # so that train mode can be checked
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|can't allocate memory|not enough memory|out of memory|size calculation overflow",
    re.IGNORECASE,
)


def run_measure(subject: Subject, cut: Cut, where: Where, *, shape: str | None) -> None:
    """Print what a network costs, and its groups.

    Raises:
        InputError: Something given cannot be used, or the memory does not hold the inputs.
    """
    try:
        _measure(subject, cut, where, shape)
    except (MemoryError, RuntimeError, PrunusError) as error:
        if not _OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
            raise
        raise InputError(
            f"{'--data' if shape is None else f'--shape {shape}'}: the memory does not hold this "
            "network on such inputs; give smaller ones"
        ) from error


def _measure(subject: Subject, cut: Cut, where: Where, shape: str | None) -> None:
    require_numbers(cut)
    set_threads(where)
    device = resolve_device(where.device)
    network, inputs, one, data = _network(subject, shape)
    try:
        found = trace(network, inputs, ignore=cut.ignore, **cut.widths)
    except GraphError as error:
        if shape is None:
            raise
        said = str(error).replace("example_inputs", f"--shape {shape}")
        raise InputError(f"{said}; give the sizes of an input that it takes") from error
    cost = measure_cost(network, one)
    facts = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    facts.add_row("input", _described(one))
    facts.add_row("parameters", f"{cost.params:,}")
    facts.add_row("MACs (batch 1)", f"{cost.macs:,}")
    facts.add_row("file", format_bytes(cost.size_bytes or 0))
    if cost.uncounted:
        facts.add_row("not counted", ", ".join(cost.uncounted))
    for row in _lengths(data):
        facts.add_row(*row)
    if where.latency:
        placed = network.to(device)
        moved: Inputs = (
            one.to(device)
            if isinstance(one, Tensor)
            else {k: v.to(device) for k, v in dict(one).items()}
        )
        time = measure_latency(placed, moved, batch=1, repeats=50, device=device)
        facts.add_row(
            "latency (batch 1)",
            f"{time.median_ms:.3f} ms median, {time.p95_ms:.3f} ms p95, {time.threads} threads, "
            f"{time.device}",
        )
        facts.add_row("peak memory", format_bytes(peak_memory_bytes(placed, moved, device)))
    screen = console()
    screen.print(facts)
    screen.print(_groups(found))
    share = _smallest_share(found)
    free = sum(not _whole(group) for group in found.groups)
    screen.print(f"{free} of {len(found.groups)} groups can be cut; {share}", highlight=False)


def run_methods() -> None:
    """Print all methods."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("method", "needs", "null", "what it does"):
        table.add_column(head)
    for name in method_names():
        method = method_class(name)
        needs = ", ".join(sorted(method.needs)) or "-"
        table.add_row(Text(name), needs, "yes" if method.null else "", Text(method.summary))
    screen = console()
    screen.print(table)
    screen.print(
        "null: a baseline that every method has to beat. needs: splits of the data that it reads."
    )


def _lengths(data: DataSplits | None) -> Iterator[tuple[str, str]]:
    """How long the texts of each split are, a row each; none of images."""
    if data is None or data.tokenizer is None:
        return
    found = length_statistics(data)
    for name in ("train", "search", "test", "unlabeled"):
        split: LengthStatistics | None = getattr(found, name)
        if split is not None:
            said = (
                f"{split.texts:,}: median {split.median} tokens, 95 % up to {split.p95}, longest "
                f"{split.longest}; {split.share_cut:.1%} are cut at {found.max_length}, "
                f"{split.unknown_share:.1%} of the tokens are unknown"
            )
            yield f"{name} texts", said


def _network(
    subject: Subject, shape: str | None
) -> tuple[nn.Module, Inputs, Inputs, DataSplits | None]:
    """The network, a batch of real or random inputs, the one that costs are stated for, and the data."""
    source = make_source(subject)
    if (shape is None) == (subject.data is None):
        raise InputError(
            "give --data or --shape (3,32,32; 128 token ids), one of them: a network is measured on "
            "its inputs"
        )
    data, text = data_name(subject), text_options(subject)
    if shape is not None:
        if text is not None:
            raise InputError(
                f"--text '{subject.text[0]}' is for --data, not for --shape; leave it out"
            )
        network = load_source(source)
        inputs = _random_inputs(network, read_shape(shape))
        return network, inputs, first_samples(inputs, 1), None
    found = resolve_subject(source, data, text=text, untrained=True)
    return found.network, found.inputs, found.one, found.data


def _described(one: Inputs) -> str:
    """The shape of an input: tokens of a text, or sizes without the sample's."""
    if isinstance(one, Tensor):
        return " x ".join(map(str, one.shape[1:]))
    ids = dict(one)["input_ids"]
    return f"a text of {ids.shape[1]} tokens"


def _random_inputs(network: nn.Module, shape: tuple[int, ...]) -> Inputs:
    """Random images, or token ids where the network takes these first (``transformers``).

    Raises:
        InputError: A network of texts is given more than the number of tokens.
    """
    generator = torch.Generator().manual_seed(0)
    if getattr(network, "main_input_name", None) != "input_ids":
        return torch.randn(_SAMPLES, *shape, generator=generator)
    if len(shape) != 1:
        text = ",".join(map(str, shape))
        raise InputError(f"--shape '{text}': the network takes token ids; give their number: 128")
    config = getattr(network, "config", None)
    ids = torch.randint(getattr(config, "vocab_size", 1), (_SAMPLES, *shape), generator=generator)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int):  # encoder-decoders read the class off the only end of the text
        ids[ids == end] = 1 if end == 0 else 0
        ids[:, -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _groups(found: Trace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, side in (
        ("group", "left"),
        ("channels", "right"),
        ("tensors", "right"),
        ("", "left"),
    ):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    for group in found.groups:
        tensors = len({axis.tensor for axis in group.axes})
        why = _whole(group)
        reason = Text(f"stays whole: {why}" if why else "can be cut")
        table.add_row(Text(group.name), str(group.units), str(tensors), reason)
    return table


def _whole(group: Group) -> str:
    """Why a group stays whole: it cannot be cut, or its least width is all; empty where it can."""
    if group.refused or group.width(1) < group.units:
        return group.refused
    if group.min_units >= group.units:
        return f"min_units={group.min_units}"
    return group.multiple


def _smallest_share(found: Trace) -> str:
    """How much of the parameters lies in groups that can be cut."""
    cuttable = [group for group in found.groups if not _whole(group)]
    free = {axis.tensor for group in cuttable for axis in group.axes}
    sizes = {name: _size(shape) for name, shape in found.parameters.items()}
    share = sum(size for name, size in sizes.items() if name in free) / max(1, sum(sizes.values()))
    return f"they touch {100 * share:.1f} % of the parameters"


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
