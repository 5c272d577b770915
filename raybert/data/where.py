"""``--where "lang == 'en' and score > 0.5"``: which rows are computed, in Python's syntax, by Arrow's kernels.

What there is: comparisons, also chained; ``and``, ``or``, ``not``; ``in`` and ``not in`` with a list of constants;
``is None`` and ``is not None``; ``+ - * /``; columns by their names, or ``col('any name')``; and the functions of
``FUNCTIONS``. Nothing is evaluated as Python.

A null makes a comparison null, as in SQL, and a row for which all of it is null is left out. Arithmetic is done in
doubles: dividing by zero gives an infinity or NaN, never an error. A column of dates or times is compared with a text
that says one: ``day >= '2024-05-01'``.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybert.data.jsonvalues import is_unicode
from raybert.errors import SettingsError

Run = Callable[[Sequence[Any]], Any]
"""Arrays of the columns -> an array, or a scalar."""

_TEXT, _NUMBER, _BOOL, _NULL = "a text", "a number", "true or false", "None"

_COMPARE = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC = {ast.Add: pc.add, ast.Sub: pc.subtract, ast.Mult: pc.multiply, ast.Div: pc.divide}

FUNCTIONS = {
    "len": (1, _NUMBER, lambda x: pc.cast(pc.utf8_length(x), pa.int64())),
    "lower": (1, _TEXT, pc.utf8_lower),
    "startswith": (2, _BOOL, lambda x, a: pc.starts_with(x, pattern=a)),
    "endswith": (2, _BOOL, lambda x, a: pc.ends_with(x, pattern=a)),
    "contains": (2, _BOOL, lambda x, a: pc.match_substring(x, pattern=a)),
    "matches": (2, _BOOL, lambda x, a: pc.match_substring_regex(x, pattern=a)),
}
"""Name -> how many arguments, what it gives, and the kernel. A second argument is a constant text.

