"""Run files: all that ``raybert run`` takes in one YAML file, under the names of its options.

A key is an option without the dashes in front (``split-rows``, or ``split_rows``), ``heads`` the words of HEAD or
mappings. Keys, types and help come from the command's own declaration: an option that is added there is a key here.
Values are read as the words that they would be on the command line, not by YAML's rules: there ``actors: 1:8`` is the
number 68, ``text-column: on`` is true, and ``revision: 2024-01-01`` a date. The command line wins over the file.

Relative paths mean the working directory, as on the command line.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
import yaml

from raybert.config import HeadSpec, nearest, parse_head
from raybert.errors import SettingsError

HEADS = "heads"
NOT_IN_A_FILE: Mapping[str, str] = {
    "config": "it names this file",
    "print_config": "it asks for this file",
    "plan": "it asks what a run would take instead of running it",
    "overwrite": "each start would delete what the one before computed",
    "retry_quarantine": "each start would compute the same splits again",
    "retry_reason": "each start would compute the same splits again",
    "help": "it asks for help",
}
"""Options that ask for something at one start, and say nothing about the run; with the reason for a refusal."""

_MOST_BYTES = 1 << 20
_META = "raybert.cli.runfile"
_HEAD_KEYS = ("name", "task", "model", "revision", "options")
_TAKES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}
_INT = re.compile(r"[-+]?\d+\Z")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\Z")
_BOOLS = {"true": True, "false": False}
_HEADER = """\
# A run of raybert, for `raybert run --config FILE`. Each key is an option of `raybert run`, which says more about it
# with --help; null is one that was not given. Relative paths mean the working directory.
"""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a run file.

    Attributes:
        name: as the file has it.
        parameter: of the command.
        kind: bool, int, float or str.
        many: whether it takes a list.
        commas: whether a list may stand for words joined by commas, as the command line has them.
        help: one sentence.
        panel: of ``--help``.
    """

    name: str
    parameter: str
    kind: type
    many: bool
    commas: bool
    help: str
    panel: str

    @property
    def takes(self) -> str:
        """What a value has to be, in words."""
        return f"{_TAKES[self.kind]}, or a list of them" if self.many or self.commas else _TAKES[self.kind]


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """What a file says.

    Attributes:
        values: by parameter, as the command line would give them; heads are words.
        head_options: ``NAME.KEY=VALUE`` words of heads that are mappings.
        options: words of the key ``option``.
    """

    values: dict[str, Any]
    head_options: tuple[str, ...]
    options: tuple[str, ...]


def keys_of(command: Any) -> dict[str, Key]:
    """Every parameter of a command, those that stand in no file left out; by the parameter's name."""
    kinds = typing.get_type_hints(command.callback)
    found = {}
    for each in command.params:
        if each.name in NOT_IN_A_FILE:
            continue
        options = [word.removeprefix("--") for word in each.opts if word.startswith("--")]
        members = [kind for kind in typing.get_args(kinds[each.name]) if kind is not type(None)]
        kind = members[0] if members else kinds[each.name]
        many = typing.get_origin(kinds[each.name]) is list or typing.get_origin(kind) is list
        element = kind if typing.get_origin(kind) is None else typing.get_args(kind)[0]
        found[each.name] = Key(
            name=options[0] if options else HEADS,
            parameter=each.name,
            kind=element,
            many=many,
            commas=not many and "," in (each.metavar or ""),
            help=each.help or "",
            panel=each.rich_help_panel or "",
        )
    return found


def use_config(context: typer.Context, place: str | None) -> str | None:
    """What ``--config`` does before any other option is looked at: the file's values become the defaults.

    Raises:
        UsageError: the file can't be read, or says something that can't be meant.
    """
    if place is not None:
        shown, text = _read(place)
        found = parse(text, shown, keys_of(context.command))
        context.default_map = found.values
        context.meta[_META] = found
    return place


