"""The sandbox of Jinja in which chat templates run, with bounded work and bounded texts.

It is transformers' sandbox, where nothing of Python is in reach and nothing is changed. Every rendering gives `_tick`,
which loops and macros call.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

MOST_TEXT = 10_000_000  # characters of a text on the way


def check_size(characters: float) -> None:
    if characters > MOST_TEXT:
        raise OverflowError(f"more than {MOST_TEXT:,} characters of text")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


# The filters that may make much of little, and how their arguments are called, in their order.
GROWING: dict[str, tuple[str, ...]] = {
    "batch": ("linecount",),
    "center": ("width",),
    "format": (),
    "indent": ("width",),
    "join": ("d",),
    "replace": ("old", "new"),
    "slice": ("slices",),
    "tojson": (),
    "wordwrap": ("width", "break_long_words", "wrapstring"),
}


def check_growth(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Raises OverflowError where a method of a text, or the filter of that name, would make too much of its value.

    The value of "join" is what stands between the parts, its first argument.
    """
    if name == "format":
        _check_format(str(value), arguments)
        return
    for number in arguments:  # such as a width
        check_size(number if isinstance(number, int) else 0)
    if name == "replace" and len(arguments) > 1:
        check_size(len(str(value)) + str(value).count(str(arguments[0])) * len(str(arguments[1])))
    elif name == "join" and arguments:
        check_size(sum(len(str(part)) + len(value) for part in arguments[0]))
    elif name in ("indent", "expandtabs") and arguments:
        width = arguments[0] if isinstance(arguments[0], int) else len(str(arguments[0]))
        check_size((1 + str(value).count("\n") + str(value).count("\t")) * width)
    elif name == "wordwrap" and len(arguments) > 2:
        check_size(len(str(value)) * len(str(arguments[2])))


def _check_format(form: str, arguments: Sequence[Any]) -> None:
    """Numbers in a format are widths; those that it is given may be, where it says so."""
    check_size(max(map(int, re.findall(r"\d{1,20}", form)), default=0))
    given = [number for number in arguments if isinstance(number, int)] if re.search(r"[*]|{[^}]*{", form) else []
    check_size(max(given, default=0))


def _bounded(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of GROWING, which may take its context first, with `check_growth`."""
    first = int(hasattr(plain, "jinja_pass_arg"))

    @functools.wraps(plain)
    def bounded(*arguments: Any, **named: Any) -> Any:
        before, value, rest = arguments[:first], arguments[first], arguments[first + 1 :]
        given = [*rest, *(named.get(each, "") for each in GROWING[name][len(rest) :])]
        if name == "join":
            value = list(value)
            check_growth(name, str(given[0]), [value])
        else:
            check_growth(name, value, [*given, *named.values()])
        return plain(*before, value, *rest, **named)

    return bounded


def _joined(*values: Any) -> str:
    text = "".join(map(str, values))
    check_size(len(text))
    return text


class Generation(jinja2.ext.Extension):
    """{% generation %} marks an answer for training; the text is that between the tags."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Bounded(jinja2.visitor.NodeTransformer):
    """Every loop and macro counts its rounds; what `a ~ b` gives has a bounded size."""

    def visit_For(self, node: Any) -> Any:  # noqa: N802
        return self._counted(node)

    def visit_Macro(self, node: Any) -> Any:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: Any) -> Any:  # noqa: N802
        node = self.generic_visit(node)
        return jinja2.nodes.Call(jinja2.nodes.Name("_joined", "load"), node.nodes, [], None, None, lineno=node.lineno)

    def _counted(self, node: Any) -> Any:
        node = self.generic_visit(node)
        call = jinja2.nodes.Call(jinja2.nodes.Name("_tick", "load"), [], [], None, None)
        node.body.insert(0, jinja2.nodes.ExprStmt(call).set_lineno(node.lineno))
        return node


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset("+*%") | {"**"}

    def _parse(self, *arguments: Any) -> Any:
        return Bounded().visit(super()._parse(*arguments))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and (isinstance(left, int) != isinstance(right, int)):
            count, other = (left, right) if isinstance(left, int) else (right, left)
            check_size(_length(other) * count)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_size(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str):
            check_growth("format", left, right if isinstance(right, tuple) else (right,))
        elif operator == "+":
            check_size(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        method = inspect.unwrap(function)  # Jinja wraps a text's own "format"
        text = getattr(method, "__self__", None)
        name = method.__name__ if isinstance(text, str) else ""
        if name == "join":
            arguments = tuple(map(list, arguments))  # a generator is read once
        check_growth(name, text, (*arguments, *named.values()))
        return super().call(context, function, *arguments, **named)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _environment() -> Environment:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters |= {name: _bounded(name, environment.filters[name]) for name in GROWING}
    del environment.globals["lipsum"]  # text without end, for tests of pages
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["_joined"] = _joined
    return environment


_ENVIRONMENT = _environment()


@functools.cache
def compiled(source: str) -> jinja2.Template:
    """The template of a source. Raises jinja2.TemplateError for one that is not written right."""
    return _ENVIRONMENT.from_string(source)
