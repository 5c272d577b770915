"""Patterns of paths: ``*``, ``?`` and ``[..]`` within a name, ``**`` for any number of folders. No file is looked at.

A name that begins with ``_`` or ``.`` is matched only where the pattern spells that character: such names are marks and
temporaries of other programs, and raybert's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_WILD = re.compile(r"[*?\[]")
_QUERY = re.compile(r"\?[A-Za-z_][\w.-]*=.*\Z")
_SPELLED_EXTENSION = re.compile(r"\.[^.*?\[\]]+\Z")


def is_hidden(name: str) -> bool:
    """Whether a name is passed by unless it is asked for."""
    return name.startswith(("_", "."))


def split_query(uri: str) -> tuple[str, str]:
    """A URI without its query, and the query with its question mark; of a local path all is path.

    A question mark begins a query where ``name=`` follows it; any other one is part of a pattern.
    """
    found = _QUERY.search(uri) if "://" in uri else None
    return (uri, "") if found is None else (uri[: found.start()], found[0])


def split_pattern(uri: str) -> tuple[str, tuple[str, ...]]:
    """The folder in front of the first wildcard, and the names from there on as patterns; none without a wildcard.

    The scheme and bucket of a URI are never patterns, and its query stays with the folder.
    """
    path, query = split_query(uri)
    scheme, mark, rest = path.partition("://") if "://" in path else ("", "", path)
    names = rest.split("/")
    first = 1 if mark else 0
    wild = next((at for at, name in enumerate(names) if at >= first and _WILD.search(name)), None)
    if wild is None:
        return uri, ()
    folder = "/".join(names[:wild]) or ("/" if rest.startswith("/") else "" if mark else ".")
    return f"{scheme}{mark}{folder}{query}", tuple(name for name in names[wild:] if name)


def spells_extension(patterns: Sequence[str]) -> bool:
    """Whether a pattern's last name ends with an extension that holds no wildcard."""
    return bool(patterns) and _SPELLED_EXTENSION.search(patterns[-1]) is not None


def name_matches(name: str, pattern: str) -> bool:
    """Whether one name of a path is meant; case counts."""
    return fnmatchcase(name, pattern) and not (is_hidden(name) and pattern[:1] in ("*", "?"))


def matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a file is meant, or lies below a folder that is.

    Args:
        names: of the file's path below the patterns' folder.
        patterns: one for each name; ``**`` stands for any number of names.
    """
    if not patterns:
        return not any(map(is_hidden, names))
    if patterns[0] == "**":
        rest = patterns[1:]
        if rest[:1] == ("**",) or not rest:
            return matches(names, rest)
        for at in range(len(names)):
            if matches(names[at:], rest):
                return True
            if is_hidden(names[at]):
                break
        return False
    return bool(names) and name_matches(names[0], patterns[0]) and matches(names[1:], patterns[1:])


def common_folder(folders: Sequence[str]) -> str | None:
    """The deepest folder above or equal to all of these; None where they share no beginning.

    Args:
        folders: absolute local paths, or URIs without query; the authority of a URI is shared or nothing is.
    """
    first = folders[0]
    if "://" not in first:
        if any("://" in each for each in folders):
            return None
        shared = _shared([PurePosixPath(each).parts for each in folders])
        return str(PurePosixPath(*shared)) if shared else None
    split = [each.partition("://") for each in folders]
    if any(scheme != split[0][0] or not mark for scheme, mark, _ in split):
        return None
    shared = _shared([tuple(rest.rstrip("/").split("/")) for _, _, rest in split])
    return f"{split[0][0]}://{'/'.join(shared)}" if shared else None


def _shared(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The names with which all paths begin."""
    count = 0
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1:
            break
        count += 1
    return paths[0][:count]
