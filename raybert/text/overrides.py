"""What a tokenizer is made from, with options given in a call in place of the files'."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken

from raybert.errors import SettingsError
from raybert.text.files import ROLES, Definition, Options


def changed(definition: Definition, changes: dict[str, Any]) -> Definition:
    """A definition with other options; those it knows are taken out of ``changes``."""
    known = {option.name for option in dataclasses.fields(Options)}
    ours = {name: changes.pop(name) for name in list(changes) if name in known}
    if "never_split" in ours:
        ours["never_split"] = never_split_words(ours["never_split"])
    names = definition.names | roles(changes)
    extra = changes.pop("additional_special_tokens", None)
    split = changes.pop("split_special_tokens", definition.split_special)
    if ours and definition.options is None:
        raise SettingsError(f"{next(iter(ours))}: this tokenizer.json stands as it is; change it in the file")
    return dataclasses.replace(
        definition,
        options=dataclasses.replace(definition.options, **ours) if definition.options is not None else None,
        names=names,
        extra=definition.extra if extra is None else tuple(special(token) for token in extra),
        split_special=bool(split),
    )


def never_split_words(never_split: Iterable[str] | None) -> tuple[str, ...]:
    """The words of the option.

    Raises:
        SettingsError: it is one text, not a list.
    """
    if isinstance(never_split, str):
        raise SettingsError(f"never_split: {never_split!r}; takes a list of words, pass [{never_split!r}]")
    return tuple(never_split or ())


def roles(settings: dict[str, Any]) -> dict[str, AddedToken]:
    """The special tokens among settings, which they are taken out of."""
    return {role: special(settings.pop(role)) for role in list(settings) if role in ROLES and settings[role]}


def special(token: str | AddedToken) -> AddedToken:
    """A special token from its text."""
    return token if isinstance(token, AddedToken) else AddedToken(token, special=True)
