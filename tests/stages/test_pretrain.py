"""Pretraining from text to a trained state: what is measured is right, and resuming is going on."""

import math

import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.runs.load import Trained
from lmjax.settings import CheckpointSettings, EvaluationSettings, ScheduleSettings, TrainSettings
from lmjax.stages import pretrain as module
from lmjax.tasks.next_token import NextToken
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.training.record import read_metrics
from lmjax.training.stop import Stopped, StopRequest
from tests.running import assert_same_bits, at_line, saved_steps, values_of
from tests.tiny import text

LENGTH, ROWS, STEPS, ENTRIES = 16, 8, 10, 257  # of the recipe `tiny`


def stopped_after(step, train, recipe, folder):
    """Trains until it is asked to stop once the line of a step has been written."""
    stop = StopRequest()
    with at_line(step, lambda: setattr(stop, "signal", 15)):
        return train(recipe, folder, stop)


def _numpy_loss(trained: Trained, text: bytes) -> tuple[float, int]:
    """The mean cross-entropy of a text's tokens in rows of LENGTH, and how many tokens there are, in plain NumPy."""
    tokens = np.concatenate([[*line, ByteTokenizer.eos_id] for line in text.splitlines()])
    padded = np.zeros(-(-len(tokens) // LENGTH) * LENGTH + 1, np.int32)
    padded[: len(tokens)] = tokens
    logits = np.asarray(trained.apply(padded[:-1].reshape(-1, LENGTH)), np.float64)[..., :ENTRIES].reshape(-1, ENTRIES)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    count = len(tokens) - 1
    return -log_probs[np.arange(count), tokens[1:]].mean(where=np.ones(count, bool)), len(tokens)


def test_validation_numbers_are_those_of_the_whole_validation_text(whole, texts):
    _, folder, _ = whole
    assert sorted(values_of(folder, "validation_loss")) == [4, 8, 10]
    text = (texts / "validation.txt").read_bytes()
    loss, tokens = _numpy_loss(lmjax.load(folder), text)
    bytes_of_text = len(text) - text.count(b"\n")  # the line ends are not part of the documents
    assert values_of(folder, "validation_loss")[10] == pytest.approx(loss, rel=1e-5)
    assert values_of(folder, "validation_perplexity")[10] == pytest.approx(math.exp(loss), rel=1e-5)
    bits = loss * (tokens - 1) / (bytes_of_text - 1) / math.log(2)  # the first byte is the target of none
    assert values_of(folder, "bits_per_byte")[10] == pytest.approx(bits, rel=1e-5)


def test_only_as_many_validation_batches_as_asked_for_are_read(tmp_path, tiny, train, texts):
    train(tiny(evaluation__batches=1), tmp_path)
    text = (texts / "validation.txt").read_bytes()
    tokens = [byte for line in text.splitlines() for byte in (*line, ByteTokenizer.eos_id)][: ROWS * LENGTH + 1]
    assert ByteTokenizer.eos_id in tokens and len(tokens) < sum(len(line) + 1 for line in text.splitlines())
    logits = np.asarray(lmjax.load(tmp_path).apply(np.reshape(tokens[:-1], (ROWS, LENGTH))), np.float64)[..., :ENTRIES]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_probs, np.reshape(tokens[1:], (ROWS, LENGTH, 1)), axis=-1).mean()
    assert values_of(tmp_path, "validation_loss")[10] == pytest.approx(loss, rel=1e-5)


def test_the_loss_begins_where_a_uniform_guess_over_the_tokenizer_is_and_falls(whole):
    losses = values_of(whole[1], "loss")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[1] == pytest.approx(math.log(ENTRIES), abs=0.05), "spare rows of the table take no probability"
    assert losses[STEPS] < losses[1] - 1.0


def test_every_line_has_its_learning_rate_and_epochs(whole, texts):
    rates = values_of(whole[1], "learning_rate")
    cosine = [0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / STEPS)) / 2) for step in range(STEPS)]
    assert list(rates.values()) == pytest.approx(cosine, rel=1e-6)
    tokens = sum(len(line) + 1 for line in (texts / "train.txt").read_bytes().splitlines())
    rows = (tokens - 1) // LENGTH
    epochs = values_of(whole[1], "epochs")
    assert list(epochs.values()) == pytest.approx([ROWS * done / rows for done in range(1, STEPS + 1)])


def test_the_best_checkpoints_by_validation_loss_are_kept(tmp_path, tiny, train, monkeypatch):
    made = NextToken.evaluation

    def scored(*arguments):
        evaluate = made(*arguments)
        losses = dict(enumerate([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0, 9.5], start=1))
        return lambda state, done, recorder: evaluate(state, done, recorder) | {"validation_loss": losses[done]}

    monkeypatch.setattr(NextToken, "evaluation", scored)
    keep = CheckpointSettings(every=1, keep_last=1, keep_best=2)
    train(tiny(evaluation=EvaluationSettings(every=1, batches=1), checkpoint=keep), tmp_path)
    assert saved_steps(tmp_path) == [2, 4, 10]


