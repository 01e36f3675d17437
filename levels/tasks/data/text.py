"""Text that Python carries."""

import hashlib
from functools import cache
from pydoc_data.topics import topics as chapters

import torch

from levels.base import Split
from levels.tasks.data import ALPHABET, SPLITS, Text


@cache
def topics(split: Split) -> Text:
    """Python's own documentation as its standard library carries it: 373,422 characters in Python 3.11.7.

    Topics in alphabetical order, split 80 : 10 : 10 by position. Repeated paragraphs are left out; otherwise one in
    twelve pieces of the test split would be in the training split too. The text differs between Python versions.
    """
    paragraphs = "\n\n".join(chapters[name] for name in sorted(chapters)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))
    edges = [0, len(text) * 8 // 10, len(text) * 9 // 10, len(text)]
    start, end = edges[SPLITS.index(split) :][:2]
    code, unknown = {character: number for number, character in enumerate(ALPHABET)}, ALPHABET.index("?")
    codes = torch.tensor([code.get(character, unknown) for character in text[start:end]])
    return Text(codes, hashlib.sha256(text.encode()).hexdigest())
