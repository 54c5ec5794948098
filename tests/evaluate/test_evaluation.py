"""Evaluations: the numbers are those of the text that was read, of every source, and nothing is lost by one.

What stops in an evaluation, or fails in it, has been saved; what is owed is made up for by the next run.
"""

import dataclasses
import math
import os
import signal

import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.checkpoint import Checkpoint, find_checkpoint
from lmjax.checkpoints.evaluated import EVALUATIONS_FILE
from lmjax.data.loader import ValidationBatches
from lmjax.data.sources import MemoryDocuments
from lmjax.data.write_shards import prepare_shards
from lmjax.errors import UserError
from lmjax.settings import CheckpointSettings, EvaluationSettings, SourceSettings, TokenizerSettings
from lmjax.stages.pretrain import pretrain
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.tokenizers.tokenizer import build_tokenizer, tokenizer_fingerprint
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests.running import saved_steps, values_of
from tests.tiny import text

LENGTH, ROWS = 16, 8  # of the recipe `tiny`


def pretrained(recipe, workdir):
    """Trains, and prints what is said."""
    return pretrain(resolve(recipe, folder=workdir), Session(StopRequest(), ProgressDisplay()))


MIXED = "a line of letters\n" * 30 + "\u4e2d\u6587\u7684\u6587\u672c\u3002" * 60


@pytest.fixture
def pairs(tmp_path):
    """A trained byte-level BPE whose tokens hold more bytes of letters than of Chinese, and its folder."""
    settings = TokenizerSettings(kind="bpe", vocab_size=266)
    tokenizer = build_tokenizer(settings, [MIXED[:300]])
    tokenizer.save(tmp_path / "pairs")
    return tokenizer, TokenizerSettings(kind="bpe", path=str(tmp_path / "pairs"))


def test_bits_per_byte_are_those_of_the_text_that_was_evaluated(tmp_path, tiny, train, pairs):
    """The second half of a single document has other tokens per byte than the whole, and its first batch others again.

    Its bits are its loss in nats over ln 2, and its bytes those of its tokens, read back as text.
    """
    tokenizer, settings = pairs
    whole = prepare_shards(
        MemoryDocuments([MIXED]), tokenizer, tmp_path / "shards", fingerprint=tokenizer_fingerprint(tokenizer)
    )
    ids = whole.document(0)
    half = SourceSettings(kind="shards", path=str(tmp_path / "shards"), begin=0.5)
    data = {"data__train": (dataclasses.replace(half, begin=0.0),), "data__validation": (half,)}
    for name, batches in (("all", None), ("first", 1)):
        recipe = tiny(**data, tokenizer=settings, evaluation__batches=batches, train__steps=1)
        train(recipe, tmp_path / name)
        targets = ids[round(len(ids) * 0.5) :][1:][: None if batches is None else ROWS * LENGTH]
        assert batches is None or len(targets) == ROWS * LENGTH
        count = len(b"".join(tokenizer._bytes[token] for token in targets if token != tokenizer.eos_id))
        loss = values_of(tmp_path / name, "validation_loss")[1]
        bits = values_of(tmp_path / name, "bits_per_byte")[1]
        assert bits == pytest.approx(loss * len(targets) / count / math.log(2), rel=1e-5)
        assert abs(len(targets) / count - len(ids) / len(MIXED.encode())) > 0.05, "a share of the whole is another one"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (TokenizerSettings(kind="wordpiece", vocab_size=36), "it loses text"),
        (TokenizerSettings(kind="sentencepiece", vocab_size=30, byte_fallback=False), "it loses text"),
    ],
)
def test_a_tokenizer_that_loses_text_has_no_bits_per_byte_and_a_line_says_why(
    two_devices, tmp_path, tiny, capsys, settings, reason
):
    recipe = tiny(tokenizer=settings, train__steps=1)
    pretrained(recipe, tmp_path)
    assert f"no bits per byte with this {settings.kind} tokenizer: {reason};" in capsys.readouterr().out
    assert list(values_of(tmp_path, "validation_loss")) == [1] and values_of(tmp_path, "bits_per_byte") == {}


