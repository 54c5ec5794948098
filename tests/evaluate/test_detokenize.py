"""Text of word-level corpora without its marks, held against lines of WikiText-2 and of the Penn Treebank."""

# ruff: noqa: RUF001  (the dashes and quotes of WikiText are meant)

import pytest

from lmjax.evaluate.detokenize import CorpusTokens, corpus_tokens, detokenized, ptb_line, wikitext_line

# Beginnings of lines of WikiText-2's valid.txt, by line number, and what Wikipedia's authors wrote.
LINES = {
    2: (" = Homarus gammarus = ", "= Homarus gammarus ="),
    6: (" = = Description = = ", "== Description =="),
    8: (
        " Homarus gammarus is a large <unk> , with a body length up to 60 centimetres ( 24 in ) and weighing up to"
        " 5 – 6 kilograms ( 11 – 13 lb ) , although the lobsters caught in lobster pots are usually"
        " 23 – 38 cm ( 9 – 15 in ) long and weigh 0 @.@ 7 – 2 @.@ 2 kg",
        "Homarus gammarus is a large <unk>, with a body length up to 60 centimetres (24 in) and weighing up to 5–6"
        " kilograms (11–13 lb), although the lobsters caught in lobster pots are usually 23–38 cm (9–15"
        " in) long and weigh 0.7–2.2 kg",
    ),
    9: (
        ' The first pair of <unk> is armed with a large , asymmetrical pair of claws . The larger one is the " <unk> "'
        ' , and has rounded <unk> used for crushing prey ; the other is the " cutter " , which',
        'The first pair of <unk> is armed with a large, asymmetrical pair of claws. The larger one is the "<unk>", and'
        ' has rounded <unk> used for crushing prey; the other is the "cutter", which',
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("number", LINES)
def test_a_line_of_wikitext_is_written_as_its_authors_wrote_it(shared_data, number):
    given, expected = LINES[number]
    line = (shared_data("wikitext2") / "valid.txt").read_text(encoding="utf-8").split("\n")[number - 1]
    assert line.startswith(given)
    assert wikitext_line(given) == expected and wikitext_line(line).startswith(expected)


@pytest.mark.data
def test_wikitext_2_has_as_many_tokens_as_the_literature_counts(shared_data):
    text = (shared_data("wikitext2") / "valid.txt").read_text(encoding="utf-8")
    assert corpus_tokens(text) == CorpusTokens(213_886, 3_760)
    assert sum(corpus_tokens(text)) == 217_646  # with an <eos> for each line, empty ones too


@pytest.mark.data
def test_the_tokens_of_wikitext_2_follow_from_what_is_read(shared_data):
    text = (shared_data("wikitext2") / "valid.txt").read_text(encoding="utf-8")
    lines, read = text.split("\n"), detokenized(text, "wikitext").split("\n")
    assert len(read) == len(lines)
    tokens = {}
    for line, plain in zip(lines, read, strict=True):
        assert tokens.setdefault(plain, line.split()) == line.split()  # no two lines become one
        unglued = plain.replace(" ", "")
        for mark, written in (("@-@", "-"), ("@,@", ","), ("@.@", "."), (" ", "")):
            line = line.replace(mark, written)
        assert unglued == line  # nothing but blanks and marks is lost
    whole = " ".join(read)
    assert not any(mark in whole for mark in ("@-@", "@,@", "@.@", " , ", " . ", " )", "( ", " %", " ;"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("from the insurgents ' favour to ' joint ' warfare", "from the insurgents' favour to 'joint' warfare"),
        ("in the 1960s and ' 70s , rock ' n ' roll", "in the 1960s and '70s, rock 'n' roll"),
        ("K 'awiil 's house , I don 't", "K'awiil's house, I don't"),
        ('" So when it \'s " , he said : " Go "', '"So when it\'s", he said: "Go"'),
        ('a line of verse ! "', 'a line of verse!"'),
        ("at 8 : 05 : US $ 1 @,@ 000 @.@ 5 , 79 % [ 3 ]", "at 8:05: US $1,000.5, 79% [3]"),
        ("57 ° 53 ′ N on M \u2011 28 / US 131", "57°53′ N on M\u201128 / US 131"),
        (
            "heads — especially the jury ’ s “ own ”",
            "heads—especially the jury’s “own”",
        ),
        ("Indonesia – Malaysia , red @-@ tipped", "Indonesia – Malaysia, red-tipped"),
        ('= = = The " Green Leader " raid = = =', '=== The "Green Leader" raid ==='),
        ("", ""),
    ],
)
def test_marks_of_wikitext_are_undone(given, expected):
    assert wikitext_line(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" no it was n't black monday ", "no it wasn't black monday"),
        (" workers ' pay rose N N to $ N million at&t 's", "workers' pay rose 1 1 to $1 million at&t's"),
        (r" a <unk> # N billion N\/N % stake in N-year bonds ", "a <unk> #1 billion 1/1% stake in 1-year bonds"),
        (" mr. <unk> 'll say they 've <unk> and\\/or he 'd ", "mr. <unk>'ll say they've <unk> and/or he'd"),
    ],
)
def test_marks_of_the_penn_treebank_are_undone(given, expected):
    assert ptb_line(given) == expected


def test_a_text_keeps_its_lines():
    assert detokenized(" = A = \n \n b . \n", "wikitext") == "= A =\n\nb.\n"
    assert corpus_tokens(" = A = \n \n b . \n") == (5, 3) and corpus_tokens("a b") == (2, 0)