def option_words(context: typer.Context, given: Sequence[str]) -> list[str]:
    """Task options of the file, then those of the command line: the later one wins.

    Those that stand with a head of the file fall away where the command line names the heads.
    """
    file: RunFile | None = context.meta.get(_META)
    if file is None:
        return list(given)
    source = context.get_parameter_source("head")
    of_heads = file.head_options if source is not None and source.name == "DEFAULT_MAP" else ()
    return [*of_heads, *file.options, *given]


def _read(place: str) -> tuple[str, str]:
    """The place as it may be shown, and the text."""
    from raybert.data.files import open_uri, reading
    from raybert.data.store import Store

    shown = Store(place).place("") if "://" in place else place
    with reading(shown):
        filesystem, path = open_uri(place)
        with filesystem.open_input_file(path) as file:
            content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"{shown}: more than {_MOST_BYTES} bytes; a run file is a page of YAML")
    try:
        return shown, content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown}: byte {error.start} is not UTF-8; a run file is YAML in UTF-8") from None


def parse(text: str, place: str, keys: Mapping[str, Key]) -> RunFile:
    """Read a run file.

    Args:
        text: of the file.
        place: for messages.
        keys: that it may have.

    Raises:
        SettingsError: it is no YAML, or a key or a value of it can't be meant; names the line.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{place}{line}: {what}; a run file is YAML: KEY: VALUE, one a line") from None
    by_name = {key.name: key for key in keys.values()}
    refused = {name.replace("_", "-"): why for name, why in NOT_IN_A_FILE.items()}
    found: dict[str, Any] = {}
    options: list[str] = []
    for name, node, value in _entries(root, place):
        where = f"{place}, line {node.start_mark.line + 1}"
        if name in refused:
            raise SettingsError(f"{where}: {name} stands in no file, {refused[name]}; pass --{name}")
        if name not in by_name:
            raise SettingsError(f"{where}: unknown key {node.value!r}{nearest(name, by_name)}")
        key = by_name[name]
        given = _heads(value, place, options) if name == HEADS else _value(key, value, f"{where}: {name}")
        if given is not None:
            found[key.parameter] = given
    return RunFile(options=tuple(found.pop("option", ())), values=found, head_options=tuple(options))


def _entries(node: Any, place: str) -> list[tuple[str, Any, Any]]:
    """Keys with dashes, their nodes and their values' nodes; none twice."""
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(f"{place}, line {node.start_mark.line + 1}: takes KEY: VALUE, one a line")
    lines: dict[str, int] = {}
    entries = []
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"{place}, line {line}: a key is one word")
        name = key.value.replace("_", "-")
        if name in lines:
            raise SettingsError(f"{place}, line {line}: {key.value} stands here again, after line {lines[name]}")
        lines[name] = line
        entries.append((name, key, value))
    return entries


def _value(key: Key, node: Any, where: str) -> Any:
    """A value of the key's type; None for null."""
    if isinstance(node, yaml.SequenceNode):
        if not (key.many or key.commas) or any(_is_null(each) for each in node.value):
            raise SettingsError(f"{where} {_shown(node)}: takes {key.takes}")
        values = [_scalar(key, each, where) for each in node.value]
        return values if key.many else ",".join(values)
    if _is_null(node):
        return None
    value = _scalar(key, node, where)
    return [value] if key.many else value


def _scalar(key: Key, node: Any, where: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        plain, text = node.style is None, node.value
        if key.kind is str:
            return text
        if key.kind is bool and plain and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        if key.kind is int and plain and _INT.match(text):
            return int(text)
        if key.kind is float and plain and _FLOAT.match(text):
            return float(text)
    raise SettingsError(f"{where} {_shown(node)}: takes {key.takes}")


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _shown(node: Any) -> str:
    """A value as it stands in the file, shortened."""
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value if len(node.value) <= 60 else node.value[:57] + "...")
    return "[...]" if isinstance(node, yaml.SequenceNode) else "{...}"


def _heads(node: Any, place: str, options: list[str]) -> list[str] | None:
    """HEAD words; what a mapping holds beside is added to the option words."""
    if _is_null(node):
        return None
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [
        each.value
        if isinstance(each, yaml.ScalarNode) and not _is_null(each)
        else _head(each, f"{place}, line {each.start_mark.line + 1}: head", place, options)
        for each in nodes
    ]