@pytest.fixture
def two_texts(tmp_path):
    """Two sources of validation: 40 rows of one letter, and 9 rows and a bit of others."""
    for name, written in (("long", "a" * 640), ("short", "bcd" * 50)):
        (tmp_path / f"{name}.txt").write_text(written)
    return tuple(text(tmp_path / f"{name}.txt")[0] for name in ("long", "short"))


def _quality(folder, name) -> float:
    return values_of(folder, name)[10]


def test_every_validation_source_has_its_own_numbers_and_the_whole_is_weighted_by_tokens(
    tmp_path, tiny, train, two_texts
):
    recipe = tiny(data__validation=two_texts)
    train(recipe, tmp_path / "both")
    both = tmp_path / "both"
    for number, source in enumerate(two_texts):
        train(tiny(data__validation=(source,)), tmp_path / f"{number}")
        name = f"{('long', 'short')[number]}.txt"
        for quantity in ("validation_loss", "bits_per_byte", "validation_perplexity"):
            alone = _quality(tmp_path / f"{number}", quantity)
            assert _quality(both, f"{quantity}/{name}") == pytest.approx(alone, rel=1e-6)
            assert values_of(tmp_path / f"{number}", f"{quantity}/{name}") == {}, "one source is the whole"
    losses = [_quality(both, f"validation_loss/{name}.txt") for name in ("long", "short")]
    whole = _quality(both, "validation_loss")
    assert whole == pytest.approx((640 * losses[0] + 150 * losses[1]) / 790, rel=1e-6)  # ends of text among them
    assert abs(whole - np.mean(losses)) > 0.01


def test_a_limited_evaluation_reads_every_source_whatever_their_order(tmp_path, tiny, train, two_texts):
    values = []
    for name, sources in (("one", two_texts), ("other", two_texts[::-1])):
        recipe = tiny(data__validation=sources, evaluation__batches=2)
        train(recipe, tmp_path / name)
        names = ("validation_loss", *(f"validation_loss/{source}.txt" for source in ("long", "short")))
        values.append([_quality(tmp_path / name, quantity) for quantity in names])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    whole, long, short = values[0]
    assert whole == pytest.approx((128 * long + 128 * short) / 256, rel=1e-6), "a batch of each"


def test_sources_of_the_summary_and_the_report_have_their_names(tmp_path, tiny, monkeypatch, two_texts, capsys):
    recipe = tiny(data__validation=two_texts)
    summary = lmjax.run(recipe, tmp_path / "run").summary
    said, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    for name in ("long.txt", "short.txt"):
        loss = summary[f"validation_loss/{name}"]
        assert f"validation loss of {name}: {loss:.4f}" in said
        assert f"<dt>loss, {name}</dt><dd>{loss:.4f}</dd>" in page
        assert f"<dt>bits per byte, {name}</dt>" in page