``len`` counts code points; ``matches`` finds a regular expression (RE2's syntax) anywhere in the text.
"""


@dataclass(frozen=True, slots=True)
class _Value:
    """What a part of the expression is.

    Attributes:
        kind: one of the words above; of dates, times and all else the Arrow type.
        run: computes it.
        constant: the value of a constant, as Python has it.
    """

    kind: Any
    run: Run
    constant: Any = None


def where_names(source: str) -> tuple[str, ...]:
    """The columns that an expression names, each once, in order.

    Raises:
        SettingsError: it is no expression, or names no column.
    """
    text, tree = _parse(source)
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node not in functions:
            names.append((node.lineno, node.col_offset, node.id))
        elif isinstance(node, ast.Call) and (name := _col(node)) is not None:
            names.append((node.lineno, node.col_offset, name))
    if not names:
        raise SettingsError(f"where {text!r}: names no column")
    return tuple(dict.fromkeys(name for _, _, name in sorted(names)))


class Where:
    """A filter over columns whose types are known.

    Attributes:
        columns: the columns it names, each once, in their types.
    """

    def __init__(self, source: str, columns: pa.Schema) -> None:
        """Compile.

        Args:
            source: the expression.
            columns: those of ``where_names``, in the run's types.

        Raises:
            SettingsError: a part of it makes no sense for these types; the message says where.
        """
        self.columns = columns
        text, tree = _parse(source)
        compiler = _Compiler(text, columns)
        try:
            value = compiler.value(tree)
        except RecursionError:
            raise SettingsError(f"where {text[:60]!r}...: nested too deep") from None
        if value.kind != _BOOL:
            raise compiler.wrong(tree, f"the filter is {_word(value.kind)}, not {_BOOL}")
        self._run = value.run

    def mask(self, columns: Sequence[Any], rows: int) -> npt.NDArray[np.bool_]:
        """Which rows stay.

        Args:
            columns: one array for each of ``columns``, in its type.
            rows: how many.
        """
        if rows == 0:
            return np.zeros(0, dtype=bool)
        found = self._run([_plain(column) for column in columns])
        found = pc.fill_null(found, False)
        return np.array(found.to_numpy(zero_copy_only=False), dtype=bool)


def _parse(source: str) -> tuple[str, ast.expr]:
    text = " ".join(source.splitlines()).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' in a pattern is what it looks like
            return text, ast.parse(text, mode="eval").body
    except SyntaxError as error:
        place = f", character {error.offset}" if error.offset else ""
        raise SettingsError(f"where {text!r}{place}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SettingsError(f"where {text[:60]!r}: {error}") from error


def _col(node: ast.Call) -> str | None:
    """The name in ``col('name')``, None for any other call."""
    if isinstance(node.func, ast.Name) and node.func.id == "col" and len(node.args) == 1 and not node.keywords:
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
    return None


def _plain(column: Any) -> Any:
    """A column as the kernels take it: texts large, integers of 64 bits with a sign, all other numbers doubles."""
    kind = column.type
    if _kind(kind) == _TEXT:
        return column.cast(pa.large_string())
    if pa.types.is_integer(kind):
        return column.cast(pa.float64(), safe=False) if kind == pa.uint64() else column.cast(pa.int64())
    return column.cast(pa.float64(), safe=False) if _kind(kind) == _NUMBER else column


def _kind(kind: pa.DataType) -> Any:
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return _TEXT
    if types.is_boolean(kind):
        return _BOOL
    return _NUMBER if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) else kind


def _word(kind: Any) -> str:
    return kind if isinstance(kind, str) else str(kind)


def _doubles(value: Any) -> Any:
    return value if pa.types.is_float64(value.type) else value.cast(pa.float64(), safe=False)


def _alike(one: Any, other: Any) -> tuple[Any, Any]:
    """Two numbers in one type; Arrow would refuse integers that a double does not hold exactly."""
    return (one, other) if one.type == other.type else (_doubles(one), _doubles(other))


class _Compiler:
    """Turns the nodes of an expression into functions over columns; all that may go wrong goes wrong here."""

    def __init__(self, text: str, columns: pa.Schema) -> None:
        self._text = text
        self._columns = columns
        self._nodes: dict[type, Callable[[Any], _Value]] = {
            ast.Constant: self._constant,
            ast.Name: lambda node: self._column(node, node.id),
            ast.BoolOp: self._logic,
            ast.UnaryOp: self._unary,
            ast.BinOp: self._arithmetic,
            ast.Compare: self._comparisons,
            ast.Call: self._call,
        }

    def wrong(self, node: ast.expr, what: str) -> SettingsError:
        """The error about one part of the expression."""
        before = self._text.encode()[: node.col_offset].decode("utf-8", "replace")
        return SettingsError(f"where {self._text!r}, character {len(before) + 1}: {what}")

    def value(self, node: ast.expr) -> _Value:
        """Any part."""
        build = self._nodes.get(type(node))
        if build is None:
            part = (ast.get_source_segment(self._text, node) or "")[:40]
            raise self.wrong(node, f"{part} is nothing that a filter may hold")
        return build(node)

    def _constant(self, node: ast.Constant) -> _Value:
        value = node.value
        if value is None:
            return _Value(_NULL, lambda _: pa.scalar(None))
        if isinstance(value, bool):
            kind, scalar = _BOOL, pa.scalar(value)
        elif isinstance(value, str) and is_unicode(value):
            kind, scalar = _TEXT, pa.scalar(value, pa.large_string())
        elif isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63):
            kind, scalar = _NUMBER, pa.scalar(value)
        else:
            shown = "a number of more than 64 bits" if isinstance(value, int) else repr(value)[:40]
            raise self.wrong(node, f"{shown} is no constant that a filter may hold")
        return _Value(kind, lambda _: scalar, value)

    def _column(self, node: ast.expr, name: str) -> _Value:
        place = self._columns.get_field_index(name)
        assert place >= 0, name
        return _Value(_kind(self._columns.field(place).type), lambda columns: columns[place])

    def _of(self, kind: str, node: ast.expr, what: str) -> Run:
        value = self.value(node)
        if value.kind != kind:
            raise self.wrong(node, f"{what} takes {kind}, not {_word(value.kind)}")
        return value.run

    def _logic(self, node: ast.BoolOp) -> _Value:
        word, kernel = ("and", pc.and_kleene) if isinstance(node.op, ast.And) else ("or", pc.or_kleene)
        runs = [self._of(_BOOL, each, word) for each in node.values]
        return _Value(_BOOL, _joined(kernel, runs))

    def _unary(self, node: ast.UnaryOp) -> _Value:
        if isinstance(node.op, ast.Not):
            run = self._of(_BOOL, node.operand, "not")
            return _Value(_BOOL, lambda columns: pc.invert(run(columns)))
        if not isinstance(node.op, ast.USub):
            raise self.wrong(node, "of the signs only - is there")
        constant = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(constant, int | float) and not isinstance(constant, bool):
            return self._constant(ast.copy_location(ast.Constant(-constant), node))
        minus = self._of(_NUMBER, node.operand, "-")
        return _Value(_NUMBER, lambda columns: pc.negate(_doubles(minus(columns))))

    def _arithmetic(self, node: ast.BinOp) -> _Value:
        kernel = _ARITHMETIC.get(type(node.op))
        if kernel is None:
            raise self.wrong(node, "arithmetic is + - * / only")
        left, right = (self._of(_NUMBER, side, "arithmetic") for side in (node.left, node.right))
        return _Value(_NUMBER, lambda columns: kernel(_doubles(left(columns)), _doubles(right(columns))))

    def _comparisons(self, node: ast.Compare) -> _Value:
        sides = [node.left, *node.comparators]
        runs = [
            self._comparison(left, operator, right)
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return _Value(_BOOL, _joined(pc.and_kleene, runs))

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Run:
        if isinstance(operator, ast.In | ast.NotIn):
            return self._among(left, right, negated=isinstance(operator, ast.NotIn))
        if isinstance(operator, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self.wrong(right, "is and is not take None alone; write == or !=")
            run = self.value(left).run
            kernel = pc.is_null if isinstance(operator, ast.Is) else pc.is_valid
            return lambda columns: kernel(run(columns))
        one, other = self.value(left), self.value(right)
        one, other = self._moment(left, one, other), self._moment(right, other, one)
        if _NULL in (one.kind, other.kind):
            raise self.wrong(left, "nothing compares with None; write `is None` or `is not None`")
        if one.kind != other.kind:
            raise self.wrong(left, f"{_word(one.kind)} is compared with {_word(other.kind)}")
        kernel = _COMPARE[type(operator)]
        ordered = not isinstance(operator, ast.Eq | ast.NotEq)
        if (ordered and one.kind == _BOOL) or (not isinstance(one.kind, str) and not pa.types.is_temporal(one.kind)):
            raise self.wrong(left, f"values of {_word(one.kind)} have no such comparison")
        if one.kind == _NUMBER:
            return lambda columns: kernel(*_alike(one.run(columns), other.run(columns)))
        return lambda columns: kernel(one.run(columns), other.run(columns))

    def _moment(self, node: ast.expr, value: _Value, beside: _Value) -> _Value:
        """A constant text beside a date or time is one too."""
        kind = beside.kind
        if value.kind != _TEXT or value.constant is None or isinstance(kind, str) or not pa.types.is_temporal(kind):
            return value
        try:
            moment = pc.cast(pa.scalar(value.constant), kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self.wrong(node, f"{value.constant!r} can't be read as {kind}") from error
        return _Value(kind, lambda _: moment, value.constant)

    def _among(self, left: ast.expr, right: ast.expr, *, negated: bool) -> Run:
        if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
            raise self.wrong(right, "in takes a list of constants")
        one = self.value(left)
        items = [self._moment(each, self.value(each), one) for each in right.elts]
        for each, item in zip(right.elts, items, strict=True):
            if item.kind != one.kind or item.constant is None:
                raise self.wrong(each, f"in takes a list of constants, here each {_word(one.kind)}, and nothing else")
        scalars = [item.run(()) for item in items]
        doubles = any(pa.types.is_floating(scalar.type) for scalar in scalars)
        values = pa.array([scalar.as_py() for scalar in scalars], pa.float64() if doubles else scalars[0].type)

        def run(columns: Sequence[Any]) -> Any:
            found = one.run(columns)
            known = values
            if one.kind == _NUMBER and found.type != values.type:
                found, known = _doubles(found), _doubles(values)
            inside = pc.if_else(pc.is_valid(found), pc.is_in(found, value_set=known), pa.scalar(None, pa.bool_()))
            return pc.invert(inside) if negated else inside

        return run

    def _call(self, node: ast.Call) -> _Value:
        if (column := _col(node)) is not None:
            return self._column(node, column)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            there = ", ".join([*FUNCTIONS, "col"])
            raise self.wrong(node, f"there is no such function; there are {there}")
        count, gives, kernel = FUNCTIONS[name]
        if len(node.args) != count or node.keywords:
            raise self.wrong(node, f"{name} takes {count} argument{'s' if count > 1 else ''}")
        of = self._of(_TEXT, node.args[0], name)
        if count == 1:
            return _Value(gives, lambda columns: kernel(of(columns)))
        pattern = self.value(node.args[1])
        if pattern.kind != _TEXT or pattern.constant is None:
            raise self.wrong(node.args[1], f"{name} takes a constant text")
        try:
            kernel(pa.array([""], pa.large_string()), pattern.constant)
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise self.wrong(node.args[1], f"{name}: {reason}") from error
        return _Value(gives, lambda columns: kernel(of(columns), pattern.constant))


def _joined(kernel: Callable[[Any, Any], Any], runs: Sequence[Run]) -> Run:
    def run(columns: Sequence[Any]) -> Any:
        found = runs[0](columns)
        for each in runs[1:]:
            found = kernel(found, each(columns))
        return found

    return run
