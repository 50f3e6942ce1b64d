"""Small changes to a source file, one at a time: an operator, a number, a call or a statement (for mutants.py)."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src/draftopd"
COMPARISONS = {ast.Eq: ast.NotEq, ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Is: ast.IsNot, ast.In: ast.NotIn}
OPERATORS: dict[type, type] = {
    **COMPARISONS,
    ast.Add: ast.Sub,
    ast.Mult: ast.Div,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.And: ast.Or,
}
OPERATORS |= {b: a for a, b in OPERATORS.items()} | {ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
OPERATORS[ast.BitXor] = ast.BitAnd
PAIRS = (("min", "max"), ("amin", "amax"), ("minimum", "maximum"), ("any", "all"), ("cumsum", "cumprod"))
CALLS = {a: b for pair in (*PAIRS, ("tril", "triu"), ("zeros", "ones")) for a, b in (pair, pair[::-1])}
DROPPED = ("clamp", "clone", "detach", "float", "double", "flip", "index_put", "add_", "expand")
NO_CODE = ("annotation", "returns", "decorator_list")


@dataclass(frozen=True)
class Mutant:
    name: str
    tree: ast.Module
    lines: range
    at_import: bool


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What a node is replaced by, one at a time."""

    def changed(**fields: Any) -> ast.AST:
        for name, value in fields.items():
            setattr(other := copy.copy(node), name, value)
        return other

    match node:
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                yield changed(ops=[*ops[:at], OPERATORS[type(op)](), *ops[at + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            yield changed(op=OPERATORS[type(op)]())
        case ast.Constant(value=bool(value)):
            yield changed(value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield changed(value=value + 1)
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.IfExp(body=body, orelse=orelse):
            yield changed(body=orelse, orelse=body)
        case ast.If(test=test) | ast.While(test=test):
            yield changed(test=ast.UnaryOp(ast.Not(), test))
        case ast.Call(func=ast.Attribute(value=value, attr=attr) as func):
            if attr in CALLS:
                yield changed(func=ast.Attribute(value, CALLS[attr], func.ctx))
            if attr in DROPPED:
                yield value
        case ast.Call(func=ast.Name(id=name) as func) if name in CALLS:
            yield changed(func=ast.Name(CALLS[name], func.ctx))
        case ast.AugAssign(op=op):
            yield changed(op=OPERATORS[type(op)]())
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()


def replacements(node: ast.AST, place: tuple[ast.AST, ...] = ()) -> Iterator[tuple[tuple[ast.AST, ...], ast.AST]]:
    """Puts every variant of every node below into its place; yields the nodes above it while it is there."""
    place = (*place, node)
    for field, value in ast.iter_fields(node):
        if field in NO_CODE or isinstance(value, ast.JoinedStr) or getattr(node, "arg", None) == "strict":
            continue
        for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST):
                continue
            for other in variants(child):
                ast.fix_missing_locations(ast.copy_location(other, child))
                if at is None:
                    setattr(node, field, other)
                else:
                    value[at] = other
                yield (*place, child), other
            if at is None:
                setattr(node, field, child)
            else:
                value[at] = child
            yield from replacements(child, place)


def mutants(file: str) -> Iterator[Mutant]:
    tree = ast.parse((SOURCE / file).read_text())
    texts, seen = {node: ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.stmt)}, dict[str, int]()
    for place, _ in replacements(tree):
        # the innermost statement that was there before and still is
        statement = [node for node in place[:-1] if isinstance(node, ast.stmt)][-1:] or [place[-1]]
        if isinstance(place[-1], ast.stmt):
            before, after = texts[place[-1]].partition("\n")[0], "pass"
            if isinstance(place[-1], ast.If | ast.While):
                after = "negated"
            elif isinstance(place[-1], ast.AugAssign):
                after = "the opposite" if not isinstance(_, ast.Pass) else "pass"
            statement = [place[-1]]
        else:
            before, after = window(texts[statement[0]], ast.unparse(statement[0]))
        functions = [node for node in place if isinstance(node, ast.FunctionDef)]
        scopes = [node.name for node in place if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        name = f"{file} | {'.'.join(scopes)} | `{before}` → `{after}`".replace("||", "\\|\\|")
        seen[name] = seen.get(name, 0) + 1
        at_import = not functions or statement[0] is functions[0]
        first, body = statement[0].lineno, getattr(statement[0], "body", None)
        last = body[0].lineno - 1 if isinstance(body, list) and not at_import else statement[0].end_lineno
        yield Mutant(f"{name} ({seen[name]})" if seen[name] > 1 else name, tree, range(first, last + 1), at_import)


def window(before: str, after: str) -> tuple[str, str]:
    """Where two texts differ, with a little on both sides."""

    def same(one: str, other: str) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

    start = same(before, after)
    end = same(before[start:][::-1], after[start:][::-1])
    low = max(0, start - 24)
    return tuple(" ".join(text[low : len(text) - max(0, end - 16)].split()) for text in (before, after))
