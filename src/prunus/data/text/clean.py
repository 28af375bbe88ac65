"""Clean texts: lower case, lemmas, stop words; in English and Russian."""

import re
from collections.abc import Iterable, Sequence

from prunus.data.text.options import Cleaning
from prunus.errors import DataError
from prunus.extras import require_extra

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]", re.UNICODE)


def clean(texts: Sequence[str], cleaning: Cleaning) -> list[str]:
    """Texts after cleaning; words are joined by one space where words were looked at.

    Lemmas are simplemma's, stop words those of the Stopwords ISO list. A text of nothing but stop
    words keeps them: to a classifier "not this" is not nothing.

    Raises:
        MissingExtraError: A package that it needs is not installed.
        DataError: Nothing is left of any text.
    """
    if cleaning.does_nothing:
        return list(texts)
    found = list(_cleaned(texts, cleaning))
    if not any(text.strip() for text in found):
        raise DataError("cleaning leaves nothing of any text; switch a part of it off")
    return found


def _cleaned(texts: Iterable[str], cleaning: Cleaning) -> Iterable[str]:
    stop = _stop_words(cleaning)
    lemma = None
    if cleaning.lemmas:
        lemma = require_extra("simplemma", "text").lemmatize
    for raw in texts:
        text = raw.lower() if cleaning.lower else raw
        if lemma is None and not stop:
            yield text
            continue
        words = _WORD.findall(text)
        kept = [word for word in words if word.lower() not in stop] or words
        if lemma is not None:
            kept = [lemma(word, lang=cleaning.language) for word in kept]
        yield " ".join(kept)


def _stop_words(cleaning: Cleaning) -> frozenset[str]:
    if not cleaning.stop_words:
        return frozenset()
    listed = require_extra("stopwordsiso", "text").stopwords(cleaning.language)
    return frozenset(word.lower() for word in listed)
