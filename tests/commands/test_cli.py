"""The command line: every command has help and an example, and a user's mistake is one clear line and exit code 2."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lmjax
from lmjax.cli import main, parser
from lmjax.model.presets import PRESETS
from lmjax.settings.recipe_files import from_json, recipe_names, to_json
from lmjax.settings.recipe_functions import recipe_function

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("commands")  # one process trains what they share

COMMANDS = [
    *(
        ["run"],
        ["sweep"],
        ["fit"],
        ["forecast"],
        ["count"],
        ["plan"],
        ["generate"],
        ["chat"],
        ["score"],
        ["predict"],
        ["report"],
        ["recipe"],
        ["evaluate"],
        ["harness"],
    ),
    *(["import-hf"], ["export-hf"], ["tokenizer", "train"], ["data", "prepare"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--help"])
    assert leaving.value.code == 0
    assert f"example:\n  lmjax {' '.join(command)} " in capsys.readouterr().out


def test_help_lists_every_command_and_no_other(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.M)
    assert set(listed) == {command[0] for command in COMMANDS}


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0 and capsys.readouterr().out == f"lmjax {lmjax.__version__}\n"


def test_the_fields_of_a_recipe_are_listed_with_their_values(capsys):
    assert main(["run", "shakespeare_char", "--fields"]) == 0
    said = capsys.readouterr().out
    for text in ("--train.steps INT", "(default: 2000)", "--data.train.0.path STR", "--model.attention.heads INT"):
        assert text in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "quickstart"], "invalid choice: 'trian'"),
        (["run"], "required: RECIPE"),
        (["run", "quickstrat"], "no recipe 'quickstrat'"),
        (["run", "quickstart", "--train.stesp", "5"], "--train.stesp: no such field; did you mean --train.steps INT?"),
        (["run", "quickstart", "--train.steps", "five"], "--train.steps five: expected a whole number"),
        (
            ["run", "quickstart", "--train.steps", "0"],
            "lmjax: pretrain.train.steps = 0: expected a number above 0; the default is",
        ),
        (["run", "quickstart", "--compute.dtype", "bf16"], "did you mean 'bfloat16'?"),
        (
            ["run", "quickstart", "--ppo.log.tensorboard", "maybe"],
            "--ppo.log.tensorboard maybe: expected true or false",
        ),
        (["run", "quickstart", "--data.train.1.path", "x"], "did you mean --data.train.0.path STR"),
        (["run", "quickstart", "--model.width", "100", "--model.attention.heads", "3"], "model.width = 100"),
        (["run", "gpt2:124M"], "did you mean '124m'?"),
        (["generate", "nowhere", "--promt", "x"], "unknown arguments: --promt x; did you mean '--prompt'?"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere: no checkpoint; expected a workdir"),
        (["chat", "nowhere"], "nowhere: no checkpoint"),
        (["report", "nowhere"], "nowhere"),
        (["count", "gpt3_175"], "no preset or recipe 'gpt3_175'; did you mean 'gpt3_175b'?"),
        (["count", "gpt3_175b", "--model.layers", "2"], "a preset is as published"),
        (["count", "gpt3_175b", "--jsn"], "a preset is as published"),
        (["tokenizer"], "required: ACTION"),
        (["tokenizer", "train", "quickstart"], "required: --out"),
    ],
)
def test_a_mistake_is_an_error_of_its_own_and_exit_code_2(fails, arguments, message):
    assert message in fails(*arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_recipes_of_examples_are_there(capsys, command):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    examples = capsys.readouterr().out.partition("example:\n")[2]
    named = re.findall(rf"lmjax {' '.join(command)} (\w[\w.]*(?::\w+)?)(?: |$)", examples, re.M)
    recipes = [spec for spec in named if ":" in spec or spec in recipe_names()]
    assert all(recipe_function(spec).path.is_file() for spec in recipes)
    assert recipes or command not in (["run"], ["plan"], ["recipe"], ["data", "prepare"])


def test_the_help_of_a_recipe_lists_its_arguments_and_fields_in_sentences(capsys):
    assert main(["run", "text", "--help"]) == 0
    said = capsys.readouterr().out
    assert "usage: lmjax run " in said and "--dry-run" in said
    assert "\n  --data [STR ...]  (required)\n      Files, folders or globs of text: plain, JSON lines" in said
    assert "\n  --train.steps INT  (default: 1000)\n" in said
    assert main(["run", "quickstart", "--help", "--sft.epochs", "3"]) == 0
    said = capsys.readouterr().out
    assert "\nstage sft:\n" in said and "--sft.epochs FLOAT|none  (default: 3.0)" in said
    assert "--sft.model.FIELD of ModelSettings  (default: None)" in said


def test_a_broken_recipe_file_is_named_with_its_line(fails, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def recipe():\n    return\n  x\n")
    assert fails("run", str(path)).startswith(f"lmjax: {path}:3: IndentationError: ")
    path.write_text("def recipe():\n    return 3\n")
    assert fails("run", str(path)).startswith(f"lmjax: {path}: recipe() returned int; return one of")


def test_overrides_reach_nested_and_tuple_fields_with_their_types(monkeypatch, capsys):
    seen = {}
    run = lambda recipe, **given: seen.update(recipe=recipe, **given) or _Done()  # noqa: E731
    monkeypatch.setattr(lmjax, "run", run, raising=False)
    arguments = [
        *("--train.steps", "100", "--data.train.0.path", "F", "--data.validation.0.begin", "0.5"),
        *("--optimizer.schedule.kind=wsd", "--optimizer.clip_norm", "None", "--mesh.data", "-1", "--mesh.fsdp", "2"),
        *("--evaluation.prompts", "The cat", "A", "--log.profile", "1", "2", "--tokenizer.user-symbols"),
        *("--model.attention.pattern", "dense", "banded", "--model.attention.band", "8", "--data.no-shuffle"),
        *("--log.tensorboard", "false", "--train.seed", "1e3"),
    ]
    assert main(["run", "shakespeare_char", "--workdir", "w", *arguments, "--force"]) == 7
    recipe = seen["recipe"]
    assert recipe.train.steps == 100 and recipe.data.train[0].path == "F" and recipe.data.train[0].end == 0.9
    assert recipe.data.validation[0].begin == 0.5 and recipe.data.shuffle is False
    assert recipe.log.tensorboard is False and recipe.train.seed == 1000
    assert recipe.optimizer.schedule.kind == "wsd" and recipe.optimizer.clip_norm is None
    assert (recipe.mesh.data, recipe.mesh.fsdp) == (-1, 2)
    assert recipe.evaluation.prompts == ("The cat", "A") and recipe.log.profile == (1, 2)
    assert recipe.tokenizer.user_symbols == () and recipe.model.attention.pattern == ("dense", "banded")
    assert seen["workdir"] == Path("w") and seen["force"] is True


def test_a_field_map_is_overridden_as_pairs_and_kept_by_a_recipes_json(tmp_path, monkeypatch):
    path = tmp_path / "mapped.py"
    path.write_text(MAPPED)
    seen = {}
    monkeypatch.setattr(lmjax, "run", lambda recipe, **_: seen.update(recipe=recipe) or _Done(), raising=False)
    for change, fields, ignore in (
        (["--train.steps", "3"], (("prompt", "inputs"), ("answer", "targets")), ()),
        (["--dialogue.train.0.fields", "prompt", "q", "answer", "a"], (("prompt", "q"), ("answer", "a")), ()),
        (["--dialogue.train.0.ignore", "b", "c"], (("prompt", "inputs"), ("answer", "targets")), ("b", "c")),
    ):
        assert main(["run", str(path), *change]) == 7
        source = seen["recipe"].dialogue.train[0]
        assert (source.fields, source.ignore) == (fields, ignore)
        assert from_json(to_json(seen["recipe"])) == seen["recipe"]


MAPPED = """
from lmjax.settings import SFT
from lmjax.settings import DialogueSettings, DialogueSourceSettings