@pytest.mark.parametrize("after", [2, 3, 6])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, train, whole, after):
    recipe, folder, state = whole
    stopped = stopped_after(after, train, recipe, tmp_path)
    assert int(stopped.step) == after + 1, "4 is a step whose evaluation the stop does not wait for"
    assert_same_bits(train(recipe, tmp_path), state)
    for name in ("loss", "validation_loss", "learning_rate", "epochs", "grad_norm"):
        assert values_of(tmp_path, name) == values_of(folder, name), name


def test_a_ramp_goes_on_where_it_was(tmp_path, tiny, train):
    ramp = {"batch_size": 16, "ramp_from": 8, "ramp_tokens": 8 * 6 * LENGTH, "ramp_sizes": 2}
    schedule = ScheduleSettings(unit="tokens", warmup=8 * 2 * LENGTH, decay=16 * 9 * LENGTH)
    ramp = {f"data__{name}": value for name, value in ramp.items()}
    recipe = tiny(**ramp, optimizer__schedule=schedule)
    state = train(recipe, tmp_path / "whole")
    sizes = np.diff([0.0, *values_of(tmp_path / "whole", "epochs").values()])
    np.testing.assert_allclose(sizes / sizes[0], [1] * 6 + [2] * 4)
    stopped_after(6, train, recipe, tmp_path / "run")
    assert_same_bits(train(recipe, tmp_path / "run"), state)
    for name in ("learning_rate", "epochs", "loss"):
        assert values_of(tmp_path / "run", name) == values_of(tmp_path / "whole", name), name


@pytest.mark.parametrize(
    "devices", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)]
)
def test_another_device_count_goes_on_with_the_same_batches_and_schedule(tmp_path, train, whole, devices):
    recipe, folder, state = whole
    stopped_after(5, train, recipe, tmp_path)
    resumed = train(recipe, tmp_path, devices=devices)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == 2
    assert len(jax.tree.leaves(resumed.params)[0].sharding.device_set) == devices
    for name in ("learning_rate", "epochs"):
        assert values_of(tmp_path, name) == values_of(folder, name), name
    assert values_of(tmp_path, "loss") == pytest.approx(values_of(folder, "loss"), rel=1e-5)
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=2e-5)


def test_a_shorter_recipe_than_what_was_trained_is_an_error(tmp_path, tiny, train):
    train(tiny(), tmp_path)
    with pytest.raises(UserError, match=r"train.steps = 2: expected 10, the step reached; raise it, or choose another"):
        train(tiny(train__steps=2), tmp_path)


def test_a_request_to_stop_while_data_are_prepared_stops_at_once(tmp_path, tiny, train, monkeypatch):
    stop = StopRequest()
    monkeypatch.setattr(module, "prepare", lambda *_, **__: stop._ask(15, None))
    with pytest.raises(Stopped):
        train(tiny(), tmp_path, stop)
    assert not (tmp_path / "checkpoints").exists()


def test_losses_that_are_never_finite_abort_after_n_steps(tmp_path, tiny, train):
    recipe = tiny(
        optimizer__learning_rate=1e30,
        optimizer__schedule__kind="constant",
        train=TrainSettings(steps=20, abort_after_skipped=4),
        checkpoint__every=100,
    )
    with pytest.raises(UserError, match=r"step 4: 4 steps in a row had a loss or gradient that is not finite"):
        train(recipe, tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["skipped"] for line in lines] == [0.0, 1.0, 1.0, 1.0]
    assert "loss" not in lines[-1], "there is no mean of no step"
    assert list((tmp_path / "checkpoints" / "pretrain").iterdir()) == []


def test_samples_of_every_prompt_are_recorded_at_every_evaluation(tmp_path, tiny, train):
    settings = EvaluationSettings(every=5, batches=1, prompts=("the", "a "), sample_tokens=3, temperature=0.0)
    train(tiny(evaluation=settings), tmp_path)
    samples = [(line["step"], line["prompt"], line["sample"]) for line in read_metrics(tmp_path) if "sample" in line]
    assert [sample[:2] for sample in samples] == [(5, "the"), (5, "a "), (10, "the"), (10, "a ")]
    greedy = lmjax.load(tmp_path).generate(["the", "a "], max_tokens=3, temperature=0.0)
    assert [sample[2] for sample in samples[2:]] == [completion.text for completion in greedy]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__batch_size": 12}, r"mesh.data = 8: expected a divisor of data.batch_size = 12; use "),
        ({"mesh__data": 3}, r"mesh.data = 3: expected a product of 8, one per device"),
        ({"mesh__data": 2, "mesh__tensor": 4}, r"mesh.tensor = 4: expected a divisor of model.attention.heads = 2"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error_before_anything_is_prepared(tmp_path, tiny, train, change, message):
    with pytest.raises(UserError, match=message):
        train(tiny(**change), tmp_path, devices=8)
    assert list(tmp_path.iterdir()) == []


def test_a_validation_text_shorter_than_one_row_is_an_error_before_training(tmp_path, tiny, train):
    (tmp_path / "short.txt").write_text("the cat\n")
    with pytest.raises(UserError, match=r"short.txt.*: 9 tokens are shorter than one row of data.sequence_length = 16"):
        train(tiny(data__validation=text(tmp_path / "short.txt")), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
