"""Networks for texts: small students, and BERT from a config.

All are called ``network(input_ids=..., attention_mask=...)`` on int64 ``[batch, length]``, texts
padded on the right, and give the same logits however long the padding is.
"""

from prunus.zoo.text.arguments import (
    BertSmallArguments,
    BertTinyArguments,
    BiLstmArguments,
    TextArguments,
    TextCnnArguments,
)
from prunus.zoo.text.bert import make_bert
from prunus.zoo.text.bilstm import BiLstm
from prunus.zoo.text.textcnn import TextCnn

__all__ = [
    "BertSmallArguments",
    "BertTinyArguments",
    "BiLstm",
    "BiLstmArguments",
    "TextArguments",
    "TextCnn",
    "TextCnnArguments",
    "make_bert",
]