def recipe():
    source = DialogueSourceSettings(path="a.jsonl", fields={"prompt": "inputs", "answer": "targets"})
    return SFT(start="base", dialogue=DialogueSettings(train=(source,)))
"""


class _Done:
    exit_code = 7


def test_counts_are_printed_for_people_and_for_scripts(capsys):
    assert main(["count", "gpt3_175b", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["model"] == "gpt3_175b" and counted["parameters"] == 174_604_259_328
    assert counted["embedding_parameters"] == (50_257 + 2048) * 12_288
    assert counted["non_embedding_parameters"] == counted["parameters"] - counted["embedding_parameters"]
    assert counted["flops_per_token"] > 6 * counted["non_embedding_parameters"]
    assert main(["count", "gpt3_175b"]) == 0
    assert re.search(r"^parameters +174,604,259,328$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("gpt")])
def test_every_preset_can_be_counted(capsys, name):
    assert main(["count", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 100_000_000


def test_a_recipe_can_be_counted_with_overrides(capsys, spec):
    assert main(["count", spec, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)["parameters"]
    assert main(["count", spec, "--json", "--model.layers", "3"]) == 0
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 2 * 2 * 16
    assert json.loads(capsys.readouterr().out)["parameters"] - one == 2 * layer
    assert main(["count", "gpt2:355m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 354_823_168


def test_a_finished_run_says_so_and_a_changed_one_is_refused(capsys, spec, workdir, fails):
    given = ["--evaluation.every", "3", "--log.no-tensorboard", "--log.every", "1"]
    assert main(["run", spec, "--workdir", str(workdir), "--train.steps", "3", *given]) == 0
    assert capsys.readouterr().out.startswith(f"{workdir} is done.\nfinal: loss ")
    error = fails("run", spec, "--workdir", str(workdir), "--train.steps", "4", *given)
    assert f"lmjax: {workdir}: its recipe differs from this one in\n  train.steps: 3 -> 4\n" in error


def _arguments(command, name=""):
    for argument in command._actions:
        if isinstance(argument, argparse._SubParsersAction):
            for word, below in argument.choices.items():
                yield from _arguments(below, f"{name} {word}")
        else:
            yield f"{name} {argument.option_strings or argument.dest}", argument.help


def test_every_argument_says_what_it_is():
    said = dict(_arguments(parser()))
    assert len(said) > 100 and [name for name, text in said.items() if not text] == []


def test_the_report_is_written_again(capsys, workdir):
    (workdir / "report.html").unlink()
    assert main(["report", str(workdir)]) == 0
    assert capsys.readouterr().out == f"{workdir / 'report.html'}\n"
    assert (workdir / "report.html").stat().st_size > 1000


def _process(*arguments: str, folder: Path, **variables: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.Popen(
        [sys.executable, "-m", "lmjax.cli", *arguments],
        env=environment | variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_told_to_stop_saves_and_says_so_without_any_noise(tmp_path, spec):
    """A whole process as users start it: no variable for JAX is set, and libtpu may be installed without a TPU."""
    cache = tmp_path / "compiled"
    given = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    log = ("--log.every", "1", "--log.profile", "0", "1")
    child = _process("run", spec, "--train.steps", "1000000", *log, folder=tmp_path, **given)
    record = tmp_path / "runs" / "small" / "metrics.jsonl"
    patience = time.monotonic() + 600
    while not (record.exists() and record.read_bytes().count(b"\n") >= 3):
        assert child.poll() is None and time.monotonic() < patience, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=600)
    assert child.returncode == 143
    assert err == "", "no noise from libtpu, Orbax or XLA"
    assert re.search(r"stopped and saved at step \d+ of 1000000; the same command resumes\n$", out)
    assert "1 x cpu" in out
    assert any(cache.glob("jit_step*")), "compiled programs are kept where the user says"
    assert len(list((tmp_path / "runs/small/profile").rglob("*.xplane.pb"))) == 1
    steps = [path.name for path in (tmp_path / "runs/small/checkpoints/pretrain").iterdir()]
    assert steps == re.findall(r"saved at step (\d+)", out)


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path):
    child = _process("count", "gpt1", folder=tmp_path)
    child.stdout.close()
    assert child.wait(timeout=600) == 128 + signal.SIGPIPE
    assert child.stderr.read() == ""


@pytest.mark.parametrize(("where", "code", "said"), [(">&-", 0, ""), (">/dev/full", 2, "the disk is full")])
def test_output_that_goes_nowhere_gives_no_traceback(where, code, said):
    command = f"{sys.executable} -m lmjax.cli count gpt1 {where}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr


def test_no_error_repeats_a_word_of_thousands_of_digits(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["generate", "runs/x", "--max-tokens", "9" * 5_000])
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and len(said) < 1_500 and "--max-tokens: invalid int value: '999" in said