def _head(node: Any, where: str, place: str, options: list[str]) -> str:
    """A head that is a mapping, as a word."""
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(f"{where} {_shown(node)}: takes a HEAD word, or {', '.join(_HEAD_KEYS)} as KEY: VALUE")
    given: dict[str, Any] = {}
    for name, key, value in _entries(node, place):
        if name not in _HEAD_KEYS:
            line = f"{place}, line {key.start_mark.line + 1}"
            raise SettingsError(f"{line}: head: unknown key {key.value!r}{nearest(name, _HEAD_KEYS)}")
        if not _is_null(value):
            given[name] = value
    texts = {name: value for name, value in given.items() if name != "options"}
    for name, value in texts.items():
        if not isinstance(value, yaml.ScalarNode):
            raise SettingsError(f"{where}: {name} {_shown(value)}: takes a text")
    if "task" not in texts:
        raise SettingsError(f"{where}: task is missing; write task: embed, or another one")
    front = f"{texts['name'].value}:" if "name" in texts else ""
    model = f"={texts['model'].value}" if "model" in texts else ""
    word = f"{front}{texts['task'].value}{model}"
    head = parse_head(word, default_model="-").name
    if "revision" in texts:
        options.append(f"{head}.revision={texts['revision'].value}")
    for name, key, value in _entries(given.get("options"), place):
        options.append(f"{head}.{name}={_option(value, f'{place}, line {key.start_mark.line + 1}: {name}')}")
    return word


def _option(node: Any, where: str) -> str:
    """A task option as ``--option`` has it behind the sign of equality."""
    if isinstance(node, yaml.SequenceNode) and all(isinstance(each, yaml.ScalarNode) for each in node.value):
        return ",".join(each.value for each in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise SettingsError(f"{where} {_shown(node)}: takes a number, true, false or a text, as --option does")
    if _is_null(node):
        return "null"
    return node.value.lower() if node.style is None and node.value.lower() in _BOOLS else str(node.value)


def check_given(**given: object) -> None:
    """Refuse a run that lacks what it can't do without, wherever that may stand.

    Raises:
        SettingsError: naming it.
    """
    words = {"head": ("argument 'HEAD'", HEADS)}
    for name, value in given.items():
        if not value:
            what, key = words.get(name, (f"option '--{name}'", name))
            raise SettingsError(f"Missing {what}: pass it, or write `{key}:` into the file of --config")


def printed(context: typer.Context, specs: Sequence[HeadSpec], absorbed: Sequence[str]) -> str:
    """The whole run as a file: fed back, it gives the same run and prints itself again.

    Args:
        context: of the command, with all parameters read.
        specs: its heads.
        absorbed: parameters that the heads hold already.
    """
    lines = [_HEADER, f"{HEADS}:"]
    for spec in specs:
        facts = {"name": spec.name, "task": spec.task, "model": spec.model, "revision": spec.revision}
        for number, (name, value) in enumerate(facts.items()):
            lines.append(f"{'    ' if number else '  - '}{name}: {_yaml(value)}")
        lines.append(f"    options:{'' if spec.options else ' {}'}")
        lines += [f"      {name}: {_yaml(value)}" for name, value in sorted(spec.options.items())]
    panels: dict[str, list[str]] = {}
    for key in keys_of(context.command).values():
        if key.name != HEADS:
            # What is for all heads stands with each one.
            value = None if key.parameter in absorbed else context.params[key.parameter]
            panels.setdefault(key.panel, []).append(f"{f'{key.name}: {_yaml(value)}':<36}  # {key.help}")
    for panel, entries in panels.items():
        lines += ["", f"# {panel}", *entries]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """A value in one line; texts in quotes, so that YAML's rules for words don't touch them."""
    text = yaml.safe_dump(
        list(value) if isinstance(value, tuple) else value,
        default_style='"' if isinstance(value, str) else None,
        default_flow_style=True,
        allow_unicode=True,
        width=2**31,
    )
    return str(text).removesuffix("...\n").strip()
