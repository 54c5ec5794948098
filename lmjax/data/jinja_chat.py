"""Chat templates in Jinja: conversations as text, written in a sandbox with bounded work.

In: a template's source, messages and special tokens. Out: the text that transformers' apply_chat_template writes.
Templates come from elsewhere: they run in the sandbox that transformers runs them in, where nothing of Python is in
reach and nothing is changed, and one that loops or grows without end is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lmjax.errors import UserError

MOST_WORK = 200_000  # rounds of loops and calls of macros in one rendering
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
    from lmjax.data.jinja_sandbox import check_size, compiled  # jinja2, which few runs need

    given = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
    try:
        written, size = [], 0
        template = compiled(source)
        for part in template.generate(**given, add_generation_prompt=add_generation_prompt, **_counting(), **tokens):
            size += len(part)
            check_size(size)
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
