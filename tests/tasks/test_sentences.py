"""Texts with classes and scores are learned by an encoder and a decoder, and what is asked of a task is checked."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lmjax
from lmjax.data import labelled
from lmjax.data.labelled import Labelled
from lmjax.errors import UserError
from lmjax.model.families import model_of
from lmjax.parallel.placement import abstract_params
from lmjax.settings import Finetune, LabelledSettings, LogSettings, OptimizerSettings, RowSettings, TrainSettings
from lmjax.stages.finetune import adapted
from lmjax.stages.train_stage import _fresh
from lmjax.tasks.choices import Choices
from lmjax.tasks.resolved import resolve
from lmjax.tasks.sentences import Sentences
from tests.fresh import WORDS, decoder, encoder
from tests.running import lines_of
from tests.tiny import changed

pytestmark = pytest.mark.usefixtures("compiled_once")
LETTERS = list("cdefghijklmnop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, and files of letters: the class of a text is whether a or b ends it, a pair's score counts a."""
    folder = tmp_path_factory.mktemp("sentences")
    encoder(folder / "encoder")
    decoder(folder / "decoder")
    decoder(folder / "filled_up", vocab_size=40)  # a table of more rows than the tokenizer has entries
    rng = np.random.default_rng(0)
    for name, count in (("train", 96), ("held", 32)):
        long, pairs = [], []
        for number in range(count):
            label = "yes" if number % 2 else "no"
            words = [*rng.choice(LETTERS, 11), "a" if number % 2 else "b"]
            long.append({"text": " ".join(words), "label": label})
            one, two = rng.choice(list("ab"), 2)
            pairs.append({"text_a": one, "text_b": two, "label": 1.0 + 2.0 * [one, two].count("a")})
        for kind, rows in (("long", long), ("pairs", pairs)):
            (folder / f"{kind}_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stage(folder, start, kind="long", *, steps=40, length=8, **task):
    sources = {
        field: (LabelledSettings(str(folder / f"{kind}_{name}.jsonl")),)
        for field, name in (("train", "train"), ("validation", "held"))
    }
    return Finetune(
        start=str(folder / start),
        task=Sentences(**sources, **task),
        rows=RowSettings(sequence_length=length, batch_size=16),
        optimizer=OptimizerSettings(learning_rate=0.02, weight_decay=0.0),
        train=TrainSettings(steps=steps),
        log=LogSettings(every=20, tensorboard=False),
    )


def last_line(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]


def finetuned(folder, tmp_path, *arguments, **changes):
    result = lmjax.run(stage(folder, *arguments, **changes), tmp_path / "run", quiet=True)
    assert result.exit_code == 0
    return last_line(tmp_path / "run")


def test_the_end_of_a_long_text_is_learned_where_it_is_kept(folder, no_charts, tmp_path):
    last = finetuned(folder, tmp_path, "encoder", long="tail")
    assert last["validation_accuracy"] == last["validation_f1"] == last["validation_matthews"] == 1.0
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())["task"]["fields"]
    assert saved["long"] == "tail"


def test_the_end_of_a_long_text_cannot_be_learned_where_it_is_cut(folder, no_charts, tmp_path):
    assert finetuned(folder, tmp_path, "encoder", long="head")["validation_accuracy"] < 0.9


def test_windows_of_a_long_text_are_merged(folder, no_charts, tmp_path):
    last = finetuned(folder, tmp_path, "encoder", long="windows", stride=3, merge="mean", steps=80)
    assert last["validation_accuracy"] == 1.0, "one window of three sees the end"


def test_a_decoder_learns_classes_and_the_next_tokens(folder, no_charts, tmp_path):
    last = finetuned(folder, tmp_path, "decoder", long="tail", language=0.5)
    assert last["validation_accuracy"] == 1.0
    total = last["validation_cross_entropy"] + 0.5 * last["validation_language_loss"]
    assert last["validation_loss"] == pytest.approx(total, rel=1e-5)
    assert last["validation_language_loss"] < np.log(31)


def test_two_texts_in_both_orders_have_scores(folder, no_charts, tmp_path):
    last = finetuned(folder, tmp_path, "decoder", "pairs", scores=True, both_orders=True, steps=60)
    assert last["validation_spearman"] > 0.9 and last["validation_pearson"] > 0.9
    assert last["validation_squared_error"] == pytest.approx(last["validation_loss"])


def resolved(folder, start="encoder", **task):
    recipe = stage(folder, start, **task)
    opened = resolve(recipe, folder=folder / "resolved").opened()
    return recipe.task.prepared(), opened


