"""Today's open decoders against transformers itself, where that and torch are: what each writes, the other reads.

The stored models of `test_open_models.py` go out, are loaded, continue a text and come back.
"""

import jax
import numpy as np
import pytest

from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.language_model import LanguageModel
from tests.interop.test_open_models import CASES, TOLERANCE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT, COUNT = 20, 12  # tokens


def continued(model, params, tokens, count):
    """The likeliest token, and so on from there: [B, count]. The prompt is read at once, and then token by token."""
    rows, length = tokens.shape
    cache, extend = model.empty_cache(rows, length + count), jax.jit(model.extend)
    part, at, found = tokens.astype(np.int32), 0, []
    for _ in range(count):
        positions = np.tile(np.arange(at, at + part.shape[1], dtype=np.int32), (rows, 1))
        hidden, cache = extend(params, cache, part, positions, np.ones_like(part), at)
        at += part.shape[1]
        part = np.asarray(model.project(params, hidden[:, -1:])).argmax(-1).astype(np.int32)
        found.append(part)
    return np.concatenate(found, 1)


@pytest.mark.parametrize("name", CASES)
def test_it_computes_and_continues_alike_what_we_write_and_we_read_what_it_saves(golden, tmp_path, name):
    folder = golden(name)
    ours = read_model(folder.write())
    write_model(tmp_path / "ours", ours.settings, ours.params)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(told.values()), told
    tokens = torch.from_numpy(folder.tokens).long()
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(tokens).logits.numpy(), folder.logits, rtol=0, atol=TOLERANCE)
        options = {"max_new_tokens": COUNT, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        prompt = tokens[:, :PROMPT]
        rows = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, PROMPT:].numpy()
    found = continued(LanguageModel(ours.settings), ours.params, folder.tokens[:, :PROMPT], COUNT)
    np.testing.assert_array_equal(found, rows)
    model.save_pretrained(tmp_path / "theirs")
    back = read_model(tmp_path / "theirs")
    assert back.settings == ours.settings
    for one, other in zip(jax.tree.leaves(back.params), jax.tree.leaves(ours.params), strict=True):
        np.testing.assert_array_equal(one, other)
