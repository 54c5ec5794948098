"""The comments of fields are their texts in `--help`: each its own, whole, as a sentence."""

from dataclasses import dataclass
from typing import Literal

from lmjax.settings import EvaluationSettings, SourceSettings, TrainSettings
from lmjax.settings.field_texts import field_texts


@dataclass(frozen=True)
class Part:
    """A part."""

    steps: int = 1  # how many
    plain: int = 2
    # above the field: two lines,
    # of which the second ends
    above: str = "#1"  # and behind it
    policy: Literal[
        "a",
        # between
        "b",
    ] = "a"
    one: float = 0.0  # the beginning of both,
    other: float = 1.0  # and the end
    kept_as_it_is: int = 0  # `code` stays; so does None.


@dataclass(frozen=True)
class Derived(Part):
    plain: int = 3  # the derived class's own


def test_each_field_has_its_own_text_and_no_other():
    assert field_texts(Part) == {
        "steps": "How many.",
        "above": "Above the field: two lines, of which the second ends and behind it.",
        "one": "The beginning of both, and the end.",
        "other": "The beginning of both, and the end.",
        "kept_as_it_is": "`code` stays; so does None.",
    }
    assert field_texts(Derived)["plain"] == "The derived class's own."
    assert field_texts(Derived)["steps"] == "How many."


def test_the_texts_of_settings_are_those_of_their_comments():
    assert field_texts(EvaluationSettings)["every"] == "Steps; it is also done at the end."
    assert "seed" not in field_texts(TrainSettings)
    assert field_texts(TrainSettings)["microbatches"].startswith("Gradient accumulation: the batch is cut in")
    assert field_texts(SourceSettings)["begin"] == field_texts(SourceSettings)["end"]


def test_parameters_of_a_function_have_texts_and_a_class_of_no_file_has_none():
    def recipe(
        size: str = "s",
        *,
        data: tuple[str, ...],  # files of text
        field: str = "text",
    ) -> None: ...

    assert field_texts(recipe) == {"data": "Files of text."}
    made = {}
    exec("class Made:\n    x: int = 1  # text", made)
    assert field_texts(made["Made"]) == {}
