"""Import and export of BERT and T5 as the commands do them: checkpoints that load, apply and keep a task's head."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lmjax
from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.errors import UserError
from lmjax.interop.huggingface import read_model
from lmjax.model.language_model import LanguageModel
from lmjax.optim.train_state import TrainState
from lmjax.runs.convert import export_folder, import_folder
from lmjax.runs.predict import open_task
from lmjax.settings import CheckpointSettings, Finetune, ModelSettings, TokenizerSettings
from lmjax.settings.labelled import LabelledSettings
from lmjax.settings.recipe_files import to_json
from lmjax.tasks.sentences import Sentences
from lmjax.tasks.tags import Tags
from lmjax.tokenizers.tokenizer import build_tokenizer
from tests.interop.stored_encoders import Stored, said

SOURCE = (LabelledSettings("none.jsonl", fields=("text",)),)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def test_a_bert_with_both_heads_of_its_pretraining_goes_in_and_comes_out_bit_for_bit(tmp_path):
    folder = Stored(tmp_path, "bert_pretraining")
    message = import_folder(folder.write(), tmp_path / "ours")
    parameters = sum(tensor.size for tensor in folder.tensors.values())
    assert f"bert, {parameters:,} parameters" in message and "the head of the task" not in message
    trained, (row,) = lmjax.load(tmp_path / "ours"), folder.inputs["input_ids"][:1]
    ours = read_model(folder.path)
    batch = {"tokens": row[None], "positions": np.arange(12)[None], "segments": np.ones((1, 12), np.int32)}
    expected = jax.jit(trained.model.logits)(ours.params, batch)
    np.testing.assert_allclose(trained.apply(row[None]), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"apply: inputs = .*: expected none for this model"):
        trained.apply(row[None], row[None])
    export_folder(tmp_path / "ours", tmp_path / "back")
    back = tensors_of(tmp_path / "back")
    assert back.keys() == folder.tensors.keys()
    assert all(back[name].tobytes() == tensor.tobytes() for name, tensor in folder.tensors.items())


def test_a_task_s_head_without_a_tokenizer_or_of_a_task_that_lmjax_has_not_is_told_of(tmp_path):
    untold = "the head of the task, 'sequence', is no part of the checkpoint"
    folder = Stored(tmp_path, "bert_sequence")
    assert untold in import_folder(folder.write(), tmp_path / "without")
    folder.config["problem_type"] = "multi_label_classification"
    assert untold in import_folder(with_vocabulary(folder), tmp_path / "multi")


def with_vocabulary(folder):
    """Writes the folder with a WordPiece vocabulary whose entry of id N is the word `wN`."""
    place, special = folder.write(), {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]"}
    entries = [special.get(number, f"w{number}") for number in range(folder.config["vocab_size"])]
    (place / "vocab.txt").write_text("\n".join(entries) + "\n")
    return place


@pytest.fixture(params=["bert_sequence", "bert_choice", "bert_tokens", "bert_span"])
def imported(request, tmp_path):
    """A folder with a task's head, what transformers' model says of the rows of ids given, and its checkpoint here."""
    folder = Stored(tmp_path, request.param)
    place = with_vocabulary(folder)
    message = import_folder(place, tmp_path / "ours")
    model = read_model(place)
    kind = model.head.kind

    def outputs(*rows):
        batch = [
            {"tokens": ids, "positions": range(len(ids)), "segments": [1] * len(ids), "token_types": types}
            for ids, types in rows
        ]
        fields = {name: np.array([list(row[name]) for row in batch], np.int32) for name in batch[0]}
        return said(model, fields)[kind]

    return kind, open_task(tmp_path / "ours"), outputs, message


def test_lmjax_predicts_with_the_head_of_an_imported_task(imported):
    kind, task, outputs, message = imported
    (texts, expected_message) = {
        "sequence": (["w7 w9"], "its task: Sentences of no, maybe, yes;"),
        "choice": (["w7", "w9", "w11"], "its task: Choices;"),
        "tokens": (["w7 w9"], "its task: Tags of no, maybe, yes;"),
        "span": (["w7", "w9 w11"], "its task: QuestionAnswering;"),
    }[kind]
    assert expected_message in message and "no part of the checkpoint" not in message
    (answer,) = task.answers([task.task.example(texts, "--text")])
    if kind == "sequence":
        scores = outputs(([2, 7, 9, 3], [0] * 4))
        shares = np.exp(scores[0]) / np.exp(scores[0]).sum()
        np.testing.assert_allclose(list(answer["probabilities"].values()), shares, atol=1e-5)
    elif kind == "choice":
        scores = outputs(*(([2, 7, 3, option, 3], [0, 0, 0, 1, 1]) for option in (9, 11)))[:, 0]
        np.testing.assert_allclose(answer["probabilities"], np.exp(scores) / np.exp(scores).sum(), atol=1e-5)
    elif kind == "tokens":
        numbers = outputs(([2, 7, 9, 3], [0] * 4))[0, 1:3].argmax(axis=-1)
        assert answer["tags"] == [task.task.labels[number] for number in numbers]
    else:
        scores = outputs(([2, 7, 3, 9, 11, 3], [0, 0, 0, 1, 1, 1]))[0]
        spans = {("w9", 3, 3), ("w9 w11", 3, 4), ("w11", 4, 4)}
        best = max(spans, key=lambda span: scores[span[1], 0] + scores[span[2], 1])
        assert answer["n_best"][0]["text"] == best[0]


def test_a_head_of_one_output_gives_scores_there_and_back(tmp_path):
    model = read_model(Stored(tmp_path, "bert_sequence").write())
    head = {"kernel": model.head.params["kernel"][:, :1], "bias": model.head.params["bias"][:1]}
    place = fine_tuned(tmp_path, model.settings, Sentences(SOURCE, scores=True), {"trunk": model.params, "head": head})
    export_folder(place, tmp_path / "out", keep_rows=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    assert "its task: Sentences; " in import_folder(tmp_path / "out", tmp_path / "ours")
    assert open_task(tmp_path / "ours").task.scores


def fine_tuned(tmp_path, settings, task, params):
    """A checkpoint of a fine-tuned task."""
    words = ["the cat sat on the mat"] * 20
    tokenizer = build_tokenizer(TokenizerSettings(kind="wordpiece", vocab_size=26), words)
    tokenizer.save(tmp_path / "tokenizer")
    recipe = Finetune(start="bert", model=dataclasses.replace(settings, vocab_size=61), task=task)
    options = {"recipe_json": to_json(recipe), "tokenizer_folder": tmp_path / "tokenizer", "report": print}
    with Checkpointer(tmp_path / "tuned", CheckpointSettings(), **options) as checkpointer:
        checkpointer.save(TrainState(np.int32(3), params, {}), 3, {})
    return tmp_path / "tuned"


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("bert_sequence", Sentences(SOURCE, labels=("bad", "good")), "BertForSequenceClassification"),
        ("bert_pretraining", Sentences(SOURCE, scores=True), "BertForSequenceClassification"),
        ("bert_tokens", Tags(SOURCE, labels=("O", "B-LOC", "I-LOC")), "BertForTokenClassification"),
    ],
)
def test_a_fine_tuned_encoder_goes_out_with_its_head_and_its_classes(tmp_path, name, task, kind):
    model = read_model(Stored(tmp_path, name).write())
    outputs = len(task.labels) or 1
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(16, outputs)), "bias": rng.normal(size=outputs)}
    head = jax.tree.map(lambda x: x.astype(np.float32), head)
    place = fine_tuned(tmp_path, model.settings, task, {"trunk": model.params, "head": head})
    export_folder(place, tmp_path / "out", keep_rows=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [kind]
    back = read_model(tmp_path / "out")
    assert back.head.labels == task.labels and not back.settings.head.transform
    assert jax.tree.all(jax.tree.map(np.array_equal, back.head.params, head))
    np.testing.assert_array_equal(back.params["tokens"], model.params["tokens"])


def test_the_head_of_a_decoder_s_task_is_left_out_in_words(tmp_path):
    settings = ModelSettings(layers=1, width=16, context=12, vocab_size=61)
    shapes = jax.eval_shape(LanguageModel(settings).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    head = {"kernel": np.zeros((16, 2), np.float32), "bias": np.zeros(2, np.float32)}
    task = Sentences(SOURCE, labels=("bad", "good"))
    place = fine_tuned(tmp_path, settings, task, {"trunk": params, "head": head})
    message = export_folder(place, tmp_path / "out", keep_rows=True)
    assert "the task's head is left out: only BERT's folders keep one" in message


def test_a_t5_goes_in_is_applied_to_inputs_and_comes_out_bit_for_bit(tmp_path):
    folder = Stored(tmp_path, "t5_gated")
    import_folder(folder.write(), tmp_path / "ours")
    trained = lmjax.load(tmp_path / "ours")
    inputs, tokens = folder.inputs["input_ids"][:1], folder.inputs["decoder_input_ids"][:1]  # the row without padding
    found = trained.apply(tokens, inputs)
    np.testing.assert_allclose(found, folder.outputs["logits"][:1], rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"apply: inputs = None: expected inputs, rows of token ids"):
        trained.apply(tokens)
    with pytest.raises(
        UserError, match=r"model\.encoder_layers = 2: expected none, as a conversation needs a model of one stack"
    ):
        trained.chat()
    export_folder(tmp_path / "ours", tmp_path / "back")
    back = tensors_of(tmp_path / "back")
    assert back.keys() == folder.tensors.keys()
    assert all(back[name].tobytes() == tensor.tobytes() for name, tensor in folder.tensors.items())
