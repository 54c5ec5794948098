"""The stop-word filter of LAMBADA.

GPT-2 uses "a stop-word filter" as an approximation to the constraint that the word asked for is the last one of its
sentence (Radford et al. 2019, section 3.3), and publishes neither the list nor the code. As in its replications, no
token that is a word of the list is predicted: the likeliest of the other tokens is. Here such a token begins with a
blank, so that the inner tokens of longer words stay. The list has the words of English that have a grammatical use
alone: articles, pronouns, prepositions, conjunctions, auxiliary verbs.
"""

from __future__ import annotations

from lmjax.tokenizers.tokenizer import Tokenizer

_LIST = """
a an the this that these those I me my mine myself you your yours yourself yourselves he him his himself she her
hers herself it its itself we us our ours ourselves they them their theirs themselves who whom whose which what
about above across after against along among around as at before behind below beneath beside between beyond by
down during for from in inside into near of off on onto out over through to toward towards under until up upon with
within without and but or nor so yet if because although though while unless since than whether when where why how
am is are was were be been being have has had having do does did doing will would shall should can could may might
must not no all any both each few more most other some such only own same too very just then there here again once
"""
STOP_WORDS = tuple(_LIST.split())


def stop_word_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that are a stop word with the blank before it. A tokenizer of bytes has none."""
    before, *whole = tokenizer.encode_batch(["a", *(f"a {word}" for word in STOP_WORDS)])
    return sorted({int(ids[-1]) for ids in whole if len(ids) == len(before) + 1})
