"""Texts that come as token ids already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raybert.errors import RowError
from raybert.text.taken import Taken
from raybert.text.tokenizer import Tokenizer


def check_ids(tokenizer: Tokenizer, row: int, ids: Sequence[int]) -> None:
    """Refuse ids that a tokenizer does not have.

    Raises:
        RowError: there is one, reason ``unknown_id``.
    """
    for at, number in enumerate(ids):
        if not 0 <= number < tokenizer.vocab_size:
            raise RowError(
                row,
                "unknown_id",
                f"token {at} has id {number}, and this model's ids end at {tokenizer.vocab_size - 1}; "
                "ids of another tokenizer mean nothing here: send texts",
            )


def take_ids(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], *, prompt: str = "") -> Taken:
    """Pieces of texts given as ids; the second step of encoding follows as after `Tokenizer.take`.

    A [CLS] at the beginning and a [SEP] at the end are left out, since windows get their own.

    Args:
        tokenizer: whose ids they are.
        rows: ids of N texts.
        prompt: put before every text.

    Raises:
        RowError: an id that the vocabulary does not have, reason ``unknown_id``.
    """
    led = tokenizer.take([""], prompt=prompt, whole=True).ids if prompt else np.empty(0, np.int32)
    taken = []
    for row, ids in enumerate(rows):
        check_ids(tokenizer, row, ids)
        begin = 1 if ids and ids[0] == tokenizer.cls_id else 0
        end = len(ids) - 1 if len(ids) > begin and ids[-1] == tokenizer.sep_id else len(ids)
        taken.append(np.concatenate([led, np.array(ids[begin:end], np.int32)]))
    counts = np.array([len(each) for each in taken], np.int64)
    return Taken(counts=counts, kept=counts, ids=np.concatenate([led[:0], *taken]), offsets=None)
