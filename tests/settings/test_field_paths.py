"""A message about a field names it by its full path, with its stage in a pipeline, however the recipe is made."""

import dataclasses
import json

import pytest

import lmjax
from lmjax.errors import FieldError, UserError, require
from lmjax.fields import checked, unchecked
from lmjax.rl.rollout import Vocabulary
from lmjax.runs.overrides import overridden
from lmjax.settings import (
    PPO,
    SFT,
    AttentionSettings,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    MeasureSettings,
    ModelSettings,
    OptimizerSettings,
    Pipeline,
    Pretrain,
    RewardSettings,
    ScheduleSettings,
    SourceSettings,
    TemplateSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import from_json, load_recipe, to_json
from lmjax.settings.stage import naming
from lmjax.stages.ppo_learner import ppo_learner

ALONE = PPO(
    start="base",
    reward=RewardSettings(source="reward"),
    dialogue=DialogueSettings(
        train=(DialogueSourceSettings("a.jsonl"), DialogueSourceSettings("b.jsonl")),
        validation=(DialogueSourceSettings("c.jsonl"), DialogueSourceSettings("d.jsonl")),
    ),
)
PAIR = Pipeline("two", (Pretrain(name="base"), ALONE))

# The words of a command, where in a stage's JSON the same is, its value, and the message about the stage's field.
WRONG = [
    (
        ["--value-optimizer.learning-rate", "-1"],
        (("value_optimizer", "learning_rate"), -1.0),
        "value_optimizer.learning_rate = -1.0: expected a number above 0; the default is 0.0003",
    ),
    (
        ["--value-optimizer.schedule.final", "2"],
        (("value_optimizer", "schedule", "final"), 2.0),
        "value_optimizer.schedule.final = 2.0: expected a fraction in [0, 1]; the default is 0.1",
    ),
    (
        ["--dialogue.template.user", "User:"],
        (("dialogue", "template", "user"), "User:"),
        "dialogue.template.user = 'User:': expected one {text}, where the text goes; write it once",
    ),
    (
        ["--dialogue.validation.1.weight", "0"],
        (("dialogue", "validation", 1, "weight"), 0.0),
        "dialogue.validation[1].weight = 0.0: expected a number above 0; leave the source out instead",
    ),
    (
        ["--dialogue.train.1.weight", "2"],
        (("dialogue", "train", 1, "weight"), 2.0),
        "dialogue.train[0].weight = None: expected a number above 0, because other sources have one; "
        "give every source a weight, or none: then each counts by its tokens",
    ),
    (
        ["--dialogue.validation.1.split", "validation"],
        (("dialogue", "validation", 1, "split"), "validation"),
        None,  # recipe.json of an older version may have it
    ),
    (
        ["--mesh.fsdp", "-1", "--mesh.data", "-1"],
        (("mesh",), {"data": -1, "fsdp": -1}),
        "mesh = {'replica': 1, 'data': -1, 'fsdp': -1, 'sequence': 1, 'tensor': 1}: expected at most one axis at -1; "
        "give all but one of data, fsdp a size, such as 1",
    ),
    (
        ["--kl.target", "6", "--ppo.baseline", "group", "--ppo.group", "8"],
        None,
        "kl.target = 6.0: expected none for a group baseline; leave it out",
    ),
    (
        ["--ppo.minibatches", "3"],
        (("ppo", "minibatches"), 3),
        "ppo.minibatches x train.microbatches = 3: expected a divisor of dialogue.batch_size x ppo.group = 8; "
        "use ppo.minibatches x train.microbatches = 2 or 4, or dialogue.batch_size x ppo.group = 6 or 9",
    ),
]
WRONG_BY_JSON = [(place, message) for _, place, message in WRONG if place and message]


def message_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("words", "place", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_command_names_the_stage_and_the_path(words, place, message):
    message = message or (
        "dialogue.validation[1].split = 'validation': expected its default, 'train', as kind = 'file' does not use it; "
        "leave it out, or set it back to 'train'"
    )
    assert message_of(lambda: overridden(ALONE, words, "r", "lmjax run")) == message
    named = [f"--ppo.{word[2:]}" if word.startswith("--") else word for word in words]
    assert message_of(lambda: overridden(PAIR, named, "r", "lmjax run")) == f"ppo.{message}"


def test_a_field_of_the_first_stage_is_told_with_its_name_too():
    words = ["--data.train.0.weight", "-1"]
    message = "base.data.train[0].weight = -1.0: expected a number above 0; leave the source out instead"
    assert message_of(lambda: overridden(PAIR, words, "r", "lmjax run")) == message
    assert message_of(lambda: overridden(PAIR, [f"--base.{words[0][2:]}", "-1"], "r", "lmjax run")) == message


def test_a_pipelines_measures_are_set_by_their_name_unless_a_stage_has_it():
    words = [
        "--measures.data",
        "sets",
        "--train.steps",
        "3",
        "--measures.tasks",
        "piqa",
        "copa",
        "--measures.limit",
        "5",
    ]
    made = overridden(PAIR, words, "r", "lmjax run")
    assert made.measures == MeasureSettings("sets", tasks=("piqa", "copa"), limit=5)
    assert made.stages[0].train.steps == 3
    less = overridden(made, ["--measures.suite", ""], "r", "lmjax run")
    assert less.measures == MeasureSettings("sets", suite="", tasks=("piqa", "copa"), limit=5)
    assert overridden(PAIR, ["--measures.limit", "5"], "r", "lmjax run").measures == MeasureSettings(".", limit=5)
    message = "measures.data = '': expected the folder that holds the sets; name it"
    assert message_of(lambda: overridden(PAIR, ["--measures.data", ""], "r", "lmjax run")) == message
    said = message_of(lambda: overridden(made, ["--measures.limit", "0"], "r", "lmjax run"))
    assert said.startswith("measures.limit = 0: expected a number above 0")
    for name, option in (("measures", "measures"), ("measures.a", "measures.a")):
        own = Pipeline("own", (Pretrain(name=name),))
        assert overridden(own, [f"--{option}.train.steps", "3"], "r", "lmjax run").stages[0].train.steps == 3


@pytest.mark.parametrize(("place", "message"), WRONG_BY_JSON, ids=lambda value: str(value)[:40])
def test_a_saved_recipe_names_the_file_and_the_path(place, message):
    value = inner = json.loads(to_json(ALONE))
    (*path, last), wrong = place
    for name in path:
        inner = inner[name]
    inner[last] = wrong
    assert message_of(lambda: from_json(json.dumps(value), "w/ppo/recipe.json")) == f"w/ppo/recipe.json: {message}"


FILE = """from lmjax.settings import *

MIX = (SourceSettings(), SourceSettings(split="validation"))

def value_optimizer():
    return OptimizerSettings(learning_rate={rate})

def recipe():
    ppo = PPO(
        start="base",
        reward=RewardSettings(source="reward"),
        value_optimizer=value_optimizer(),
        mix=MIX,
        ppo=PPOSettings(ptx_coefficient={coefficient}))
    return {made}
"""


@pytest.mark.parametrize(
    ("made", "stage"), [("ppo", ""), ("Pipeline('two', (Pretrain(name='base'), ppo))", "ppo.")], ids=["alone", "second"]
)
def test_a_recipe_file_names_the_line_the_stage_and_the_path(tmp_path, made, stage):
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(rate=-1.0, coefficient=1.0, made=made))
    said = f"{path}:6: {stage}value_optimizer.learning_rate = -1.0: expected a number above 0; the default is 0.0003"
    assert message_of(lambda: load_recipe(str(path))) == said
    path.write_text(FILE.format(rate=1.0, coefficient=0.0, made=made))
    said = f"{path}:9: {stage}ppo.ptx_coefficient = 0.0: expected above 0 with a mix, 0 without; set both, or neither"
    assert message_of(lambda: load_recipe(str(path))) == said
    path.write_text(FILE.format(rate=1.0, coefficient=1.0, made=made))
    assert load_recipe(str(path)).stages[-1].value_optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "X = OptimizerSettings(learning_rate=-1)\n\ndef recipe():\n    return Pretrain(optimizer=X)\n",  # no recipe yet
        "def recipe():\n\n\n    x = OptimizerSettings(learning_rate=-1)\n    return Pretrain()\n",  # in no recipe
        "def recipe():\n\n\n    x = OptimizerSettings(learning_rate=-1)\n    return 1 // x.schedule.warmup\n",
        "def recipe():\n    a = TrainSettings(steps=9)\n\n    x = OptimizerSettings(learning_rate=-1)\n"
        "    return Pretrain(train=TrainSettings(steps=-1))\n",  # another mistake behind it
    ],
)
def test_where_the_path_is_not_known_the_class_and_its_field_are_named(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text("from lmjax.settings import *\n" + body)
    line = path.read_text().splitlines().index(next(x for x in path.read_text().splitlines() if "(learning" in x)) + 1
    said = f"{path}:{line}: OptimizerSettings.learning_rate = -1: expected a number above 0; the default is 0.0003"
    assert message_of(lambda: load_recipe(str(path))) == said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerSettings(learning_rate=-1.0), "OptimizerSettings.learning_rate = -1.0: "),
        (lambda: TemplateSettings(system=""), "TemplateSettings.system = '': "),
        (lambda: DataSettings(train=()), "DataSettings.train = (): "),
        (lambda: SFT(start="a", train=TrainSettings(microbatches=3)), "train.microbatches = 3: "),
        (lambda: Pipeline("p", (Pretrain(name="a"), SFT(start="b"), SFT(name="b"))), "sft.start = 'b': "),
    ],
)
def test_settings_made_alone_name_their_class_and_a_stage_its_field(make, message):
    assert message_of(make).startswith(message)