def test_labels_and_balanced_factors_are_those_of_the_training_data(folder):
    task, _ = resolved(folder, balanced=True)
    assert task.labels == ("no", "yes") and dict(task.class_weights) == {"no": 1.0, "yes": 1.0}
    (folder / "uneven_train.jsonl").write_text('{"text": "a", "label": 1}\n' * 3 + '{"text": "b", "label": 0}\n')
    uneven = Sentences(train=(LabelledSettings(str(folder / "uneven_train.jsonl")),), balanced=True)
    assert dict(uneven.prepared().class_weights) == {"0": 2.0, "1": 4 / 6}
    named = Sentences(train=uneven.train, labels=("1", "0"))
    assert named.prepared() is named


def test_answers_are_named_classes_with_probabilities_of_merged_windows(folder):
    task, stage_ = resolved(folder, long="windows", stride=3)
    examples = [Labelled((" ".join("cdefghijkl"),), "yes", "f:1"), Labelled(("a",), None, "f:2")]
    rows = task.rows_of(examples, stage_)
    assert rows.examples.tolist() == [0, 0, 0, 1]
    shares = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.2, 0.8]], np.float32)
    answers = task.answers({"probabilities": shares}, rows, examples)
    assert [answer["label"] for answer in answers] == ["no", "yes"]
    assert answers[0]["probabilities"] == {"no": pytest.approx(1.7 / 3), "yes": pytest.approx(1.3 / 3)}
    batch = rows.batch(np.arange(4))
    assert batch["labels"].tolist() == [1, 1, 1, 0] and batch["label_weights"].tolist() == [1, 1, 1, 0]
    assert task.measured(answers[:1], examples[:1])["accuracy"] == 0.0


