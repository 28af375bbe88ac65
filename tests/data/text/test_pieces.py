"""The tokenizer and the store: BERT's vocabulary, smaller ones, special pieces, batches."""

import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.data import TextTokenizer, TokenStore
from prunus.data.text.tokenizer import SPECIAL, Normalization, unknown_share
from prunus.errors import DataError, InputError
from tests.data.text.makers import rows, tiny_tokenizer, token_store

VOCABULARY = [*SPECIAL, "un", "##aff", "##able", "a", "##b", "b", "."]


def _vocabulary(path: Path, pieces: list[str], end: str = "\n") -> Path:
    path.write_bytes(end.join([*pieces, ""]).encode())
    return path


def _bert(folder: Path) -> TextTokenizer:
    root = os.environ.get("PRUNUS_DATA")
    packed = Path(root or "") / "text" / "bert-base-uncased-vocab.txt.xz"
    if not root or not packed.is_file():
        pytest.skip("the folder of shared data is not here")
    path = folder / "vocab.txt"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return TextTokenizer.load(str(path))


def test_the_vocabulary_of_bert_gives_the_known_pieces(tmp_path: Path) -> None:
    tokenizer = _bert(tmp_path)
    assert tokenizer.vocab_size == 30_522
    assert (tokenizer.pad_id, tokenizer.unknown_id) == (0, 100)
    # As in the documentation of BERT: [CLS] hello , world ! [SEP].
    assert tokenizer.encode(["Hello, world!"], 16) == [[101, 7592, 1010, 2088, 999, 102]]
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")
    (ids,) = tokenizer.encode(["unaffable"], 16)
    # The example of BERT's own tests: un ##aff ##able.
    assert [lines[i] for i in ids] == ["[CLS]", "una", "##ffa", "##ble", "[SEP]"]
    assert TextTokenizer.load(str(tmp_path)).digest == tokenizer.digest


