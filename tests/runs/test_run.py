"""Running a recipe in a workdir: to its end, through signals and a full disk, and once more when it is done."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.errors import UserError
from lmjax.parallel import start_jax as platform
from lmjax.runs import run as module
from lmjax.runs.run import run
from lmjax.settings import CheckpointSettings, EvaluationSettings, OptimizerSettings, TrainSettings
from lmjax.stages import pretrain as stage
from lmjax.stages import train_stage
from lmjax.training.record import read_metrics
from tests.running import assert_same_bits, interrupted, lines_of
from tests.tiny import write_recipe

STEPS = 10  # of the recipe `tiny`


pytestmark = pytest.mark.usefixtures("two_devices")


def _final(workdir: Path):
    return lmjax.load(workdir).params


def test_a_run_ends_with_its_loss_a_sample_and_the_report(tmp_path, tiny, capsys, whole):
    evaluation = EvaluationSettings(every=5, prompts=("the", "a "), sample_tokens=3)
    result = run(tiny(evaluation=evaluation), tmp_path / "run")
    assert (result.workdir, result.signal, result.exit_code) == (tmp_path / "run", None, 0)
    assert_same_bits(_final(tmp_path / "run"), whole[2].params)
    lines = read_metrics(tmp_path / "run")
    last = {name: value for line in lines for name, value in line.items()}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == result.summary
    for name in ("loss", "validation_loss", "validation_perplexity", "bits_per_byte", "prompt", "sample"):
        assert summary[name] == last[name], name
    assert summary["steps"] == STEPS
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(whole[2].params))
    said = capsys.readouterr().out
    assert f"final: loss {last['loss']:.4f}, validation loss {last['validation_loss']:.4f}, " in said
    assert "sample: a " in said
    assert said.rstrip().endswith(f"report: {tmp_path / 'run' / 'report.html'}")
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["lmjax"] == lmjax.__version__


def test_a_recipe_may_be_named_and_other_values_of_its_fields_be_given(tmp_path, tiny, monkeypatch, no_charts):
    write_recipe(tmp_path / "mine.py", tiny())
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("mine.py", Path("mine.py"))):
        result = lmjax.run(name, f"run-{number}", overrides={"train.steps": 2, "log.every": 1}, quiet=True)
        assert result.summary["steps"] == 2 and [line["step"] for line in lines_of(tmp_path / f"run-{number}")] == [
            1,
            2,
        ]


def test_a_finished_run_says_so_and_trains_nothing(tmp_path, tiny, capsys, monkeypatch):
    first = run(tiny(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    said = capsys.readouterr().out.splitlines()[-2:]
    monkeypatch.setattr(module, "resolve", None)
    again = run(tiny(), tmp_path)
    assert again == first and again.exit_code == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path} is done.", *said]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_call_goes_on_to_the_same_bits(tmp_path, tiny, capsys, whole, number, code):
    with interrupted(5, number):
        stopped = run(tiny(), tmp_path)
    assert (stopped.exit_code, stopped.summary) == (code, {})
    assert find_checkpoint(tmp_path).step == 6
    assert capsys.readouterr().out.endswith("stopped and saved at step 6 of 10; the same command resumes\n")
    assert not (tmp_path / "summary.json").exists()
    assert run(tiny(), tmp_path).exit_code == 0
    assert_same_bits(_final(tmp_path), whole[2].params)
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, STEPS + 1))


def test_a_second_signal_is_obeyed_at_once_and_costs_only_the_steps_since_the_last_checkpoint(tmp_path, tiny, whole):
    with interrupted(6, signal.SIGINT, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path)
    assert find_checkpoint(tmp_path).step == 4
    assert run(tiny(), tmp_path).exit_code == 0
    assert_same_bits(_final(tmp_path), whole[2].params)


def test_a_signal_while_data_are_prepared_stops_at_once(tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.setattr(stage, "prepare", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert run(tiny(), tmp_path).exit_code == 143
    workdir, devices, stopped = capsys.readouterr().out.splitlines()
    assert workdir == f"workdir: {tmp_path}" and devices.startswith("devices: ")
    assert stopped == "stopped; the same command resumes"
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_before_the_first_step_saves_nothing(tmp_path, tiny, capsys, monkeypatch):
    made = train_stage.init_state

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return made(*arguments)

    monkeypatch.setattr(train_stage, "init_state", interrupted)
    assert run(tiny(), tmp_path).exit_code == 143
    assert capsys.readouterr().out.endswith("stopped at step 0 of 10; the same command resumes\n")
    assert list((tmp_path / "checkpoints" / "pretrain").iterdir()) == []


def test_a_damaged_newest_checkpoint_is_reported_and_the_run_goes_on_from_the_one_before_it(
    tmp_path, tiny, capsys, whole
):
    recipe = tiny(checkpoint=CheckpointSettings(every=1))
    with interrupted(6, signal.SIGTERM):
        run(recipe, tmp_path)
    checkpoints = tmp_path / "checkpoints" / "pretrain"
    *_, before, newest = sorted(int(path.name) for path in checkpoints.iterdir())
    assert newest == before + 1 < STEPS
    files = (checkpoints / str(newest) / "state").rglob("*")
    victim = max(files, key=lambda path: path.is_file() * path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:100])
    capsys.readouterr()
    assert run(recipe, tmp_path).exit_code == 0
    assert f"{checkpoints / str(newest)} is damaged: " in (said := capsys.readouterr().out)
    assert "; trying the one before it\n" in said
    assert_same_bits(_final(tmp_path), whole[2].params)
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, STEPS + 1))


def test_a_changed_recipe_is_refused_unless_forced(tmp_path, tiny, capsys):
    run(tiny(), tmp_path, quiet=True)
    longer = tiny(train=TrainSettings(steps=12), optimizer=OptimizerSettings(learning_rate=1e-2, b1=0.8))
    with pytest.raises(
        UserError, match=r"differs from this one in\n  optimizer.b1: 0.9 -> 0.8\n  train.steps: 10 -> 12"
    ):
        run(longer, tmp_path)
    assert capsys.readouterr().out == "", "quiet says nothing, and neither does an error"
    assert run(longer, tmp_path, force=True).summary["steps"] == 12
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 13))
    assert run(longer, tmp_path).exit_code == 0


def test_a_run_in_use_is_refused(tmp_path, tiny):
    with module.place.locked(tmp_path), pytest.raises(UserError, match="another run is using it"):
        run(tiny(), tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A function from a size to a folder on a file system of that size; calling it again resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" if not os.path.ismount(folder) else f"remount,size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the error holds memory maps of the shards


def test_a_full_disk_stops_with_a_clear_error_and_freeing_space_goes_on(small_disk, tiny, whole, capfd, caplog):
    recipe = tiny(checkpoint=CheckpointSettings(every=1, keep_last=100))
    workdir = small_disk("1m") / "run"
    with pytest.raises(
        UserError, match=rf"{workdir}.*: the disk is full; free some space and run the same command again"
    ):
        run(recipe, workdir)
    kept = find_checkpoint(workdir).step
    assert 1 <= kept < STEPS, "the disk filled up in the middle of the run"
    small_disk("50m")
    assert run(recipe, workdir).exit_code == 0
    assert_same_bits(_final(workdir), whole[2].params)
    assert [line["step"] for line in lines_of(workdir)] == list(range(1, STEPS + 1))
    assert "Traceback" not in capfd.readouterr().err
    assert not [entry for entry in caplog.records if entry.exc_info], "no thread logs it beside the error"


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """JAX as it is before anybody has chosen a folder for compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    jax.jit(lambda x: x + 1)(jnp.zeros(3))  # a program before the folder is chosen
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_compiled_programs_are_kept_by_default(no_cache, tmp_path):
    platform.keep_compiled_programs()
    jax.jit(lambda x: x * 3 - 1)(jnp.zeros(5))
    assert len(list((tmp_path / "cache" / "lmjax" / "compiled").glob("jit__lambda*"))) == 1


