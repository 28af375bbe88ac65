"""All that a scorer in another process is made from: sent there once."""

import copy
import pickle
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from prunus.candidates.execution import ScoringExecution
from prunus.candidates.readable import require_readable, unreadable
from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.data import Inputs as Batch
from prunus.device import resolve_device
from prunus.errors import InputError, first_line
from prunus.graph import Inputs, call, cut, relative_difference, without_packing
from prunus.graph.inputs import output_tensors
from prunus.plan import Plan
from prunus.records import Source
from prunus.seeding import seeded
from prunus.train.forward import buffers_restored, modes_restored, placed
from prunus.zoo import load_source, without_weights

Array = npt.NDArray[np.generic]
Arrays = Array | dict[str, Array]

# Other threads and other machines round otherwise; another function differs by far more.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Probe:
    """What a network answers to a few samples: one that is built elsewhere has to answer so, too.

    Attributes:
        samples: A small batch.
        answers: Outputs in evaluation mode on the CPU, in float32 as a rule.
    """

    samples: Inputs
    answers: list[Tensor]

    @classmethod
    def of(cls, network: nn.Module, samples: Inputs) -> "Probe":
        """Ask a network, which is given back as it was."""
        return cls(samples, _answers(network, samples))

    def require(self, network: nn.Module, source: Source) -> None:
        """Refuse a network that answers otherwise, or not at all.

        Raises:
            InputError: It does; names the source.
        """
        try:
            found = _answers(network, self.samples)
        except Exception as error:  # a user's forward may raise anything
            reason = first_line(error)
            raise _another(source, f"it does not run ({reason})") from error
        difference = relative_difference(self.answers, found)
        if not difference <= _TOLERANCE:
            raise _another(source, f"answers differ by {difference:.1e} of the largest")


@dataclass(frozen=True, eq=False)
class Blueprint:
    """How another process builds a network.

    Attributes:
        source: Builds the dense network by its own constructor; None where there is only
            ``structure``.
        plans: Cuts that led from there to this network.
        structure: The pickled modules without values, for a network that has no source. It travels
            between processes of one run and is never stored.
        weights: Values of all parameters and buffers, as safetensors.
        probe: What it answers; None: nobody looks.
    """

    source: Source | None
    plans: tuple[Plan, ...]
    structure: bytes | None
    weights: bytes
    probe: Probe | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        source: Source | None = None,
        plans: tuple[Plan, ...] = (),
        samples: Inputs | None = None,
    ) -> "Blueprint":
        """Describe a network.

        Args:
            network: Not touched.
            source: Builds the dense network by its own constructor.
            plans: Cuts that led from there to this network.
            samples: By which a network that the source builds is told from another.

        Raises:
            InputError: It has no source and cannot be sent.
        """
        weights = save({n: t.detach().cpu().contiguous().clone() for n, t in _named(network)})
        if source is not None:
            probe = None if samples is None else Probe.of(network, samples)
            return cls(without_weights(source), plans, None, weights, probe)
        hollow = copy.deepcopy(network, {id(t): _like(t, _hollow(t)) for _, t in _named(network)})
        try:
            structure = pickle.dumps(hollow)
        except Exception as error:
            raise InputError(
                f"network {type(network).__name__} cannot be sent to other processes: {error}; name "
                "its source (FILE.py:FACTORY), or use engine=serial"
            ) from error
        return cls(None, (), structure, weights)

    def require_readable(self, name: str, engine: str) -> None:
        """Refuse a structure that workers of an engine cannot read; a source they build.

        Raises:
            InputError: Names the network's class, as ``name``.
        """
        if self.structure is not None:
            require_readable(self.structure, name, engine)

    def build(self) -> nn.Module:
        """The network, in evaluation mode.

        Raises:
            InputError: The source builds another one than it did: a file was edited, or something
                beside the tensors is drawn anew; or the structure cannot be read here.
        """
        if self.source is None:
            try:
                network = pickle.loads(self.structure or b"")
            except Exception as error:  # of a machine that lacks a module, or has another one
                raise unreadable("structure", error) from error
            return _filled(network, load(self.weights))
        network = load_source(self.source)
        for plan in self.plans:
            network = cut(network, plan)
        values = load(self.weights)
        _require_same_tensors(network, values, self.source)
        network = _filled(network, values)
        if self.probe is not None:
            self.probe.require(network, self.source)
        return network


