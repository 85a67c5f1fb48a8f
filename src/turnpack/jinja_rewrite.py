"""Parsed templates, rewritten where the engine would lose track of text; they write the same.

Owns what is put in the place of what: `~` and `+` become a filter that joins, `in` a test, loops
say which message they are at, and what makes or compares lists is weighed. Runs nothing; the
filters and tests are jinja_render.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes


def instrumented(tree: nodes.Template, environment: jinja2.Environment) -> nodes.Template:
    """The parsed template with what tracing needs, for an environment that traces."""
    loops: dict[int, int] = {}
    for loop, node in enumerate(tree.find_all(nodes.For)):
        node.body.insert(0, _output("_at", node.target, loop, node))
        loops[id(node)] = loop
    _rewritten(tree, loops)
    tree.set_environment(environment)
    return tree


def _output(name: str, target: nodes.Node, loop: int, at: nodes.Node) -> nodes.Output:
    value: nodes.Expr = nodes.Const(None)
    if isinstance(target, nodes.Name):
        value = nodes.Name(target.name, "load")
    filtered = nodes.Filter(value, name, [nodes.Const(loop)], [], None, None)
    output = nodes.Output([filtered])
    output.set_lineno(at.lineno, override=True)
    return output


def _rewritten(node: Any, loops: Mapping[int, int]) -> Any:
    """The node with everything below it rewritten; `loops`: the number of each, by its id."""
    for field in node.fields:
        value = getattr(node, field)
        if isinstance(value, nodes.Node):
            setattr(node, field, _rewritten(value, loops))
        elif isinstance(value, list):
            made = []
            for item in value:
                made.append(_rewritten(item, loops) if isinstance(item, nodes.Node) else item)
                if isinstance(item, nodes.For):
                    made.append(_output("_end", nodes.Const(None), loops[id(item)], item))
            setattr(node, field, made)
    if isinstance(node, nodes.Concat):
        # Jinja joins what `str` makes of each.
        texts = [nodes.Filter(part, "string", [], [], None, None) for part in node.nodes]
        return _added(texts, node)
    if isinstance(node, nodes.Add):
        first = node.left
        if isinstance(first, nodes.Filter) and first.name == "_sum":
            return _added([first.node, *first.args, node.right], node)
        return _added([first, node.right], node)
    if isinstance(node, nodes.Compare):
        if len(node.ops) == 1:
            return _compared(node, node.ops[0]).set_lineno(node.lineno, override=True)
        node.expr = _through("_weighed", node.expr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node.node = _through("_weighed", node.node)
    if isinstance(node, (nodes.List, nodes.Dict)) or (
        isinstance(node, nodes.Tuple) and node.ctx == "load"
    ):
        return _through("_made", node)
    return node


def _through(name: str, node: nodes.Expr) -> nodes.Expr:
    """What a filter gives for it; a constant as it is."""
    if all(isinstance(each, _CONSTANT) for each in (node, *node.find_all(nodes.Expr))):
        return node
    through = nodes.Filter(node, name, [], [], None, None)
    through.set_lineno(node.lineno, override=True)
    return through


_CONSTANT = (nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Neg)


def _added(terms: list[Any], at: nodes.Node) -> nodes.Node:
    first, *others = terms
    return nodes.Filter(first, "_sum", others, [], None, None).set_lineno(at.lineno, override=True)


def _compared(node: nodes.Compare, operand: nodes.Operand) -> nodes.Expr:
    """`in` and comparisons of a length as tests, which can see who asks."""
    value, other, op = node.expr, operand.expr, operand.op
    if op in ("in", "notin"):
        test: nodes.Expr = nodes.Test(value, "in", [other], [], None, None)
        return nodes.Not(test) if op == "notin" else test
    if (
        op in ("gt", "lteq", "eq", "ne")
        and isinstance(value, nodes.Filter)
        and value.name in ("length", "count")
        and value.node is not None
        and isinstance(other, nodes.Const)
        and type(other.value) is int
        and (other.value == 0 or op in ("gt", "lteq"))
    ):
        test = nodes.Test(value.node, "_longer", [other], [], None, None)
        return nodes.Not(test) if op in ("lteq", "eq") else test
    if not isinstance(value, nodes.Const) and not isinstance(other, nodes.Const):
        node.expr, operand.expr = _through("_weighed", value), _through("_weighed", other)
    return node