def test_what_does_not_go_together_is_refused_by_its_field(folder):
    source = (LabelledSettings("a.jsonl"),)
    for values, message in (
        ({"scores": True, "labels": ("a",)}, r"labels = \('a',\): expected its default, as scores have no classes"),
        ({"both_orders": True, "long": "windows"}, r"long = 'windows': expected a part of a text"),
        (
            {"labels": ("a",), "class_weights": (("b", 1.0),)},
            r"class_weights = 'b': expected names of classes; known: a",
        ),
        ({"class_weights": (("b", -1.0),)}, r"class_weights = -1.0: expected factors of 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            Sentences(**({"train": source} | values))


def test_examples_that_cannot_be_learned_end_the_run_with_file_and_line(folder, no_charts, tmp_path):
    bad = folder / "bad.jsonl"
    bad.write_text('{"text": "a", "label": "maybe"}\n')
    recipe = stage(folder, "encoder")
    for change, message in (
        ({"validation": (LabelledSettings(str(bad)),)}, r"bad\.jsonl:1: the label 'maybe' is none of the training"),
        ({"language": 0.5}, r"model\.attention\.causal = False"),
        ({"long": "error"}, r"long_train\.jsonl:1: 12 tokens, expected at most 6 of rows\.sequence_length = 8"),
        ({"both_orders": True}, r"long_train\.jsonl:1: one text, expected two"),
        ({"train": ()}, r"task\.train = \(\): expected at least one source"),
        ({"train": (), "labels": ("bad", "good")}, r"task\.train = \(\): expected at least one source"),
    ):
        fields = {name: getattr(recipe.task, name) for name in ("train", "validation")}
        with pytest.raises(UserError, match=message):
            lmjax.run(
                Finetune(start=recipe.start, task=Sentences(**(fields | change)), rows=recipe.rows),
                tmp_path / str(abs(hash(str(change)))),
                quiet=True,
            )
    bad.write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:1: no label; expected one, to train or to evaluate"):
        lmjax.run(
            Finetune(start=recipe.start, task=Sentences(train=(LabelledSettings(str(bad)),), labels=("a",))),
            tmp_path / "unlabelled",
            quiet=True,
        )


def test_a_run_resumes_with_the_labels_and_factors_that_its_data_told(folder, no_charts, tmp_path):
    recipe = stage(folder, "encoder", long="tail", balanced=True, steps=4)
    recipe = changed(recipe, log__every=1, optimizer__schedule__kind="constant")
    lmjax.run(recipe, tmp_path / "whole", quiet=True)
    lmjax.run(changed(recipe, train__steps=2), tmp_path / "stopped", quiet=True)
    lmjax.run(recipe, tmp_path / "stopped", quiet=True)
    whole, resumed = (
        [line["loss"] for line in lines_of(tmp_path / name) if line["step"] > 2] for name in ("whole", "stopped")
    )
    assert whole == resumed and len(whole) == 2


TWO_TEXTS = [Labelled(("c d e",), "yes", "f:1"), Labelled(("g",), "no", "f:2")]
TWO_CHOICES = [labelled.Choices("c d", ("e", "g h"), 1, "f:1"), labelled.Choices("i", ("j", "k"), 0, "f:2")]


@pytest.mark.parametrize(("kind", "examples"), [(Sentences, TWO_TEXTS), (Choices, TWO_CHOICES)])
def test_the_loss_of_the_next_token_covers_the_entries_of_the_tokenizer_alone(folder, kind, examples):
    """Rows that fill the table up, and those of Start, Delimiter and Extract behind them, have no probability."""
    recipe = stage(folder, "filled_up")
    own = {"labels": ("no", "yes")} if kind is Sentences else {"options": 2}
    task = kind(train=recipe.task.train, language=0.5, **own)
    recipe = dataclasses.replace(recipe, task=task)
    opened = adapted(resolve(recipe, folder=folder / "resolved").opened(), task)
    model = task.model(opened, "cpu")
    params = model.init(jax.random.key(0))
    batch = task.rows_of(examples, opened).batch(np.arange(2))
    entries, table = opened.entries, params["trunk"]["tokens"]
    assert table.shape[0] == 43 and entries == 31 and batch["targets"][batch["weights"] > 0].max() < entries
    loss_fn = jax.jit(task.loss(model, opened), static_argnums=2)

    def language_loss(row, value):
        trunk = params["trunk"] | {"tokens": table.at[row, 0].set(value)}
        return float(loss_fn(params | {"trunk": trunk}, batch, None)[1]["language_loss"].mean())

    assert language_loss(35, 100.0) == language_loss(35, -100.0) > 1.0
    assert language_loss(entries - 1, 100.0) != language_loss(entries - 1, -100.0), "no text has the last entry"


@pytest.mark.parametrize(("start", "rows"), [("encoder", 0), ("decoder", 3)])
def test_longer_rows_keep_the_first_positions_and_what_is_new_is_fresh(folder, start, rows):
    task, opened = resolved(folder, start, length=32)
    mesh = opened.mesh()
    own_model = model_of(opened.start.settings)
    kept = jax.tree.map(np.asarray, opened.start.language_model(abstract_params(own_model, mesh)))
    opened = adapted(opened, task)
    fresh = _fresh(task, task.build(opened, mesh, 1), opened, mesh, ()).params["trunk"]
    assert fresh["positions"].shape[0] == 32 and fresh["tokens"].shape[0] == kept["tokens"].shape[0] + rows
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        own = fresh
        for key in path:
            own = own[key.key]
        np.testing.assert_array_equal(own[: leaf.shape[0]], leaf)
    for new in (fresh["positions"][16:], fresh["tokens"][len(kept["tokens"]) :]):
        assert all(len(np.unique(row)) == 16 for row in new) and (not new.size or 0.01 < np.std(new) < 0.04)


def test_a_decoder_that_was_fine_tuned_before_keeps_the_rows_of_its_special_tokens(folder, no_charts, tmp_path):
    assert lmjax.run(stage(folder, "decoder", steps=2), tmp_path / "first", quiet=True).exit_code == 0
    task, opened = resolved(folder, str(tmp_path / "first"))
    first = opened.start.settings.vocab_size
    assert first == len(WORDS) + 3
    opened = adapted(opened, task)
    assert opened.model.vocab_size == first, "no second Start, Delimiter and Extract"
    assert task.frame(opened).begin == len(WORDS)
    kept = opened.start.language_model(abstract_params(model_of(opened.start.settings), opened.mesh()))
    fresh = _fresh(task, task.build(opened, opened.mesh(), 1), opened, opened.mesh(), ()).params["trunk"]
    np.testing.assert_array_equal(fresh["tokens"], kept["tokens"])


def test_examples_that_are_too_long_or_have_other_labels_are_counted_where_the_recipe_skips(
    folder, no_charts, tmp_path, capsys
):
    """Without on_bad_record = "skip" each is an error with its file and line: see above."""
    rows = [*({"text": c, "label": "yes"} for c in "abcdefgh"), {"text": "a b c d e f g h i j", "label": "yes"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [{"text": "a", "label": "yes"}, {"text": "b", "label": "perhaps"}, {"text": "c", "label": "never"}]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    train, validation = (
        (LabelledSettings(str(tmp_path / f"{name}.jsonl"), on_bad_record="skip"),) for name in ("train", "held")
    )
    recipe = stage(folder, "encoder", steps=1)
    recipe = dataclasses.replace(recipe, task=Sentences(train=train, validation=validation, long="error"))
    assert lmjax.run(recipe, tmp_path / "run").exit_code == 0
    said = capsys.readouterr()
    said = said.out + said.err
    assert "task.train[0]: 1 records skipped: longer than a row" in said
    assert "task.validation[0]: 2 records skipped: a label that the training data have not" in said
    assert "8 examples in 8 rows" in said
