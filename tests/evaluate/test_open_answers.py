"""Answers that a model writes: what a greedy search over full forward passes writes, from the prompt that fits."""

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.open_answers import Writer
from lmjax.evaluate.questions import OpenQuestion, Writing
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_params, shardings_of
from lmjax.settings import AttentionSettings, MeshSettings, ModelSettings
from lmjax.tokenizers.byte import ByteTokenizer

CONTEXT, TOKENS = 32, 6


def mark(text, references):
    return {"same": float(text in references), "length": len(text) / TOKENS}


@pytest.fixture(scope="module")
def model():
    heads = AttentionSettings(heads=2)
    return LanguageModel(
        ModelSettings(layers=1, width=8, context=CONTEXT, vocab_size=264, attention=heads, init_std=1.0)
    )


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(1))


@pytest.fixture(scope="module")
def greedy(model, params):
    """A function from token ids to the text of the next six, each the likeliest of a full forward pass."""
    forward = jax.jit(model.logits)

    def of(ids):
        ids, count = list(ids), len(ids)
        for _ in range(TOKENS):
            row = np.zeros((1, CONTEXT), np.int32)
            row[0, : len(ids)] = ids
            places = np.arange(CONTEXT, dtype=np.int32)[None]
            logits = forward(params, {"tokens": row, "positions": places, "segments": np.ones_like(row)})
            ids.append(int(np.asarray(logits)[0, len(ids) - 1, :257].argmax()))
        return ByteTokenizer().decode(ids[count:])

    return of


def written(model, params, asked, stop=()):
    writer = Writer(model, params, ByteTokenizer(), Writing(TOKENS, stop, mark))
    return list(writer.answers([(OpenQuestion(prompts[-1], " x", ("x",)), prompts) for prompts in asked]))


def test_an_answer_is_what_a_greedy_search_writes_after_the_token_before_every_text(model, params, greedy):
    prompts = ["ab", "the cat", "Q: who?\n\nA:"]
    found = written(model, params, [[prompt] for prompt in prompts])
    expected = [greedy([256, *prompt.encode()]).strip() for prompt in prompts]
    assert [one.text for one in found] == expected
    assert len(set(expected)) > 1
    assert [one.marks()["length"] for one in found] == [len(text) / TOKENS for text in expected]
    assert [(one.shots, one.cut, one.tie, one.loss) for one in found] == [(0, False, False, None)] * 3
    assert found[0].record() == {"context": "ab", "references": ("x",), "answer": expected[0]}


def test_an_answer_ends_before_a_stop_string(model, params, greedy):
    whole = greedy([256, *b"ab"])
    (found,) = written(model, params, [["ab"]], stop=(whole[2:4],))
    assert found.text == whole[: whole.index(whole[2:4])].strip() != whole.strip()


def test_a_prompt_leaves_room_for_the_answer_or_loses_shots_and_then_its_beginning(model, params, greedy):
    """26 tokens are left, of which one is that before every text: 25 bytes."""
    fits, long, longer = "a" * 20 + "cd:", "b" * 30, "x" * 24 + "end:"
    found = written(model, params, [["eee" + fits, "ee" + fits, fits], [long + "a", "a"], [long + longer, longer]])
    assert [(one.shots, one.cut) for one in found] == [(1, False), (0, False), (0, True)]
    expected = [[256, *("ee" + fits).encode()], [256, *b"a"], list(longer.encode()[-26:])]
    assert [one.text for one in found] == [greedy(ids).strip() for ids in expected]


def test_a_mesh_writes_the_same(model, params):
    prompts = [["ab"], ["the cat"], ["Q:"]]
    mesh = make_mesh(MeshSettings(data=2, fsdp=4))
    cut = jax.device_put(params, shardings_of(abstract_params(model, mesh)))
    assert [one.text for one in written(model, cut, prompts)] == [one.text for one in written(model, params, prompts)]


def test_an_answer_as_long_as_the_context_is_refused(model, params):
    with pytest.raises(UserError, match="context = 32: expected more than the 32 that an answer of this set may have"):
        Writer(model, params, ByteTokenizer(), Writing(32, (), mark))
