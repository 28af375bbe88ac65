"""BERT of any size from a config, its weights drawn here."""

from typing import cast

from torch import nn

from prunus.extras import require_extra
from prunus.zoo.layers import scaled
from prunus.zoo.text.arguments import BertTinyArguments

_HEAD_WIDTH = 64  # Turc et al., section 4: "A = H / 64"
_FEED_FORWARD = 4


def make_bert(arguments: BertTinyArguments) -> nn.Module:
    """A ``BertForSequenceClassification`` of transformers, with the names of its checkpoints.

    One attention head for 64 channels as in the published sizes, feed-forward width four times the
    hidden width. Fewer heads where the width does not divide among them.

    References:
        Devlin et al., "BERT", NAACL 2019 (https://arxiv.org/abs/1810.04805); sizes of Turc et al.,
        "Well-Read Students Learn Better", 2019, table 1 (https://arxiv.org/abs/1908.08962).

    Raises:
        MissingExtraError: transformers is not installed.
    """
    transformers = require_extra("transformers", "text")
    hidden = scaled(arguments.hidden, arguments.width)
    config = transformers.BertConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=_heads(hidden),
        intermediate_size=_FEED_FORWARD * hidden,
        max_position_embeddings=arguments.max_length,
        hidden_dropout_prob=arguments.dropout,
        attention_probs_dropout_prob=arguments.dropout,
        pad_token_id=arguments.pad_id,
        num_labels=arguments.num_classes,
    )
    return cast(nn.Module, transformers.BertForSequenceClassification(config))


def _heads(hidden: int) -> int:
    most = max(1, hidden // _HEAD_WIDTH)
    return next(heads for heads in range(most, 0, -1) if hidden % heads == 0)
