"""What the low-rank methods share: layers found, inputs weighed, sizes chosen, factors computed."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, final

from torch import Tensor, nn

from prunus.errors import GraphError, InputError
from prunus.graph import Inputs, Trace
from prunus.lowrank.blocks import Block, EmbeddingBlock, LinearBlock
from prunus.lowrank.layers import Kind, Layer, Selection, select_layers
from prunus.lowrank.moments import Moments, input_moments
from prunus.lowrank.options import LowRankOptions
from prunus.lowrank.sizing import Sizes, Sizing, no_layer
from prunus.method import Budget, Configured, Context, Decision, train_split
from prunus.plan import Factorize


class LowRank(Configured[LowRankOptions]):
    """Replaces layers by chains of thinner ones.

    Attributes:
        kinds: Of layers that it factorizes; embeddings where the user asks for them.
    """

    options_type = LowRankOptions
    edits = True
    kinds: ClassVar[tuple[Kind, ...]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.require_packages()  # now, not after the dense network has been trained

    @property
    def sizes_itself(self) -> bool:
        """Whether a rank or an energy was given."""
        return self.options.rank is not None or self.options.energy is not None

    @abstractmethod
    def blocks(
        self, network: nn.Module, layers: Sequence[Layer], moments: Moments
    ) -> tuple[Block, ...]:
        """Which layers are factorized together, embeddings left out."""

    def require_packages(self) -> None:
        """Refuse to begin without an optional package that it needs."""

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:
        """Needs a layer to factorize."""
        if not self._select(network, inputs).layers:
            raise GraphError(no_layer(self.name))

    def require_repeatable(self, rounds: int) -> None:
        """Every round but the first would make chains of chains."""
        raise InputError(f"method '{self.name}' would factorize its own factors in {rounds} rounds")

    def require_reachable(self, network: nn.Module, trace: Trace, budget: Budget) -> None:
        """Needs a target that the rank given meets, or rank 1 of all layers."""
        selection = self._select(network, trace.example_inputs, trace.ignored)
        blocks = self._blocks(network, selection, {})
        Sizing(blocks, trace, budget, self.name).require_reachable(self.options)

    def _select(self, network: nn.Module, inputs: Inputs, held: Collection[str] = ()) -> Selection:
        options = self.options
        return select_layers(
            network,
            inputs,
            (*self.kinds, nn.Embedding) if options.embeddings else self.kinds,
            ignore=options.ignore,
            classifier=options.classifier,
            held=held,
        )

    @final
    def decide(self, context: Context) -> Decision:
        """Factorize to the rank or energy given, or else to the budget.

        Raises:
            BudgetError: The budget cannot be met.
            InputError: A glob of ``ignore`` matches nothing, or calibration has no usable data.
        """
        options, network, trace = self.options, context.network, context.trace
        selection = self._select(network, trace.example_inputs, trace.ignored)
        moments = self._moments(context, selection.layers)
        found = self._blocks(network, selection, moments)
        sizes = Sizing(found, trace, context.budget, self.name).by_options(options)
        edits, tensors = _factorized(context, found, sizes)
        order = {layer.path: at for at, layer in enumerate(selection.layers)}
        ordered: list[Factorize] = sorted(edits, key=lambda edit: order[edit.module])
        return Decision(
            choice={},
            edits=tuple(ordered),
            tensors=tensors,
            notes=_notes(self.name, selection, found, sizes),
        )

    def _blocks(
        self, network: nn.Module, selection: Selection, moments: Moments
    ) -> tuple[Block, ...]:
        """All blocks, embeddings first."""
        tables = [la for la in selection.layers if isinstance(la.module, nn.Embedding)]
        others = [la for la in selection.layers if not isinstance(la.module, nn.Embedding)]
        return (
            *(EmbeddingBlock((la,), moments) for la in tables),
            *self.blocks(network, others, moments),
        )

    def _moments(self, context: Context, layers: Sequence[Layer]) -> Moments:
        options = self.options
        if not options.calibration:
            return {}
        split = train_split(context, self)
        return input_moments(
            context.network,
            layers,
            split.subset(min(options.calibration, len(split)), context.seed),
            batch_size=options.batch_size,
            device=context.device,
            progress=context.progress,
        )


def alone(layers: Sequence[Layer], moments: Moments) -> tuple[LinearBlock, ...]:
    """Every linear layer for itself."""
    return tuple(LinearBlock((layer,), moments) for layer in layers)


def _factorized(
    context: Context, blocks: Sequence[Block], sizes: Sizes
) -> tuple[list[Factorize], dict[str, Tensor]]:
    chosen = [(b, r) for b, r in zip(blocks, sizes, strict=True) if r is not None]
    edits: list[Factorize] = []
    tensors: dict[str, Tensor] = {}
    context.progress.start("factorize", len(chosen))
    for block, ranks in chosen:
        edits += block.edits(ranks)
        tensors |= block.tensors(ranks)
        context.progress.advance()
    context.progress.finish()
    return edits, tensors


def _notes(
    method: str, selection: Selection, blocks: Sequence[Block], sizes: Sizes
) -> tuple[str, ...]:
    pairs = list(zip(blocks, sizes, strict=True))
    done = sum(len(b.layers) for b, r in pairs if r is not None)
    whole = [la.path for b, r in pairs if r is None for la in b.layers]
    told = [f"{method}: {done} layers factorized"]
    if whole:
        told.append(f"{len(whole)} stay whole, as factors would not be smaller ('{whole[0]}' ...)")
    return (", ".join(told), *selection.notes)
