"""Jinja chat templates: rendered in a sandbox as transformers renders them, plain or traced.

Owns the environment: settings, filters, functions, bounds, and how the engine is taught to keep
track of where text comes from. Only jinja_*.py import jinja2; they know no message and no role.

The settings are those of transformers' `apply_chat_template`. What the traced form changes in the
parsed template is jinja_rewrite.py's.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from string import Formatter
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

import jinja2
import jinja2.tests
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_sum
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup

from .jinja_rewrite import instrumented
from .jinja_tame import loops_within_loops
from .nouns import RowError
from .provenance import (
    MAX_TEXT,
    TOO_MUCH,
    Data,
    Items,
    Mark,
    Traced,
    Value,
    bounded,
    current_trace,
    formatted,
    join,
    join_with,
    mixed,
    plain,
    plain_data,
    refuse_work,
    replaced,
    single,
    traced_in,
    tracing,
)

REFUSED = "the chat template refuses the conversation"

# What a template may ask for: a width to pad or indent to, items in a list, bits in a number.
_MAX_WIDTH = 10_000
_MAX_ITEMS = 1 << 20
_MAX_BITS = 4096


class Message(dict[Any, Any]):
    """A message as a traced template sees it; it knows its number."""

    __slots__ = ("number",)

    def __init__(self, number: int, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.number = number


class _Generation(Extension):
    """The tags `generation` and `endgeneration`, with marks at both ends."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """See jinja2.ext.Extension."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_block")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _block(self, caller: Macro) -> str:
        content = caller()
        if not isinstance(self.environment, _Tracing):
            return content
        return join((Mark("generation"), content, Mark("endgeneration")))


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def strftime_now(format: str) -> str:
    """The time of now, as `datetime.strftime` spells it."""
    return datetime.now().strftime(format)


def to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as transformers has it."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Dict:
    """The template's `dict`: a function, so that nothing else of the class can be reached."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """The template's `namespace`: without names that begin with an underscore, and never written.

    It may hold itself, or others that hold others twice.
    """

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        content = dict(*rest, **kwargs)
        for name in content:
            _check_name(name)
        Namespace.__init__(self, content)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        refuse_work("writes a namespace")


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: it begins with an underscore")


class _NothingFolded(CodeGenerator):
    """Writes nothing while it compiles: `{{ 'a' * 10**10 }}` is bounded when it is rendered."""

    def _make_finalize(self) -> CodeGenerator._FinalizeInfo:
        return super()._make_finalize()._replace(const=None)


# What a dict has, so that `message.items` is its method and `message.role` its item.
_DICTS = frozenset((dict, Message))
_DICT_ATTRIBUTES = frozenset(dir(dict))


class _Plain(ImmutableSandboxedEnvironment):
    """The environment of transformers, but that nothing is computed while it compiles."""

    code_generator_class = _NothingFolded

    def __init__(self, finalize: Callable[..., Any] | None = None) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            cache_size=0,
            optimized=False,
            finalize=finalize,
        )
        del self.globals["lipsum"]  # nobody can want random text of any length here
        self.filters["tojson"] = to_json
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=strftime_now,
            dict=_Dict(),
            namespace=_Namespace,
        )

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See SandboxedEnvironment, which first raises for every key of a dict."""
        if type(obj) in _DICTS and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """See SandboxedEnvironment, which raises for a key that is not there."""
        if type(obj) in _DICTS and type(argument) is str:
            if argument in obj:
                return obj[argument]
            if argument not in _DICT_ATTRIBUTES:
                return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)


# Filters that only call a string's methods, or that hand on what they find in lists and objects.
_SAFE_FILTERS = frozenset(
    (
        "attr",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "sort",
        "sum",
        "trim",
        "unique",
        "upper",
    )
)
# Those of them that do not go through a list.
_AT_ONCE = frozenset(("attr", "count", "d", "default", "first", "last", "length"))
_NUMBERS_IN_FORMAT = re.compile(r"\d{5,}|\*")


