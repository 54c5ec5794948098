"""Chat templates in Jinja: conversations as text, written in a sandbox with bounded work.

In: a template's source, messages and special tokens. Out: the text that transformers' apply_chat_template writes.
Templates come from elsewhere: they run in the sandbox that transformers runs them in, where nothing of Python is in
reach and nothing is changed, and one that loops or grows without end is stopped.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.errors import UserError

MOST_WORK = 200_000  # rounds of loops and calls of macros in one rendering
MOST_TEXT = 10_000_000  # characters of a text on the way
_FIX = "correct the template, or remove it"


def render_messages(
    source: str,
    messages: Sequence[Mapping[str, str]],
    tokens: Mapping[str, str],
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as text; `tokens` are the special tokens by the names that templates use.

    Raises UserError, which begins with `where`, where the template fails, refuses the conversation or does not end.
    """
    given = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
    try:
        written, size = [], 0
        template = _compiled(source)
        for part in template.generate(**given, add_generation_prompt=add_generation_prompt, **_counting(), **tokens):
            size += len(part)
            _check_size(size)
            written.append(part)
        return "".join(written)
    except Exception as error:  # a template may raise whatever an expression of Python's can
        line = getattr(error, "lineno", None)
        at = f" (line {line})" if line else ""
        raise UserError(f"{where}: its chat template{at} failed: {type(error).__name__}: {error}; {_FIX}") from error


def _counting() -> dict[str, Callable[[], None]]:
    """What a rendering calls in every round of a loop and in every macro."""
    left = MOST_WORK

    def tick() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OverflowError(f"more than {MOST_WORK:,} rounds of its loops")

    return {"_tick": tick}


def _check_size(characters: float) -> None:
    if characters > MOST_TEXT:
        raise OverflowError(f"more than {MOST_TEXT:,} characters of text")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _joined(*values: Any) -> str:
    text = "".join(map(str, values))
    _check_size(len(text))
    return text


@functools.cache
def _compiled(source: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.visitor

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
            return jinja2.nodes.Call(
                jinja2.nodes.Name("_joined", "load"), node.nodes, [], None, None, lineno=node.lineno
            )

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
                _check_size(_length(other) * count)
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() * right)
            elif operator == "%" and isinstance(left, str):
                _check_size(max(map(int, re.findall(r"\d{1,20}", left)), default=0))  # a width
            elif operator == "+":
                _check_size(_length(left) + _length(right))
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
            for value in (*arguments, *named.values()):  # such as a width
                _check_size(value if isinstance(value, int) else 0)
            return super().call(context, function, *arguments, **named)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["_joined"] = _joined
    return environment.from_string(source)