def test_a_folder_without_words_is_refused(tmp_path: Path) -> None:
    """The library makes up a tokenizer of the special tokens alone, by which all texts are one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"no tokenizer of '{tmp_path}'.*tokenizer.save_pretrained"):
        TextTokenizer.load(str(tmp_path))


def test_a_vocabulary_is_split_by_the_longest_piece_first(tmp_path: Path) -> None:
    path = _vocabulary(tmp_path / "vocab.txt", VOCABULARY)
    tokenizer = TextTokenizer.of_vocabulary(path)
    number = {piece: i for i, piece in enumerate(VOCABULARY)}
    (ids,) = tokenizer.encode(["UNAFFABLE ab zz."], 32)
    wanted = ["[CLS]", "un", "##aff", "##able", "a", "##b", "[UNK]", ".", "[SEP]"]
    assert ids == [number[piece] for piece in wanted]
    assert unknown_share(tokenizer, [ids]) == 1 / 9
    cased = TextTokenizer.of_vocabulary(path, Normalization(lower=False))
    assert cased.encode(["UN"], 32) == [[2, 1, 3]]


def test_lines_of_a_vocabulary_end_at_line_feeds_alone(tmp_path: Path) -> None:
    pieces = [*SPECIAL, "\u2028", "a"]  # a line separator is a piece of multilingual vocabularies
    tokenizer = TextTokenizer.of_vocabulary(_vocabulary(tmp_path / "a.txt", pieces))
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode(["a"], 8) == [[2, 6, 3]]
    windows = TextTokenizer.of_vocabulary(_vocabulary(tmp_path / "b.txt", VOCABULARY, "\r\n"))
    assert windows.encode(["b"], 8) == [[2, 10, 3]]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["a", "b"], r"has no token \[PAD\]; name a vocabulary"),
        ([*SPECIAL, "a", "a"], "token 'a' twice, .*line 7"),
    ],
)
def test_a_broken_vocabulary_is_refused(tmp_path: Path, pieces: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextTokenizer.of_vocabulary(_vocabulary(tmp_path / "vocab.txt", pieces))


def test_a_folder_that_says_so_keeps_upper_case(tmp_path: Path) -> None:
    _vocabulary(tmp_path / "vocab.txt", VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert TextTokenizer.load(str(tmp_path)).encode(["UN un"], 8) == [[2, 1, 5, 3]]


def test_the_settings_beside_a_vocabulary_hold_for_the_file_too(tmp_path: Path) -> None:
    path = _vocabulary(tmp_path / "vocab.txt", VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert TextTokenizer.load(str(path)).encode(["UN un"], 8) == [[2, 1, 5, 3]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
)
def test_a_vocabulary_is_read_as_transformers_reads_it(
    tmp_path: Path, settings: dict[str, bool]
) -> None:
    transformers = pytest.importorskip("transformers")
    pieces = [*SPECIAL, "schon", "sch\u00f6n", "Haus", "haus", "\u4e2d", "\u4e2d\u4e2d"]
    _vocabulary(tmp_path / "vocab.txt", pieces)
    config = {"tokenizer_class": "BertTokenizer", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "sch\u00f6n Haus \u4e2d\u4e2d"
    assert TextTokenizer.load(str(tmp_path)).encode([text], 16) == [theirs(text)["input_ids"]]


def test_a_vocabulary_of_another_form_is_refused(tmp_path: Path) -> None:
    path = _vocabulary(tmp_path / "vocab.txt", VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(DataError, match=r"is of a BertJapaneseTokenizer.*save its tokenizer.json"):
        TextTokenizer.load(str(path))


def test_files_that_are_no_tokenizer_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for content in (b"{", b"{}", b"\xff\xfe", b"[1]"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="no valid tokenizer|no UTF-8 text") as caught:
            TextTokenizer.read(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        TextTokenizer.read(tmp_path / "none.json")


def test_every_character_of_the_training_texts_can_be_spelled() -> None:
    texts = [text for text, _ in rows()]
    tokenizer = TextTokenizer.train_wordpiece(texts, 64)
    assert unknown_share(tokenizer, tokenizer.encode(texts, 64)) == 0.0
    assert tokenizer.encode(["\u4e2d"], 8) == [[2, tokenizer.unknown_id, 3]]


def test_the_same_texts_give_the_same_pieces_up_to_the_size_asked_for() -> None:
    texts = [text for text, _ in rows()]
    first, again = (TextTokenizer.train_wordpiece(texts, 120) for _ in range(2))
    assert first.digest == again.digest
    smaller = TextTokenizer.train_wordpiece(texts, 90)
    assert smaller.vocab_size == 90 < first.vocab_size <= 120
    assert smaller.digest != first.digest


@given(length=st.integers(4, 12), words=st.lists(st.sampled_from(["a", "day", "zz"]), max_size=20))
def test_a_cut_text_is_the_beginning_of_the_whole_one_and_a_last_piece(
    length: int, words: list[str]
) -> None:
    tokenizer = tiny_tokenizer()
    (whole,), (cut,) = (tokenizer.encode([" ".join(words)], n) for n in (10_000, length))
    assert len(cut) == min(length, len(whole))
    assert cut == (whole if len(whole) <= length else [*whole[: length - 1], whole[-1]])
    assert (cut[0], cut[-1]) == (2, 3)


@given(texts=st.lists(st.text(max_size=30), max_size=5), seed=st.integers(0, 99))
def test_any_text_is_split_by_any_trimmed_vocabulary(texts: list[str], seed: int) -> None:
    tokenizer = tiny_tokenizer()
    keep = np.random.default_rng(seed).random(tokenizer.vocab_size) < 0.3
    keep[:5] = True  # special pieces alone must stay
    smaller = tokenizer.trimmed(keep)
    for ids in smaller.encode(texts, 64):
        assert (ids[0], ids[-1]) == (2, 3)
        assert max(ids) < smaller.vocab_size == int(keep.sum())


def test_a_trimmed_tokenizer_comes_back_from_its_file(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    keep = np.ones(tokenizer.vocab_size, dtype=bool)
    keep[-10:] = False
    smaller = tokenizer.trimmed(keep)
    smaller.save(tmp_path / "tokenizer.json")
    assert TextTokenizer.load(str(tmp_path)).digest == smaller.digest


def test_a_tokenizer_that_pads_and_cuts_does_so_no_more() -> None:
    import tokenizers

    padding = tokenizers.Tokenizer.from_str(_content(tiny_tokenizer()))
    padding.enable_padding(length=20)
    padding.enable_truncation(4)
    assert len(TextTokenizer(padding.to_str()).encode(["a a a a"], 64)[0]) == 6


def _content(tokenizer: TextTokenizer) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        return (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")


def test_a_part_of_a_store_holds_its_texts_alone() -> None:
    store = token_store(["a", "a day", "a day number"])
    part = store.take(torch.tensor([2, 0]))
    assert part.texts == ("a day number", "a")
    assert part.labels.tolist() == [0, 0]
    assert part.lengths.tolist() == [int(store.lengths[2]), int(store.lengths[0])]
    whole, _ = store.read(torch.tensor([2, 0]), None)
    mine, _ = part.read(torch.tensor([0, 1]), None)
    assert isinstance(whole, dict) and isinstance(mine, dict)
    assert torch.equal(whole["input_ids"], mine["input_ids"])
    assert mine["input_ids"].dtype == torch.int64
    assert (part.input_shape, part.max_length) == ((), 16)


def test_a_store_cuts_texts_off_at_its_greatest_length() -> None:
    store = token_store(["a " * 50, "a"], max_length=8)
    assert store.lengths.tolist() == [8, 3]
    inputs, _ = store.read(torch.tensor([0]), None)
    assert isinstance(inputs, dict)
    assert inputs["input_ids"][0, -1] == 3


def test_labels_must_be_as_many_as_texts() -> None:
    with pytest.raises(InputError, match="1 labels for 2 texts"):
        TokenStore(["a", "b"], torch.tensor([0]), tiny_tokenizer(), 8)


def test_a_cut_text_keeps_its_special_pieces_also_where_there_is_one_alone() -> None:
    """T5 ends texts with one piece and begins them with none."""
    whole = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "</s>": 4}, unk_token="[UNK]"
        )
    )
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    whole.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 4)]
    )
    pieces = TextTokenizer(whole.to_str())
    assert pieces.encode(["a b c a b", "a"], 3) == [[1, 2, 4], [1, 4]]
    assert pieces.encode(["a b c"], 1) == [[1]]  # no room for a piece beside the special one
    assert pieces.encode(["a b c a b"], 9) == [[1, 2, 3, 1, 2, 4]]  # the limit is no state