@dataclass(frozen=True, eq=False)
class Setup:
    """A scorer's network, images and settings; numpy arrays, which other processes can share."""

    blueprint: Blueprint
    search: Arrays
    labels: Array
    reference: Array
    difficulty: Array
    calibration: tuple[Arrays, ...]
    execution: ScoringExecution
    batch_size: int
    tricks: Tricks
    device: str = "cpu"
    lengths: Array | None = None
    seed: int = 0

    @classmethod
    def of(
        cls,
        blueprint: Blueprint,
        images: Images,
        execution: ScoringExecution,
        batch_size: int,
        tricks: Tricks,
        device: str,
        seed: int = 0,
    ) -> "Setup":
        """Gather a setup from tensors."""
        return cls(
            blueprint,
            _arrays(images.search),
            images.labels.numpy(),
            images.reference.numpy(),
            images.difficulty.numpy(),
            tuple(_arrays(batch) for batch in images.calibration),
            execution,
            batch_size,
            tricks,
            device,
            None if images.lengths is None else images.lengths.numpy(),
            seed,
        )


def make_scorer(setup: Setup) -> Scorer:
    """Build the scorer of a setup, in the process that calls this."""
    images = Images(
        _inputs(setup.search),
        _tensor(setup.labels),
        _tensor(setup.reference),
        _tensor(setup.difficulty),
        tuple(_inputs(batch) for batch in setup.calibration),
        None if setup.lengths is None else _tensor(setup.lengths),
    )
    return Scorer(
        setup.blueprint.build().to(resolve_device(setup.device)),
        images,
        execution=setup.execution,
        batch_size=setup.batch_size,
        tricks=setup.tricks,
        seed=setup.seed,
    )


def _answers(network: nn.Module, samples: Inputs) -> list[Tensor]:
    # What is searched packs no padding: what its source builds may.
    home, network = torch.device("cpu"), without_packing(network)
    with (
        modes_restored(network),
        placed(network, home, channels_last=False),
        buffers_restored(network),
        seeded(0),
        torch.no_grad(),
    ):
        return [t.detach().clone() for t in output_tensors(call(network.eval(), samples))]


def _another(source: Source, how: str) -> InputError:
    return InputError(
        f"source '{source.model}', called again, builds another network than the one searched: {how}; "
        "leave its file as it is and have it build the same each time, or use engine=serial"
    )


def _require_same_tensors(network: nn.Module, values: dict[str, Tensor], source: Source) -> None:
    found = {name: list(tensor.shape) for name, tensor in _named(network)}
    wanted = {name: list(tensor.shape) for name, tensor in values.items()}
    names = (*sorted(wanted), *sorted(found))  # a safetensors file has them in no order of its own
    name = next((n for n in names if found.get(n) != wanted.get(n)), None)
    if name is not None:
        there, here = (own.get(name, "absent") for own in (found, wanted))
        raise _another(source, f"'{name}' is {there}, not {here}")


def _filled(network: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    full = {id(t): _like(t, values[name]) for name, t in _named(network)}
    return copy.deepcopy(network, full).eval()


def _named(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _hollow(tensor: Tensor) -> Tensor:
    """The shape without the values: one number, however large the tensor."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """A value as the kind of tensor that another is."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _arrays(inputs: Batch) -> Arrays:
    if isinstance(inputs, Tensor):
        return inputs.numpy()
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def _inputs(arrays: Arrays) -> Batch:
    if isinstance(arrays, dict):
        return {name: _tensor(array) for name, array in arrays.items()}
    return _tensor(arrays)


def _tensor(array: Array) -> Tensor:
    # Arrays from a shared store cannot be written to, which torch warns of: a copy can.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
