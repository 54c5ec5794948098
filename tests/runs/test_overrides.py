"""Options set fields at any depth, and what sets none is answered with the option that would."""

import pytest

from lmjax.errors import UserError
from lmjax.runs.overrides import overridden
from lmjax.settings import SFT, Finetune, LabelledSettings, ModelSettings, Pipeline, Pretrain
from lmjax.tasks.sentences import Sentences

ALONE = Pretrain(name="alone")
PAIR = Pipeline("pair", (Pretrain(name="base"), SFT(start="base")))
TASK = Finetune(start="base", task=Sentences(train=(LabelledSettings("a.csv"),), long="tail"))


def made(recipe, *words):
    return overridden(recipe, words, "r", "lmjax run")


def test_numbers_booleans_and_settings_that_are_not_set_yet_are_set():
    recipe = made(ALONE, "--train.steps", "2e3", "--data.shuffle", "false", "--optimizer.clip-norm", "none")
    assert (recipe.train.steps, recipe.data.shuffle, recipe.optimizer.clip_norm) == (2000, False, None)
    assert made(ALONE, "--data.no-shuffle", "--data.shuffle").data.shuffle is True, "the last of them counts"
    pair = made(PAIR, "--sft.model.layers", "3", "--sft.model.vocab_size", "300")
    assert pair.stages[1].model == ModelSettings(layers=3, vocab_size=300)
    assert made(pair, "--sft.model", "none").stages[1].model is None


def test_the_fields_of_a_task_are_set():
    task = made(TASK, "--task.long", "head_tail", "--task.train.0.label", "stars").task
    assert (task.long, task.train[0].label) == ("head_tail", "stars")


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        (
            ALONE,
            "--steps 5",
            r"^--steps: .*; did you mean --train.steps INT\? \(lmjax run r --help lists all\)$",
        ),
        (ALONE, "--train.stesp 5", r"--train.stesp: no such field; did you mean --train.steps INT\?"),
        (ALONE, "--trian.steps 5", r"--trian.steps: no such field; did you mean --train.steps INT\?"),
        (ALONE, "--train.steps.more 5", r"--train.steps.more: no such field"),
        (ALONE, "--zzz 5", r"--zzz: no such field; no other is like it \("),
        (ALONE, "--train 5", r"--train: it holds fields of its own: .* such as --train.steps; set that one"),
        (ALONE, "--data.train x", r"--data.train: it holds fields of its own"),
        (ALONE, "--data.train.0 x", r"--data.train.0: no such field"),
        (ALONE, "--data.train.7.path x", r"did you mean --data.train.0.path STR or --data.validation.0.path STR"),
        (ALONE, "--data.no-shuffle true", r"--data.no-shuffle = 'true': expected no value behind it"),
        (ALONE, "--train.no-steps", r"--train.no-steps: no such field; did you mean --train.steps INT"),
        (ALONE, "stray", r"^'stray': expected an option"),
        (ALONE, "--train.steps 0", r"^train.steps = 0: expected a number above 0"),
        (PAIR, "--sft.modle.layers 3", r"--sft.modle.layers: no such field; did you mean --sft.model.layers INT"),
        (PAIR, "--sft.train.stesp 3", r"--sft.train.stesp: no such field; did you mean --sft.train.steps INT"),
        (PAIR, "--sftt.train.steps 3", r"--sftt.train.steps: neither a stage nor .*; did you mean 'sft'\?"),
        (PAIR, "--measures.limt 3", r"--measures.limt: no such field; did you mean --measures.limit INT"),
        (PAIR, "--sft.train.steps 0", r"^sft.train.steps = 0: expected a number above 0"),
    ],
)
def test_what_sets_nothing_is_answered_with_the_option_that_would(recipe, words, message):
    with pytest.raises(UserError, match=message) as caught:
        made(recipe, *words.split())
    assert len(str(caught.value)) < 300