class _Tracing(_Plain):
    """The environment in which text is traced and work is counted."""

    intercepted_binops = frozenset(("+", "%", "*", "**"))
    concat = staticmethod(join)

    def __init__(self) -> None:
        super().__init__(finalize=_written)
        self.filters["sum"] = _sum_filter
        for name, function in self.filters.items():
            if name in _SAFE_FILTERS:
                self.filters[name] = _counted_filter(function, name not in _AT_ONCE)
            else:
                self.filters[name] = _guarded_filter(function)
        self.filters.update(
            tojson=_traced_json, join=_join_filter, string=_as_text, safe=_safe, replace=_replace
        )
        self.filters.update(trim=_trim, default=_default, d=_default, format=_format_filter)
        self.filters.update(_at=_at, _end=_end, _sum=_sum, _made=_made, _weighed=_weighed)
        self.tests["in"] = _is_in
        self.tests["_longer"] = _is_longer
        self.tests["sequence"] = _is_sequence
        self.globals["strftime_now"] = _traced_strftime

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment."""
        if operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                if type(left) is Markup or type(right) is Markup:
                    return _unmodelled(lambda a, b: a + b, left, right)
                return join((left, right))
            return _made(left + right)
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
            return bounded(formatted(left, right))
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(times, int):
                    most = MAX_TEXT if isinstance(one, str) else _MAX_ITEMS
                    if times > most // max(1, _length(one)):
                        refuse_work(f"repeats something {times} times")
                    if isinstance(one, str):
                        return _unmodelled(lambda a, b: a * b, left, right)
                    return _made(one * times)
        elif operator == "**" and isinstance(right, int) and right > _MAX_BITS:
            refuse_work(f"raises a number to the power of {right}")
        result = self.binop_table[operator](left, right)
        if isinstance(result, int) and result.bit_length() > _MAX_BITS:
            refuse_work(f"computes a number of {result.bit_length()} bits")
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See SandboxedEnvironment."""
        if not isinstance(value, (MethodType, BuiltinMethodType)):
            return None
        pattern = value.__self__
        if value.__name__ not in ("format", "format_map") or not isinstance(pattern, str):
            return super().wrap_str_format(value)
        own = super().wrap_str_format(getattr(plain(pattern), value.__name__))

        def format(*args: Any, **kwargs: Any) -> str:
            _check_format(pattern, (args, kwargs))
            _check_numbers((*args, *kwargs.values()))
            if type(pattern) is str and value.__name__ == "format":
                exact = _format_fields(pattern, args, kwargs)
                if exact is not None:
                    return exact
            assert own is not None
            text = own(*plain_data(args), **plain_data(kwargs))
            sources = traced_in([pattern, args, kwargs])
            return mixed(text, sources, tangled=True) if sources else text

        return format

    def call(__self, __context: Context, __callable: Any, *args: Any, **kwargs: Any) -> Any:
        """See SandboxedEnvironment."""
        owner = getattr(__callable, "__self__", None)
        if not isinstance(owner, (str, bytes, int)):
            current_trace().spend(1 + _work(args))
            return _made(super().call(__context, __callable, *args, **kwargs))
        current_trace().spend(1 + (_length(owner) >> 10 if isinstance(owner, str) else 0))
        _check_numbers(args)
        name = __callable.__name__
        if isinstance(owner, str):
            if name == "join" and len(args) == 1:
                return join_with(owner, args[0])
            if name == "replace" and len(args) > 1:
                _check_replace(owner, args[0], args[1])
                return replaced(owner, *args)
        result = super().call(__context, __callable, *args, **kwargs)
        if isinstance(result, str):
            bounded(result)
        if type(owner) is Traced and type(__callable) is MethodType:
            return result  # a method of Traced, which has seen its arguments
        sources = traced_in([owner, args])
        if sources:
            current_trace().opaque = True
            if isinstance(result, str):
                return mixed(result, sources, tangled=type(owner) is str and bool(owner))
            if isinstance(result, (list, tuple, bytes)):
                raise RowError("cannot follow the chat template", f"it calls {name} of a text")
        return result