def test_an_error_while_a_stage_runs_names_the_stage_once():
    def said(error):
        def fail():
            with naming(ALONE):
                raise error

        return message_of(fail)

    with pytest.raises(FieldError) as caught:
        require(False, "dialogue.train", (), "at least one source", "add one")
    assert said(caught.value) == "ppo.dialogue.train = (): expected at least one source; add one"
    assert said(UserError("a.jsonl:3: no prompt")) == "stage ppo: a.jsonl:3: no prompt"
    with pytest.raises(FieldError) as caught:
        TemplateSettings(system="")
    assert said(caught.value).startswith("stage ppo: TemplateSettings.system = '': ")


def test_settings_made_unchecked_are_checked_afterwards_and_alike():
    with unchecked():
        made = SFT(start="", dialogue=DialogueSettings(batch_size=-8), mix_share=3.0)
    assert message_of(lambda: checked(made)) == "dialogue.batch_size = -8: expected a number above 0; the default is 8"
    with unchecked():
        source = DialogueSourceSettings("a.jsonl", kind="embedded")
    assert source.kind == "embedded" and checked(source) == DialogueSourceSettings("a.jsonl")
    assert checked(ALONE) == ALONE
    assert message_of(lambda: SFT(mix_share=3.0)).startswith("mix_share = 3.0: "), "checks are on again"


