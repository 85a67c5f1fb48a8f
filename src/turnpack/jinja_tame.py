"""Tame templates: those that cannot do much more work than they are given text.

Owns that question, of a parsed template; runs nothing. What is not known to be tame is not: a
template may then do its work, but somebody has to count.
"""

from __future__ import annotations

from jinja2 import nodes

# What a tame template may call, filter by, and read the methods of.
_FUNCTIONS = frozenset(("namespace", "raise_exception", "strftime_now"))
_METHODS = frozenset(
    (
        *("endswith", "get", "items", "keys", "lower", "lstrip", "rsplit", "rstrip", "split"),
        *("startswith", "strip", "upper", "values"),
    )
)
_FILTERS = frozenset(
    (
        *("capitalize", "count", "d", "default", "dictsort", "first", "int", "items", "last"),
        *("length", "list", "lower", "map", "reject", "rejectattr", "reverse", "safe", "select"),
        *("selectattr", "sort", "string", "tojson", "trim", "unique", "upper"),
    )
)
_WILD = (
    *(nodes.Mul, nodes.Pow, nodes.Mod, nodes.Macro, nodes.CallBlock, nodes.Block, nodes.Include),
    *(nodes.Import, nodes.FromImport, nodes.Extends, nodes.FilterBlock, nodes.AssignBlock),
)
# Texts that are made of several others: each may double what there is.
_DOUBLINGS = 8


def loops_within_loops(tree: nodes.Template) -> int | None:
    """How deeply the loops of a tame template are nested, at least 1; None if it is not tame."""
    if any(tree.find_all(_WILD)) or any(loop.recursive for loop in tree.find_all(nodes.For)):
        return None
    for call in tree.find_all(nodes.Call):
        called = call.node
        if isinstance(called, nodes.Getattr):
            if called.attr not in _METHODS and not _shortens(called.attr, call.args):
                return None
        elif not isinstance(called, nodes.Name) or called.name not in _FUNCTIONS:
            return None
    for each in tree.find_all(nodes.Filter):
        if each.name not in _FILTERS and not _shortens(each.name, each.args):
            return None
    doublings = 0
    for assign in tree.find_all(nodes.Assign):
        if len(_others(assign.node)) > 1:
            doublings += 1
            if isinstance(assign.target, nodes.NSRef):
                return None  # it lives on, and grows with every turn of a loop
    return max(1, _depth(tree)) if doublings <= _DOUBLINGS else None


def _shortens(name: str, args: list[nodes.Expr]) -> bool:
    """Whether a text is replaced by one that is no longer."""
    texts = [arg.value for arg in args if isinstance(arg, nodes.Const)]
    if name != "replace" or len(texts) != 2 or not all(isinstance(t, str) for t in texts):
        return False
    return 0 < len(texts[0]) >= len(texts[1])


def _others(node: nodes.Node) -> list[nodes.Node]:
    """What a sum consists of besides constants."""
    if isinstance(node, nodes.Add):
        return [*_others(node.left), *_others(node.right)]
    if isinstance(node, nodes.Concat):
        return [other for part in node.nodes for other in _others(part)]
    if isinstance(node, nodes.CondExpr):
        return max(map(_others, filter(None, (node.expr1, node.expr2))), key=len)
    return [] if isinstance(node, nodes.Const) else [node]


def _depth(node: nodes.Node) -> int:
    inner = max(map(_depth, node.iter_child_nodes()), default=0)
    return inner + isinstance(node, nodes.For)
