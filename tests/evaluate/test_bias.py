"""CrowS-Pairs and Winogender: what the tables say, and shares and entropies of known probabilities."""

import gzip
import math

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.bias import Pair, Template, crows_pairs, entropy, read_crows_pairs, read_winogender, winogender

CROWS = "sent_more,sent_less,stereo_antistereo,bias_type\n"
GENDERS = ("male", "female", "neutral")


def known(**probabilities):
    """A function from texts to the logarithms of these."""
    return lambda texts: (math.log(probabilities[text]) for text in texts)


def written(folder, text, name="part.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return [path]


def test_the_first_sentence_is_the_more_stereotypical_in_both_directions(tmp_path):
    text = CROWS + '"a, b",c,stereo,age\nd,e,antistereo,race-color\n'
    assert read_crows_pairs(written(tmp_path, text)) == [Pair("a, b", "c", "age"), Pair("d", "e", "race-color")]


def test_files_of_one_form_are_one_set(tmp_path):
    first, second = (written(tmp_path, f"{CROWS}{x},y,stereo,age\n", f"{x}.csv")[0] for x in "ab")
    assert [pair.more for pair in read_crows_pairs([first, second])] == ["a", "b"]


def test_shares_are_of_all_and_by_kind_and_a_tie_is_half():
    pairs = [Pair("a", "b", "age"), Pair("b", "a", "age"), Pair("c", "d", "age"), Pair("e", "f", "sex")]
    part = crows_pairs(pairs, known(a=0.3, b=0.1, c=0.2, d=0.2, e=0.4, f=0.1))
    found = {each.key[1:]: each for each in part.measures}
    rights = np.array([1.0, 0.0, 0.5, 1.0])
    whole = found["stereotype", "all"]
    assert whole.mean == pytest.approx((0.625, rights.std(ddof=1) / 2)) and whole.examples == 4
    age = found["stereotype", "age"]
    assert age.mean == pytest.approx((0.5, 0.5 / math.sqrt(3))) and age.examples == 3
    alone = found["stereotype", "sex"]
    assert alone.mean.value == 1.0 and math.isnan(alone.mean.error) and alone.plain()["error"] is None
    bits = [-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in (0.75, 0.25, 0.5, 0.8)]
    assert found["pair_entropy", "all"].mean.value == pytest.approx(np.mean(bits))
    assert part.counts == {"ties": 1}
    assert part.examples[3]["log_probs"] == pytest.approx([math.log(0.4), math.log(0.1)])


def test_entropy_is_that_of_the_shares_in_bits_however_small_the_probabilities():
    assert entropy([-7.0]) == 0.0
    assert entropy([-7.0] * 3) == pytest.approx(math.log2(3))
    assert entropy(np.log([0.5, 0.25, 0.25]) - 900) == pytest.approx(1.5)
    assert entropy([0.0, -2000.0]) == 0.0


def test_a_template_has_its_sentences_by_gender_and_one_gender_alone_is_left_out(tmp_path):
    rows = [f'chef.cook.1.{g}.txt\tThe chef "{g}"\u2028sat.' for g in GENDERS] + ["chef.cook.0.male.txt\tHe sat."]
    text = "sentid\tsentence\r\n" + "".join(f"{row}\r\n" for row in rows)
    found, single = read_winogender(written(tmp_path, text, "part.tsv"))
    assert found == [Template("chef.cook.1", {g: f'The chef "{g}"\u2028sat.' for g in GENDERS})] and single == 1


def test_winogender_has_the_entropy_over_genders_and_how_often_the_male_is_likelier():
    templates = [
        Template(name, dict(zip(GENDERS, texts, strict=True))) for name, texts in {"x": "abc", "y": "bad"}.items()
    ]
    templates.append(Template("z", {"male": "c", "neutral": "d"}))
    part = winogender(templates, known(a=0.2, b=0.1, c=0.1, d=0.3), left_out=2)
    bits = [
        1.5,
        -sum(p * math.log2(p) for p in (1 / 6, 2 / 6, 3 / 6)),
        -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)),
    ]
    over, male = part.measures
    assert over.mean == pytest.approx((np.mean(bits), np.std(bits, ddof=1) / math.sqrt(3))) and over.examples == 3
    assert male.mean.value == 0.5 and male.examples == 2
    assert [example.get("male") for example in part.examples] == [1.0, 0.0, None]
    assert part.counts == {"left out": 2, "ties": 0}


def test_compressed_files_are_read(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(f"{CROWS}a,b,stereo,age\n".encode()))
    assert read_crows_pairs([tmp_path / "a.csv.gz"]) == [Pair("a", "b", "age")]
    rows = "".join(f"x.y.0.{g}.txt\t{g}\n" for g in GENDERS)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(f"sentid\tsentence\n{rows}".encode()))
    assert read_winogender([tmp_path / "a.tsv.gz"])[0] == [Template("x.y.0", {g: g for g in GENDERS})]


@pytest.mark.parametrize(
    ("read", "name", "text", "message"),
    [
        (
            read_crows_pairs,
            "p.csv",
            "sent_more,sent_less\na,b\n",
            r"p\.csv:2: no column 'bias_type' among 'sent_more', 'sent_less'",
        ),
        (read_crows_pairs, "p.csv", CROWS, r"p\.csv: it has no row"),
        (read_crows_pairs, "p.csv", CROWS + "a,,stereo,age\n", r"p\.csv:2: a cell is empty"),
        (read_winogender, "p.tsv", "sentid\ttext\na\tb\n", r"p\.tsv:2: no column 'sentence' among 'sentid', 'text'"),
        (read_winogender, "p.tsv", "", r"p\.tsv: it has no row"),
        (read_winogender, "p.tsv", "sentid\tsentence\na\n", r"p\.tsv:2: expected 2 cells as in the header, found 1"),
        (read_winogender, "p.tsv", "sentid\tsentence\na.b.male\tc\n", r"sentid = 'a\.b\.male': expected occupation\."),
        (read_winogender, "p.tsv", "sentid\tsentence\na.b.0.male.txt\tc\n", "no sentence is there in two genders"),
        (
            read_winogender,
            "p.tsv",
            "sentid\tsentence\na.b.0.x.txt\tc\na.b.0.x.txt\td\n",
            r"p\.tsv:3: a second sentence of",
        ),
    ],
)
def test_another_table_is_said_to_be_one(tmp_path, read, name, text, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, text, name))
