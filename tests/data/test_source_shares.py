"""What sources are called, how much each counts in a mixture, and what an evaluation with a limit reads of each."""

import dataclasses

import numpy as np
import pytest

from lmjax.data.loader import Loader, dealt, validation_batches
from lmjax.data.mixture import Mixture
from lmjax.data.source_shares import lines_of, mixture_weights, source_names
from lmjax.errors import UserError
from lmjax.settings import (
    PPO,
    SFT,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    Pretrain,
    RewardSettings,
    SourceSettings,
)
from lmjax.settings.recipe_files import difference, from_json, to_json


@pytest.fixture
def one_long_one_short(make_shards):
    """Sources of 641 and 161 tokens: 40 and 10 rows of 16, told apart by their letters."""
    return [make_shards([letter * count]) for letter, count in (("a", 640), ("b", 160))]


def letters_of(loader, steps):
    tokens = np.concatenate([loader.batch_at(step)["tokens"][:, 0] for step in range(steps)])
    return {letter: int((tokens == ord(letter)).sum()) for letter in "ab"}


def test_sources_without_weights_count_by_their_tokens_and_end_an_epoch_together(one_long_one_short):
    loader = Loader(one_long_one_short, [None, None], DataSettings(sequence_length=16, batch_size=5))
    assert loader.rows_per_epoch == [40, 10]
    assert letters_of(loader, 10) == {"a": 40, "b": 10}
    assert loader.epochs_at(10) == [1.0, 1.0]


def test_given_weights_hold_as_in_recipes_that_name_them_all(one_long_one_short):
    """A recipe of an older run has the weight 1.0 everywhere, and the same batches as when it was written."""
    old = from_json(to_json(Pretrain(data=DataSettings(train=(SourceSettings(weight=1.0),) * 2))))
    weights = [source.weight for source in old.data.train]
    loader = Loader(one_long_one_short, weights, DataSettings(sequence_length=16, batch_size=5))
    assert letters_of(loader, 10) == {"a": 25, "b": 25}
    equal = Mixture([1.0, 1.0])
    assert [a.tolist() for a in equal.assign(np.arange(6))] == [[0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]]


def test_a_source_too_small_to_be_mixed_by_its_tokens_is_named():
    with pytest.raises(UserError, match=r"data.train\[1\].weight = 3.0: expected at least 1/65536 .*no source has a w"):
        Mixture(mixture_weights([None, None], [10_000_000, 3]))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda sources: DataSettings(train=sources), r"DataSettings\.train\[1\]\.weight"),
        (lambda sources: SFT(start="base", mix=sources), r"mix\[1\]\.weight"),
        (lambda sources: PPO(start="base", reward=RewardSettings(source="r"), mix=sources), r"mix\[1\]\.weight"),
    ],
)
def test_a_mixture_in_which_some_sources_have_weights_is_refused(make, field):
    with pytest.raises(UserError, match=rf"^{field} = None: expected .* other sources have one; give every source a"):
        make((SourceSettings(weight=2.0), SourceSettings(), SourceSettings(weight=1.0)))
    if "DataSettings" in field:
        make((SourceSettings(), SourceSettings()))
    assert DataSettings(validation=(SourceSettings(weight=2.0), SourceSettings())), "which are not mixed"


def test_dialogue_in_which_some_sources_have_weights_is_refused():
    sources = (DialogueSourceSettings(path="a"), DialogueSourceSettings(path="b", weight=1.0))
    with pytest.raises(UserError, match=r"^DialogueSettings\.train\[0\]\.weight = None: expected"):
        DialogueSettings(train=sources)


def test_a_weight_that_mixes_nothing_is_no_difference_and_one_that_does_is():
    new = Pretrain(data=DataSettings(train=(SourceSettings(),), validation=(SourceSettings(), SourceSettings())))
    old = dataclasses.replace(
        new, data=DataSettings(train=(SourceSettings(weight=1.0),), validation=(SourceSettings(weight=1.0),) * 2)
    )
    assert difference(old, new) == []
    mixed = [Pretrain(data=DataSettings(train=(SourceSettings(weight=weight),) * 2)) for weight in (1.0, None)]
    assert difference(*mixed) == ["data.train.0.weight: 1.0 -> None", "data.train.1.weight: 1.0 -> None"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["data/en.txt", "data/zh/"], ["en.txt", "zh"]),
        (["en/*.jsonl", "zh/*.jsonl"], ["en/*.jsonl", "zh/*.jsonl"]),
        (["a/b.txt", "a/b.txt"], ["a/b.txt #0", "a/b.txt #1"]),
    ],
)
def test_sources_are_called_by_what_tells_them_apart(paths, names):
    assert source_names([SourceSettings(kind="text", path=path) for path in paths]) == names


def test_embedded_sources_are_called_by_their_split():
    sources = [SourceSettings(), SourceSettings(split="validation")]
    assert source_names(sources) == ["embedded train", "embedded validation"]
    assert source_names([DialogueSourceSettings(kind="embedded")]) == ["embedded train"]


def test_tokens_planned_tokens_and_epochs_are_told_with_a_warning_above_four():
    sources = [SourceSettings(kind="text", path=path) for path in ("a.txt", "b.txt")]
    assert lines_of(sources, [1000, 200], [4.0, 4.5], "tokens") == [
        "a.txt: 1,000 tokens, 4,000 planned, 4.00 epochs",
        "b.txt: 200 tokens, 900 planned, 4.50 epochs",
        "warning: b.txt is read 4.5 times; text that is repeated more than 4 times adds little (Muennighoff et al. "
        "2023): give more text, fewer steps or another weight",
    ]
    assert len(lines_of(sources, [1000, 200], [16.0, 16.0], "rows")) == 2, "epochs over demonstrations are chosen"


@pytest.mark.parametrize(
    ("batches", "most", "given"),
    [
        ([5, 9], None, [5, 9]),
        ([5, 9], 2, [1, 1]),
        ([5, 9], 6, [3, 3]),
        ([5, 9], 7, [4, 3]),
        ([2, 9, 9], 9, [2, 4, 3]),
        ([2, 3], 99, [2, 3]),
        ([5, 5, 5], 2, [1, 1, 1]),  # every source is heard
        ([5], 3, [3]),
        ([], 3, []),
    ],
)
def test_batches_are_dealt_evenly_to_the_sources(batches, most, given):
    assert dealt(batches, most) == given


def test_a_limited_evaluation_begins_every_source_and_no_batch_mixes_two(one_long_one_short):
    settings = DataSettings(sequence_length=16, batch_size=4)
    batches = validation_batches(one_long_one_short, settings, 4)
    assert len(batches) == 10 + 3 and [len(own) for own in batches.dealt(4)] == [2, 2]
    for letter, own in zip("ab", batches.dealt(None), strict=True):
        for number in own:
            batch = batches.batch_at(number)
            assert set(batch["tokens"][batch["segments"] > 0].tolist()) == {ord(letter)}
    assert [own[0] for own in batches.dealt(2)] == [0, 10]
