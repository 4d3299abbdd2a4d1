"""Mutants of a source: one operator, constant, return value or statement changed each.

Docstrings, messages of errors, warnings and the log, type hints, decorators and texts are not changed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

COMPARED = {
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")},
    **{ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.Lt: ("<", "<=", ">="), ast.LtE: ("<=", "<", ">")},
    **{ast.Gt: (">", ">=", "<="), ast.GtE: (">=", ">", "<")},
}
PAIRS = ((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift))
COMPUTED = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])} | {ast.FloorDiv: ast.Div, ast.Pow: ast.Mult}
NAMES = ("min max", "any all", "floor ceil", "amin amax", "argmin argmax", "zeros ones", "zeros_like ones_like")
SWAPPED = {a: b for pair in NAMES for a, b in (pair.split(), pair.split()[::-1])}
PARTS = {ast.FunctionDef: ("args", "body"), ast.AnnAssign: ("value",), ast.ClassDef: ("body",), ast.arg: ()}
"""What of a statement is changed at all, where it is not everything: no type hints, no decorators, no bases."""


class Mutant(NamedTuple):
    """A piece of a source, in bytes, and what comes there instead."""

    line: int
    start: int
    end: int
    old: str
    new: str


def variants(node: ast.AST) -> Iterator[str]:
    """Yield what may stand in place of an expression."""
    match node:
        case ast.Compare():
            pieces = [ast.unparse(node.left)]
            for sign, right in zip(node.ops, node.comparators, strict=True):
                pieces += [COMPARED[type(sign)][0], ast.unparse(right)]
            for place, sign in enumerate(node.ops):
                for other in COMPARED[type(sign)][1:]:
                    yield " ".join([*pieces[: 2 * place + 1], other, *pieces[2 * place + 2 :]])
        case ast.BinOp() if type(node.op) in COMPUTED:
            yield ast.unparse(ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right))
        case ast.BoolOp():
            yield ast.unparse(ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        case ast.UnaryOp():
            yield ast.unparse(node.operand)
        case ast.Constant(value=bool()):
            yield str(not node.value)
        case ast.Constant(value=int() | float() as number):
            yield from (str(number + 1), str(number - 1))
        case ast.Name() if node.id in SWAPPED:
            yield SWAPPED[node.id]
        case ast.Attribute() if node.attr in SWAPPED:
            yield f"{ast.unparse(node.value)}.{SWAPPED[node.attr]}"


def in_place_of(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield this statement or a piece of it and what may stand in its place."""
    match node:
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete():
            yield node, "pass"
        case ast.Expr() if not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
            yield node, "pass"
        case ast.Assign() if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            yield node, "pass"
        case ast.Return() if node.value and ast.unparse(node.value) != "None":
            yield node, "return None"
        case ast.If() | ast.IfExp() | ast.While() if isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
            yield node.test, f"(not {ast.unparse(node.test)})"
    yield from ((node, f"({new})") for new in variants(node))


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield pieces of a tree and what may stand in their place."""
    yield from in_place_of(node)
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in ("logger", "warnings", "refusal"):
        return
    for part, value in ast.iter_fields(node):
        if part in PARTS.get(type(node), (part,)):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from changes(child)


def names_of(part: ast.stmt) -> set[str]:
    return {getattr(part, "name", ""), *(getattr(target, "id", "") for target in getattr(part, "targets", ()))}


def mutants_of(source: str, only: tuple[str, ...] = ()) -> list[Mutant]:
    content = source.encode()
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    tree = ast.parse(source)
    tree.body = [part for part in tree.body if not only or set(only) & names_of(part)]
    for node, new in changes(tree):
        place: Any = node
        start, end = starts[place.lineno - 1] + place.col_offset, starts[place.end_lineno - 1] + place.end_col_offset
        old = " ".join(content[start:end].decode().split())
        found.append(Mutant(place.lineno, start, end, old, new))
    return found