def test_a_pipeline_names_the_stage_whose_field_is_wrong_when_it_runs(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("a line of text\n" * 20)
    source = (SourceSettings(path=str(text)),)
    stage = Pretrain(
        name="base",
        data=DataSettings(train=source, validation=source, sequence_length=8, batch_size=8),
        model=ModelSettings(layers=1, width=8, attention=AttentionSettings(heads=1, implementation="splash")),
    )
    message = "model.attention.implementation = 'splash': expected another one here: "
    assert message_of(lambda: lmjax.run(stage, tmp_path / "alone", quiet=True)).startswith(message)
    pipeline = Pipeline("one", (stage,))
    assert message_of(lambda: lmjax.run(pipeline, tmp_path / "w", quiet=True)).startswith(f"base.{message}")


@pytest.mark.parametrize("field", ["optimizer", "value_optimizer"])
def test_the_schedule_of_the_value_optimizer_is_named_as_that_when_it_is_built(field):
    of_tokens = OptimizerSettings(schedule=ScheduleSettings(unit="tokens"))
    shape = ModelSettings(layers=1, width=8, vocab_size=16, attention=AttentionSettings(heads=1))
    recipe = dataclasses.replace(ALONE, **{field: of_tokens})
    message = f"{field}.schedule.unit = 'tokens': expected 'steps' where no tokens are counted; use 'steps'"
    assert message_of(lambda: ppo_learner(recipe, shape, shape, Vocabulary(16, 0), "cpu", 9)) == message