def test_how_much_of_each_source_is_read_is_told_before_the_first_step(tmp_path, tiny, monkeypatch, capsys, texts):
    (tmp_path / "small.txt").write_text("x" * 160)
    big = SourceSettings(kind="text", path=str(texts / "train.txt"), documents="line", weight=1.0)
    small = SourceSettings(kind="text", path=str(tmp_path / "small.txt"), weight=1.0)
    pretrained(tiny(data__train=(big, small)), tmp_path / "run")
    said = capsys.readouterr().out
    tokens = sum(len(line) + 1 for line in (texts / "train.txt").read_bytes().splitlines())
    epochs = 40 / ((tokens - 1) // LENGTH)
    assert f"train.txt: {tokens:,} tokens, {round(tokens * epochs):,} planned, {epochs:.2f} epochs\n" in said
    assert "small.txt: 161 tokens, 644 planned, 4.00 epochs\n" in said and "warning" not in said
    pretrained(tiny(data__train=(small,), train__steps=6), tmp_path / "more")
    assert "warning: small.txt is read 4.8 times; text that is repeated" in capsys.readouterr().out


def test_a_prompt_longer_than_the_context_is_refused_before_the_first_step(tmp_path, tiny, train):
    evaluation = EvaluationSettings(every=100, prompts=("a", "b" * LENGTH))
    expected = (
        r"evaluation.prompts\[1\] = 'b{16}': 16 tokens, expected fewer than the model's context of 16; shorten it"
    )
    with pytest.raises(UserError, match=expected):
        train(tiny(evaluation=evaluation), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def _interrupting(monkeypatch, at: int) -> list[int]:
    """Asks to stop at the `at`-th batch that an evaluation reads; gives what was read."""
    read, plain = [], ValidationBatches.batch_at

    def reading(batches, index, rows=None):
        read.append(index)
        if len(read) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(batches, index, rows)

    monkeypatch.setattr(ValidationBatches, "batch_at", reading)
    return read


@pytest.mark.parametrize(("every", "reached"), [(4, 4), (100, 10)])
def test_a_signal_in_an_evaluation_is_honoured_at_its_next_batch_and_the_evaluation_made_up_for(
    tmp_path, tiny, monkeypatch, two_texts, every, reached, capsys
):
    keep = CheckpointSettings(every=100, keep_best=1)
    evaluation = EvaluationSettings(every=every, prompts=("a",), sample_tokens=2)
    recipe = tiny(data__validation=two_texts, evaluation=evaluation, checkpoint=keep)
    lmjax.run(recipe, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        read = _interrupting(patch, 3)
        stopped = lmjax.run(recipe, tmp_path / "run")
    assert stopped.exit_code == 143 and set(read) <= {0, 1}
    assert f"stopped and saved at step {reached} of 10; the same command resumes" in capsys.readouterr().out
    assert saved_steps(tmp_path / "run") == [reached] and values_of(tmp_path / "run", "validation_loss") == {}
    assert find_checkpoint(tmp_path / "run").metrics() == {}
    assert lmjax.run(recipe, tmp_path / "run", quiet=True).summary["steps"] == 10
    for name in ("validation_loss", "validation_loss/short.txt", "bits_per_byte", "loss", "sample"):
        assert values_of(tmp_path / "run", name) == values_of(tmp_path / "whole", name), name
    last = values_of(tmp_path / "run", "validation_loss")[10]
    assert Checkpoint(tmp_path / "run" / "checkpoints" / "pretrain" / "10").metrics() == {"validation_loss": last}


def test_an_evaluation_that_fails_leaves_the_step_and_the_next_run_evaluates_it(tmp_path, tiny, train, monkeypatch):
    recipe = tiny(evaluation=EvaluationSettings(every=3), checkpoint=CheckpointSettings(every=100))
    with monkeypatch.context() as patch:
        patch.setattr("lmjax.tasks.next_token.values_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, tmp_path)
    assert saved_steps(tmp_path) == [3]
    train(recipe, tmp_path)
    assert sorted(values_of(tmp_path, "validation_loss")) == [3, 6, 9, 10]


def test_the_best_are_chosen_among_all_that_were_saved_whenever_evaluations_are_due(tmp_path, tiny, train, monkeypatch):
    """Saves at 3, 6, 9 and the end; evaluations of their own at 7: without more, only the end would have a number."""
    made, losses = NextToken.evaluation, {3: 2.0, 6: 1.0, 7: 0.5, 9: 3.0, 10: 4.0}

    def scored(*arguments):
        evaluate = made(*arguments)
        return lambda state, done, lines: evaluate(state, done, lines) | {"validation_loss": losses[done]}

    monkeypatch.setattr(NextToken, "evaluation", scored)
    keep = CheckpointSettings(every=3, keep_last=1, keep_best=1, select_best=True)
    train(tiny(evaluation=EvaluationSettings(every=7, batches=1), checkpoint=keep), tmp_path)
    assert values_of(tmp_path, "validation_loss") == losses
    assert saved_steps(tmp_path) == [6, 10] and lmjax.load(tmp_path).step == 6


def test_a_number_of_a_checkpoint_that_was_changed_on_disk_is_refused(tmp_path, tiny, train):
    keep = CheckpointSettings(every=100, keep_best=1, select_best=True)
    train(tiny(checkpoint=keep), tmp_path)
    file = tmp_path / "checkpoints" / "pretrain" / EVALUATIONS_FILE
    text = file.read_text()
    place = text.index("validation_loss") + len('validation_loss": ')
    file.write_text(text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :])
    with pytest.raises(UserError, match=r"evaluations.json: expected the numbers .* digest .*; delete it"):
        lmjax.load(tmp_path)
