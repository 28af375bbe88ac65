"""Split texts into pieces: the tokenizer of a network, or one trained on the data."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from prunus.errors import DataError, InputError, first_line
from prunus.extras import require_extra
from prunus.plan import BoolArray

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FILE = "tokenizer.json"
_VOCAB = "vocab.txt"
_SETTINGS = "tokenizer_config.json"
_WORDPIECE = "WordPiece"
_OF_BERT = {
    f"{name}Tokenizer"
    for name in (
        "Bert",
        "ConvBert",
        "DPRContextEncoder",
        "DPRQuestionEncoder",
        "DPRReader",
        "DistilBert",
        "Electra",
        "LayoutLM",
        "Lxmert",
        "MobileBert",
        "RetriBert",
        "SqueezeBert",
    )
}
"""Tokenizers that are BERT's by another name."""
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


@final
class TextTokenizer:
    """Texts to numbers of pieces, special ones included. It never pads; stores do.

    Args:
        content: Of a ``tokenizer.json``, as the library ``tokenizers`` writes it.

    Raises:
        DataError: The content is no tokenizer.
    """

    def __init__(self, content: str) -> None:
        library = require_extra("tokenizers", "text")
        try:
            self._pieces: Any = library.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare exceptions
            raise DataError(f"no valid tokenizer: {str(error).splitlines()[0]}") from error
        told = self._pieces.padding
        self._pieces.no_padding()
        self._pieces.no_truncation()
        self._content: dict[str, Any] = json.loads(self._pieces.to_str())
        numbers = (self._pieces.token_to_id(piece) for piece in _PADS)
        self._named_pad = next((int(number) for number in numbers if number is not None), 0)
        self._pad = self._named_pad
        # What a library's default says is not believed: number and name have to agree.
        if told is not None and self._pieces.token_to_id(told["pad_token"]) == told["pad_id"]:
            self._pad_with_(int(told["pad_id"]))

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a ``tokenizer.json``.

        Raises:
            DataError: It cannot be read, or is none.
        """
        try:
            content = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            raise DataError(f"'{path}' cannot be read: {reason}; name a tokenizer.json") from error
        return cls(content)

    @classmethod
    def load(cls, name: str) -> Self:
        """The tokenizer of a network: a folder, a ``tokenizer.json`` or ``vocab.txt``, or a hub name.

        Raises:
            DataError: There is none, or it has no fast form.
        """
        path = Path(name)
        if path.is_file():
            if path.suffix != ".txt":
                return cls.read(path)
            return cls.of_vocabulary(path, _settings(path.parent))
        if (path / _FILE).is_file():
            return cls.read(path / _FILE)
        if (path / _VOCAB).is_file():
            return cls.of_vocabulary(path / _VOCAB, _settings(path))
        transformers = require_extra("transformers", "text")
        try:
            found = transformers.AutoTokenizer.from_pretrained(name)
            content = found.backend_tokenizer.to_str()
            words = set(found.get_vocab()) - set(found.all_special_tokens)
        except Exception as error:  # the library raises many kinds
            reason = first_line(error)
            raise DataError(
                f"no tokenizer of '{name}': {reason}; give a folder with tokenizer.json or vocab.txt"
            ) from error
        if not words:  # what the library makes up from a config alone: all texts would be one
            raise DataError(
                f"no tokenizer of '{name}': its files say no words; save the network's there "
                "(tokenizer.save_pretrained), or give a folder with tokenizer.json or vocab.txt"
            )
        return cls(content)

    @classmethod
    def of_vocabulary(cls, path: Path, settings: "Normalization | None" = None) -> Self:
        """BERT's WordPiece over a ``vocab.txt`` with one piece a line.

        Raises:
            DataError: The file cannot be read, has a piece twice, or lacks a special one.
        """
        try:
            content = path.read_text(encoding="utf-8")  # "\r\n" is read as "\n"
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"'{path}' cannot be read; name a vocab.txt in UTF-8") from error
        # Not splitlines: it ends lines at characters that are pieces of multilingual vocabularies.
        lines = content.removesuffix("\n").split("\n")
        vocabulary: dict[str, int] = {}
        for number, piece in enumerate(lines):
            if vocabulary.setdefault(piece, number) != number:
                raise DataError(
                    f"'{path}' has the token '{piece}' twice, again in line {number + 1}; name a "
                    "vocab.txt with each token once"
                )
        missing = [piece for piece in SPECIAL[:4] if piece not in vocabulary]
        if missing:
            raise DataError(f"'{path}' has no token {missing[0]}; name a vocabulary of BERT's form")
        return cls(_bert(vocabulary, settings or Normalization()).to_str())

    @classmethod
    def train_wordpiece(cls, texts: Sequence[str], vocab_size: int, *, lower: bool = True) -> Self:
        """Train WordPiece on texts; the same texts give the same pieces.

        Schuster and Nakajima, "Japanese and Korean Voice Search", ICASSP 2012, section 2, as the
        library ``tokenizers`` trains it. Every character of the texts is a piece.

        Args:
            texts: Training texts, and no others.
            vocab_size: Most pieces, the special ones included; more where there are more characters.
            lower: Lower case before all else.
        """
        library = require_extra("tokenizers", "text")
        trainers = require_extra("tokenizers.trainers", "text")
        normal = Normalization(lower=lower)
        begun = _bert({piece: i for i, piece in enumerate(SPECIAL)}, normal)
        # The trainer breaks ties by the numbers of pieces, and numbers characters in the order of a
        # hash table, unless they have numbers beforehand.
        letters = sorted({c for text in texts for c in begun.normalizer.normalize_str(text)})
        letters = [letter for letter in letters if not letter.isspace()]
        first = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=max(vocab_size, len(first)), special_tokens=first, show_progress=False
        )
        begun.model = library.models.WordPiece(unk_token=SPECIAL[1])
        begun.train_from_iterator(texts, trainer)
        return cls(_bert(begun.get_vocab(), normal).to_str())

    @property
    def vocab_size(self) -> int:
        """Pieces that there are."""
        return int(self._pieces.get_vocab_size(with_added_tokens=True))

    @property
    def pad_id(self) -> int:
        """Number of the piece that pads texts: as told, else by its name; 0 where none has one."""
        return self._pad

    @property
    def unknown_id(self) -> int | None:
        """Number of the piece for what cannot be spelled, where there is one."""
        name = self._content["model"].get("unk_token")
        number = None if name is None else self._pieces.token_to_id(name)
        return None if number is None else int(number)

    @property
    def ignores_case(self) -> bool:
        """Whether texts that differ by their case alone are split into the same pieces."""
        before = self._pieces.normalizer
        return before is not None and before.normalize_str("A") == before.normalize_str("a")

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def padding_with(self, number: int) -> "TextTokenizer":
        """The same pieces, and texts are padded with another one: itself where there is none such."""
        if number == self._pad or number < 0 or self._pieces.id_to_token(number) is None:
            return self
        changed = TextTokenizer(self._text())
        changed._pad_with_(number)
        return changed

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Numbers of pieces of every text, at most ``max_length``, special pieces kept where they fit."""
        special = self._pieces.num_special_tokens_to_add(False)
        if max_length > special:
            self._pieces.enable_truncation(max_length)
        try:
            found = self._pieces.encode_batch_fast(list(texts))
        finally:
            self._pieces.no_truncation()  # which the file does not hold
        return [list(one.ids)[:max_length] for one in found]

    def fallback_pieces(self) -> frozenset[int]:
        """What any text can be spelled with: special pieces, and single characters."""
        found = {int(entry["id"]) for entry in self._content.get("added_tokens", [])} | {self._pad}
        for piece, number in self._pieces.get_vocab(with_added_tokens=True).items():
            if piece in SPECIAL or len(piece.removeprefix("##")) == 1:
                found.add(int(number))
        return frozenset(found)

    def trimmed(self, keep: BoolArray) -> "TextTokenizer":
        """The tokenizer with a part of its pieces, numbered anew in order.

        A text whose pieces all stay is split as before; another one into smaller pieces that stay,
        down to single characters.

        Args:
            keep: Bool ``[vocab_size]``.

        Raises:
            InputError: The tokenizer is no WordPiece, ``keep`` has another length, or a special
                piece would go.
        """
        model = self._content["model"]
        if model.get("type") != _WORDPIECE:
            raise InputError(
                f"the tokenizer is a {model.get('type')}: vocabulary trimming supports WordPiece, as "
                "BERT has; leave the vocabulary whole"
            )
        if len(keep) != self.vocab_size:
            raise InputError(f"keep has {len(keep)} flags for {self.vocab_size} tokens")
        new = {int(old): number for number, old in enumerate(keep.nonzero()[0])}
        added = self._content.get("added_tokens", [])
        padding = self._content["padding"]
        lost = [entry["content"] for entry in added if int(entry["id"]) not in new]
        if padding is not None and int(padding["pad_id"]) not in new:
            lost.append(padding["pad_token"])
        if lost:
            raise InputError(f"token {lost[0]} is special and must stay")
        content = json.loads(self._text())
        content["model"]["vocab"] = {
            piece: new[number] for piece, number in model["vocab"].items() if number in new
        }
        content["added_tokens"] = [{**entry, "id": new[int(entry["id"])]} for entry in added]
        if padding is not None:
            content["padding"] = {**padding, "pad_id": new[int(padding["pad_id"])]}
        _renumber(content.get("post_processor"), new)
        return TextTokenizer(json.dumps(content, ensure_ascii=False))

    def save(self, path: Path | str) -> None:
        """Write a ``tokenizer.json``."""
        Path(path).write_text(self._text(), encoding="utf-8")

    def _pad_with_(self, number: int) -> None:
        """Pad with a piece, and keep it in the content where its name alone would not tell it."""
        self._pad = number
        self._content["padding"] = None
        if number == self._named_pad:
            return
        self._content["padding"] = {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": number,
            "pad_type_id": 0,
            "pad_token": self._pieces.id_to_token(number),
        }

    def _text(self) -> str:
        return json.dumps(self._content, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Normalization:
    """What BERT's tokenizer does to texts before it splits them.

    Attributes:
        lower: Lower case.
        strip_accents: Letters without their accents; None: where texts are in lower case.
        chinese: Every Chinese character is a word.
    """

    lower: bool = True
    strip_accents: bool | None = None
    chinese: bool = True


def _bert(vocabulary: dict[str, int], normal: Normalization) -> Any:
    """A tokenizer that splits, lowers and frames texts as BERT's does."""
    library = require_extra("tokenizers", "text")
    processors = require_extra("tokenizers.processors", "text")
    made = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=SPECIAL[1]))
    made.normalizer = library.normalizers.BertNormalizer(
        lowercase=normal.lower,
        strip_accents=normal.strip_accents,
        handle_chinese_chars=normal.chinese,
    )
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    made.add_special_tokens([piece for piece in SPECIAL if piece in vocabulary])
    ends = [(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return made


def _settings(folder: Path) -> Normalization:
    """What the settings beside a vocabulary say; BERT's where there are none.

    Raises:
        DataError: The file is none, or of a tokenizer of another form.
    """
    path = folder / _SETTINGS
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Normalization()
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is no JSON file; mend or remove it") from error
    if not isinstance(told, dict):
        return Normalization()
    form = str(told.get("tokenizer_class") or "BertTokenizer")
    if form.removesuffix("Fast") not in _OF_BERT:
        raise DataError(
            f"'{path}' is of a {form}, whose vocab.txt alone does not say how it splits texts; save its "
            "tokenizer.json there (tokenizer.save_pretrained)"
        )
    accents = told.get("strip_accents")
    return Normalization(
        lower=bool(told.get("do_lower_case", True)),
        strip_accents=None if accents is None else bool(accents),
        chinese=bool(told.get("tokenize_chinese_chars", True)),
    )


def _renumber(content: Any, new: dict[int, int]) -> None:
    """New numbers in the post-processor, which knows the special pieces by number, too."""
    if not isinstance(content, dict):
        return
    for name in ("sep", "cls"):
        if name in content:
            content[name] = [content[name][0], new[int(content[name][1])]]
    for entry in content.get("special_tokens", {}).values():
        entry["ids"] = [new[int(number)] for number in entry["ids"]]
    for inner in content.get("processors", ()):
        _renumber(inner, new)


def unknown_share(tokenizer: TextTokenizer, pieces: Iterable[Sequence[int]]) -> float:
    """Share of the pieces that could not be spelled."""
    unknown, total, missing = tokenizer.unknown_id, 0, 0
    for one in pieces:
        total += len(one)
        missing += sum(number == unknown for number in one)
    return missing / max(1, total)