def _format_fields(pattern: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """A pattern of plain fields, filled; None where it is more than that."""
    parts: list[str] = []
    automatic = 0
    for literal, name, spec, conversion in Formatter().parse(pattern):
        parts.append(literal)
        if name is None:
            continue
        if spec or conversion:
            return None
        key: Any = name
        if name == "":
            key, automatic = automatic, automatic + 1
        elif name.isdecimal():
            key = int(name)
        try:
            value = kwargs[key] if isinstance(key, str) else args[key]
        except LookupError:
            return None
        parts.append(_as_text(value))
    return join(parts)


def _length(value: Any) -> int:
    return str.__len__(value) if isinstance(value, str) else len(value)


def _unmodelled(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """An operation on texts of which nothing is known but that the result comes from both."""
    sources = traced_in([left, right])
    texts = [each for each in (left, right) if type(each) is str or type(each) is Markup]
    result = operation(*(plain(each) if type(each) is Traced else each for each in (left, right)))
    if isinstance(result, str):
        bounded(result)
        return mixed(str(result), sources, tangled=bool(texts)) if sources else result
    return result


_LISTS = (list, tuple, dict, range)


def _work(args: tuple[Any, ...]) -> int:
    """Steps for going through long lists, of which a filter or a function may make one."""
    return sum(len(argument) for argument in args if isinstance(argument, _LISTS))


def _items(value: Any) -> int:
    """Items of a list and of those in it, each as often as it is there; raises for too many.

    What a template was given counts as one: only what it makes can double with every step.
    """
    items, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        items += len(each)
        if items > _MAX_ITEMS:
            refuse_work(f"makes a list of more than {_MAX_ITEMS} items")
        if type(each) is dict:
            waiting.extend(key for key in each if type(key) is tuple)
            each = each.values()
        if type(each) is not range:
            waiting.extend(item for item in each if type(item) in _LISTS)
    return items


def _made(value: Any) -> Any:
    """What a template has made, which might be lists in lists that double with every step."""
    if type(value) in _LISTS:
        current_trace().spend(_items(value))
    return value


def _weighed(value: Any) -> Any:
    """What a template compares or cuts a part of."""
    if isinstance(value, str):
        current_trace().spend(_length(value) >> 10)
    return _made(value)


def _check_numbers(args: tuple[Any, ...]) -> None:
    for argument in args:
        if type(argument) is int and abs(argument) > _MAX_WIDTH:
            refuse_work(f"passes {argument} to a string's method or a filter")


def _check_format(pattern: str, values: Any) -> None:
    pattern = plain(pattern)
    if _NUMBERS_IN_FORMAT.search(pattern):
        refuse_work("formats to an enormous width")
    fields = pattern.count("%") + pattern.count("{")
    if fields * _characters(values) > 2 * MAX_TEXT:
        refuse_work("formats too many characters")


def _check_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        found = str.count(text, old) if old else _length(text) + 1
        if found * _length(new) > 2 * MAX_TEXT:
            refuse_work("replaces by too many characters")


def _characters(value: Any) -> int:
    """How many characters the texts in a value have."""
    if isinstance(value, str):
        return _length(value)
    if isinstance(value, Mapping):
        return sum(_characters(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(_characters, value))
    return 0


def _guarded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of which nothing is known but that its result comes from its arguments."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        texts = [argument for argument in args if isinstance(argument, str)]
        current_trace().spend(1 + (_characters(texts) >> 10) + _work(args))
        sources = traced_in([args, kwargs])
        if not sources:
            result = function(*args, **kwargs)
            return bounded(result) if isinstance(result, str) else result
        # It is given what it would be given without tracing.
        values = [plain_data(value) for value in args]
        result = function(*values, **{key: plain_data(value) for key, value in kwargs.items()})
        current_trace().opaque = True
        if isinstance(result, str):
            first = next((a for a in args if isinstance(a, str)), "")
            return mixed(
                plain(bounded(result)), sources, tangled=type(first) is str and bool(first)
            )
        if not isinstance(result, (bool, int, float, type(None))):
            raise RowError("cannot follow the chat template", f"it uses {function.__name__}")
        return result

    return guarded


def _counted_filter(function: Callable[..., Any], goes_through: bool) -> Callable[..., Any]:
    """A filter that hands on what it finds; one that is told how by a text is not followed."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        texts = [argument for argument in args if isinstance(argument, str)]
        current_trace().spend(1 + (_characters(texts) >> 10) + goes_through * _work(args))
        if len(texts) > 1 and any(type(text) is Traced for text in texts[1:]):
            current_trace().opaque = True
        return function(*args, **kwargs)

    return counted


def _as_text(value: Any) -> Any:
    """A value as the text that is written: what `str` makes of it."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (int, float, Undefined)):
        return str(value)
    _made(value)
    sources = traced_in(value)
    text = str(plain_data(value))
    return mixed(text, sources) if sources else text


def _written(value: Any) -> Any:
    """What is written."""
    return value if isinstance(value, str) else _as_text(value)


def _trim(value: Any, chars: str | None = None) -> str:
    text = _as_text(value)
    if type(chars) is Traced and type(text) is not Traced:
        return mixed(text.strip(chars), [chars], tangled=True)
    stripped: str = text.strip(chars)
    return stripped


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    if isinstance(value, Undefined) or (boolean and not value):
        return default_value
    return value


def _format_filter(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.TemplateRuntimeError("format takes positional or keyword arguments, not both")
    pattern = _as_text(value)
    _check_format(pattern, (args, kwargs))
    return bounded(formatted(pattern, kwargs or args))


@jinja2.pass_environment
def _sum_filter(
    environment: jinja2.Environment, iterable: Any, attribute: Any = None, start: Any = 0
) -> Any:
    """The filter `sum` of numbers; lists would be copied with every one that is added."""
    if not isinstance(start, (int, float)):
        refuse_work(f"sums up {type(start).__name__}s")
    return do_sum(environment, iterable, attribute, start)


def _safe(value: Any) -> Any:
    """The filter `safe`: nothing is escaped here, so traced text stays what it is."""
    return value if isinstance(value, Traced) else Markup(_as_text(value))


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    """The filter `replace`, as Jinja has it without autoescape."""
    text, old, new = _as_text(s), _as_text(old), _as_text(new)
    _check_replace(text, old, new)
    return bounded(replaced(text, old, new, -1 if count is None else count))


def _traced_json(x: Any, *args: Any, **kwargs: Any) -> str:
    _check_numbers((*args, *kwargs.values()))
    whole = type(x) in (Data, Items)
    _made(x)
    sources = traced_in(x)
    text = bounded(to_json(plain_data(x), *args, **kwargs))
    current_trace().spend(len(text) >> 6)
    if whole or (type(x) is Traced and x._pieces is None):
        return _json_piece(text, x._origin, x._value, args, kwargs)
    return mixed(text, sources) if sources else text


def _json_piece(
    text: str,
    origin: tuple[int, str],
    value: Value | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    options = (args, tuple(sorted(kwargs.items())))
    simple = all(type(each) in (bool, int, str, type(None)) for each in (*args, *kwargs.values()))
    if value is None or not simple:
        current_trace().opaque = True
        return single(text, origin, None)
    return single(text, origin, ("json", value, options))


@jinja2.pass_eval_context
def _join_filter(
    context: nodes.EvalContext, value: Any, d: str = "", attribute: str | int | None = None
) -> str:
    """The filter `join`, as Jinja has it without autoescape."""
    if attribute is not None:
        from jinja2.filters import make_attrgetter

        value = map(make_attrgetter(context.environment, attribute), value)
    return join_with(str(d), map(_as_text, value))


def _is_in(value: Any, container: Any) -> bool:
    """The operator `in`; a text that holds another is asked even if it is the template's."""
    texts = _length(container) >> 10 if isinstance(container, str) else 0
    current_trace().spend(1 + texts + _work((container,)))
    if isinstance(value, _LISTS):
        _made(container)
    if type(value) is Traced and isinstance(container, str) and type(container) is not Traced:
        return bool(value._ask("__in__", (container,), str.__contains__(container, value)))
    return value in container


def _is_sequence(value: Any) -> bool:
    return type(value) is Traced or bool(jinja2.tests.test_sequence(value))


def _is_longer(value: Any, length: int) -> bool:
    """`value | length > length`."""
    return value.longer_than(length) if type(value) is Traced else len(value) > length


def _traced_strftime(format: str) -> str:
    text = strftime_now(format)
    current_trace().guards["strftime_now", ("constant",), (plain(format),)] = text
    return text


@jinja2.pass_context
def _sum(context: Context, *terms: Any) -> Any:
    """`a + b + c`, in one step where all are text."""
    for term in terms:
        if type(term) is not str and type(term) is not Traced:
            break
    else:
        return join(terms)
    return functools.reduce(functools.partial(_TRACING.call_binop, context, "+"), terms)


# A filter that takes the context is never computed when the template is compiled.
@jinja2.pass_context
def _at(_: Context, value: Any, loop: int) -> str:
    """A mark where a loop's turn begins, if its variable is a message."""
    current_trace().spend(1)
    return Mark("message", value.number, loop) if type(value) is Message else ""


@jinja2.pass_context
def _end(_: Context, value: Any, loop: int) -> str:
    """A mark where a loop is over."""
    return Mark("end", loop=loop)


class JinjaTemplate:
    """A chat template, compiled once for plain and once for traced rendering.

    Raises ValueError where the text is no Jinja template.
    """

    def __init__(self, source: str) -> None:
        try:
            self._plain = _PLAIN.from_string(source)
            tree = _TRACING.parse(source)
            self.names = {
                node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)
            } | {node.attr for node in tree.find_all(nodes.Getattr)}
            self._loops = loops_within_loops(tree)
            self._traced = _TRACING.from_string(instrumented(tree, _TRACING))
        except jinja2.TemplateError as error:
            raise ValueError(f"not a Jinja chat template: {error}") from None
        except RecursionError:
            raise ValueError("not a Jinja chat template: it is nested too deeply") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text, without anything traced."""
        template = self._plain
        try:
            return "".join(template.root_render_func(template.new_context(dict(variables))))
        except _ERRORS as error:
            raise _refused(error) from None

    def render_bounded(self, variables: Mapping[str, Any], size: int) -> str:
        """The text of a conversation that was never traced, in a bounded number of steps.

        `size`: how many characters and messages there are.
        """
        if self._loops is not None and size**self._loops <= MAX_TEXT:
            return self.render(variables)
        with tracing():
            return plain(self.pieces(variables))

    def pieces(self, variables: Mapping[str, Any]) -> str:
        """The text of `variables` with Traced strings in them; see `provenance.pieces_of`."""
        template = self._traced
        try:
            context = template.new_context(dict(variables))
            return join(template.root_render_func(context))
        except _ERRORS as error:
            raise _refused(error) from None


# What a template can raise on data that it cannot write.
_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def _refused(error: BaseException) -> RowError:
    if isinstance(error, RowError):
        return error
    said = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        return RowError(TOO_MUCH, "it calls itself without end")
    return RowError(REFUSED, said)


_PLAIN = _Plain()
_TRACING = _Tracing()
