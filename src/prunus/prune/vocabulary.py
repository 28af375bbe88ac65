"""Tokens of the vocabulary that the data does not need go, with their rows of the embedding tables."""

from collections.abc import Iterator
from typing import Any, ClassVar, final

import numpy as np
from pydantic import Field
from torch import nn

from prunus.errors import BudgetError, GraphError, InputError
from prunus.graph import Inputs, word_tables
from prunus.method import Configured, Context, Decision, Need, search_split, train_split
from prunus.plan import Bits, BoolArray, IntArray, KeepVocabulary, Record

_PIECES = "input_ids"
_MASK = "attention_mask"


class VocabularyOptions(Record):
    """What stays, beside the tokens that any text can be spelled with.

    Attributes:
        min_count: Tokens that occur at least so often in the training and search texts.
        keep_top: Tokens that stay in all, the most frequent ones of these; those that any text can be
            spelled with stay even where they are more.
    """

    min_count: int = Field(default=1, ge=1)
    keep_top: int | None = Field(default=None, ge=1)


@final
class Vocabulary(Configured[VocabularyOptions]):
    """Keeps the tokens that the training and search texts hold, and special tokens and characters.

    Texts whose tokens are all kept have the same logits; others are spelled by smaller tokens. With a
    target the most frequent tokens stay, as many as it allows.

    Source: Abdaoui et al., "Load What You Need: Smaller Versions of Multilingual BERT", SustaiNLP 2020.
    """

    name = "vocabulary"
    summary = "tokens of the vocabulary that the data does not hold go (Abdaoui et al. 2020)"
    needs = frozenset({Need.TRAIN, Need.SEARCH})
    edits: ClassVar[bool] = True
    targets = frozenset({"params", "size"})
    options_type = VocabularyOptions

    @property
    def sizes_itself(self) -> bool:
        """Always: the data says what stays."""
        return True

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:
        """Needs a table of tokens that no other layer shares."""
        _tables(network, inputs)

    def decide(self, context: Context) -> Decision:
        """Count tokens, keep the most frequent ones."""
        tables = _tables(context.network, context.trace.example_inputs)
        _require_free(context, tables)
        size = len(context.network.get_parameter(tables[0]))
        counts = np.zeros(size, dtype=np.int64)
        for split in (train_split(context, self), search_split(context, self)):
            for inputs, _ in split.batches(256):
                counts += _counted(inputs, size)
        always = np.zeros(size, dtype=bool)
        always[[piece for piece in context.fallback_pieces if piece < size]] = True
        always[[piece for piece in _special(context.network, tables) if 0 <= piece < size]] = True
        wanted = (counts >= self.options.min_count) & ~always
        order = np.flatnonzero(wanted)
        order = order[np.argsort(-counts[order], kind="stable")]
        if self.options.keep_top is not None:
            order = order[: max(0, self.options.keep_top - int(always.sum()))]
        keep = _within_budget(context, tables, always, order)
        share = counts[keep].sum() / max(1, counts.sum())
        note = f"vocabulary: {int(keep.sum())} of {size} tokens stay; they are {share:.2%} of the "
        note += "tokens that the texts hold"
        edit = KeepVocabulary(tables=tables, keep=Bits.pack(keep))
        edits = () if bool(keep.all()) else (edit,)
        return Decision(choice={}, edits=edits, notes=(note,))


def _require_free(context: Context, tables: tuple[str, ...]) -> None:
    """Refuse to cut rows of a table that the user left out.

    Raises:
        InputError: One is.
    """
    for path in (table.rpartition(".")[0] for table in tables):
        if path in context.trace.ignored:
            raise InputError(
                f"method 'vocabulary': ignore names '{path}', whose rows it would cut; leave it out of "
                "ignore, or take another method"
            )


def _tables(network: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Tables that can be trimmed.

    Raises:
        GraphError: There is none, or the output layer shares its weights.
    """
    tables = word_tables(network, inputs)
    if not tables:
        raise GraphError(
            f"method 'vocabulary' finds no table that {type(network).__name__} looks the tokens of "
            "texts up in; it is for networks that take input_ids"
        )
    weights = {id(network.get_parameter(name)) for name in tables}
    for module in network.modules():
        shares = id(module._parameters.get("weight")) in weights
        if shares and not isinstance(module, nn.Embedding):
            raise GraphError(
                f"method 'vocabulary' cannot trim {type(network).__name__}: its output layer has the "
                "weights of the table of tokens, so that logits would go, too; give it a classifier"
            )
    return tables


def _counted(inputs: Any, size: int) -> IntArray:
    """How often each token occurs in texts, what pads them apart: int64 ``[size]``.

    Raises:
        InputError: A text holds a token that the table has no row for.
    """
    ids = inputs[_PIECES].flatten()
    mask = inputs.get(_MASK)
    if mask is not None:
        ids = ids[mask.flatten() != 0]
    found = np.bincount(ids.numpy(), minlength=size)
    if len(found) > size:
        raise InputError(
            f"method 'vocabulary': the texts hold token {len(found) - 1}, the network's table has "
            f"{size} rows; load the texts with the network's own tokenizer"
        )
    return found


def _special(network: nn.Module, tables: tuple[str, ...]) -> list[int]:
    """Tokens that tables and configs know by number: padding, beginnings, ends."""
    found = [
        getattr(network.get_submodule(t.rpartition(".")[0]), "padding_idx", None) for t in tables
    ]
    config = vars(network).get("config")
    found += [getattr(config, name, None) for name in _special_names(config)]
    return [piece for piece in found if isinstance(piece, int)]


def _special_names(config: Any) -> Iterator[str]:
    """Of the numbers of tokens that a config holds."""
    yield from (name for name in dir(config) if name.endswith("_token_id"))


def _within_budget(
    context: Context, tables: tuple[str, ...], always: BoolArray, order: IntArray
) -> BoolArray:
    """As many of ``order`` as the budget allows, beside those that always stay.

    Raises:
        BudgetError: Those that always stay are too many.
    """

    def kept(n: int) -> BoolArray:
        keep = always.copy()
        keep[order[:n]] = True
        return keep

    budget, network = context.budget, context.network
    dense = budget.measure(context.trace, {})
    limit = budget.limit(dense)
    whole = kept(len(order))
    if budget.quantity == "macs":
        if limit >= dense:
            return whole
        raise BudgetError(
            f"target macs={budget.value:g}: rows of a table cost no MACs, so that {dense} are left "
            "however few tokens stay; give a target on params or size"
        )
    widths = sum(network.get_parameter(name).shape[1] for name in tables)
    if budget.quantity == "size":
        widths *= network.get_parameter(tables[0]).element_size()
    room = limit - (dense - (len(whole) * widths))
    most = room // widths - int(always.sum())
    if most < 0:
        least = dense - (len(whole) - int(always.sum())) * widths
        raise BudgetError(
            f"target {budget.quantity}={budget.value:g} allows {limit}; with special tokens and "
            f"characters alone {least} of {dense} are left; ask for that or more"
        )
    return kept(min(len(order), int(most)))
