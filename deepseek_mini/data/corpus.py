"""The corpus: documents without duplicates, split into training and held-out text by their hashes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from deepseek_mini.data.sources import Document, Text

FEWEST_DOCUMENTS = 20
"""Below, a split by document would be a draw of one or two; every document gives its end instead."""


@dataclass(frozen=True, slots=True)
class Corpus:
    label: str
    train: list[Document]
    validation: list[Document]
    """Both in the order of the documents' hashes."""
    hash: str
    """Of the source and of the texts on either side: equal hashes mean comparable losses."""


def build_corpus(
    source: str, text: Text, validation_fraction: float, announce: Callable[[str], None]
) -> Corpus:
    """Split `text` into training and held-out documents.

    Each text counts once, so that no held-out document is also trained on. A document is held out if its
    hash, as a number in [0, 1), lies below `validation_fraction`: its side depends on nothing but its own
    text. With fewer than 20 documents, or if none is drawn, the end of every document is held out.

    Raises ValueError, naming the key and the fix, if either side has no text.
    """
    unique = _in_hash_order(text.documents)
    if not unique:
        raise ValueError(f"{text.label}: there is no text in it; give some (data.path)")
    held_out = {key for key in unique if int(key, 16) < validation_fraction * 2**256}
    if len(unique) < FEWEST_DOCUMENTS or not held_out:
        announce(
            f"data: too few documents ({len(unique)}) to hold some out whole; "
            f"holding out the last {validation_fraction:.2g} of each"
        )
        cut = [_cut(document, validation_fraction) for document in unique.values()]
        train, validation = (_in_hash_order(side) for side in zip(*cut, strict=True))
    else:
        train = {key: unique[key] for key in unique if key not in held_out}
        validation = {key: unique[key] for key in unique if key in held_out}
    for side, documents in (("training", train), ("held-out", validation)):
        if not documents:
            raise ValueError(
                f"{text.label}: {len(unique)} documents leave no {side} text at "
                f"data.validation_fraction={validation_fraction}; change data.validation_fraction, "
                "or give more text (data.path)"
            )
    identity = "\n".join([source, "train", *train, "validation", *validation])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Corpus(text.label, list(train.values()), list(validation.values()), digest)


def _in_hash_order(documents: list[Document] | tuple[Document, ...]) -> dict[str, Document]:
    """The documents that hold text, once each, by SHA-256 of the text, in rising order."""
    by_hash = {hashlib.sha256(document.text.encode()).hexdigest(): document for document in documents}
    return {key: by_hash[key] for key in sorted(by_hash) if by_hash[key].text.strip()}


def _cut(document: Document, fraction: float) -> tuple[Document, Document]:
    middle = round(len(document.text) * (1 - fraction))
    return Document(document.name, document.text[:middle]), Document(document.name, document.text[middle:])