def test_a_folder_that_the_user_chose_for_compiled_programs_stays(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    platform.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("platforms", "device", "variables", "skipped"),
    [
        (None, None, {}, True),
        ("cpu", None, {}, False),
        ("tpu,cpu", None, {}, False),  # what JAX says of itself once it has seen a TPU
        (None, "accel0", {}, False),
        (None, "vfio/0", {}, False),
        (None, "vfio/vfio", {}, True),  # there without any device, too
        (None, None, {"TPU_WORKER_HOSTNAMES": "a,b"}, False),
        (None, None, {"JAX_FORCE_TPU_INIT": "1"}, False),
    ],
)
def test_libtpu_is_left_alone_wherever_there_may_be_a_tpu(tmp_path, monkeypatch, platforms, device, variables, skipped):
    if device:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    registered = []
    monkeypatch.setattr(platform, "DEVICES", tmp_path)
    monkeypatch.setattr(platform, "register_backend_factory", lambda name, *_, **__: registered.append(name))
    monkeypatch.setattr(platform, "_chosen_platforms", lambda: platforms)
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    platform.skip_absent_tpu()
    assert registered == (["tpu"] if skipped else [])


@pytest.mark.parametrize(
    ("platforms", "device", "told"),
    [
        (None, None, None),
        (None, "nvidia0", "a GPU is attached, but this jax does not use it .* '.\\[cuda\\]'"),
        (None, "accel0", "a TPU is attached, but this jax does not use it .* '.\\[tpu\\]'"),
        ("cpu", "nvidia0", None),  # chosen
        (None, "nvidiactl", None),  # a driver without a device
    ],
)
def test_a_device_that_is_attached_and_not_used_is_told_of(tmp_path, monkeypatch, platforms, device, told):
    if device:
        (tmp_path / device).touch()
    monkeypatch.setattr(platform, "DEVICES", tmp_path)
    monkeypatch.setattr(platform, "_chosen_platforms", lambda: platforms)
    said = platform.unused_accelerator()
    assert said is None if told is None else re.search(told, said)
