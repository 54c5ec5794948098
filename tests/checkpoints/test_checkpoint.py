"""Checkpoints come back bit for bit, on any mesh; damage and a full disk are reported and cost nothing older."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.checkpoints.checkpoint import Checkpointer, find_checkpoint
from lmjax.errors import UserError
from lmjax.optim.train_state import TrainState
from lmjax.settings import CheckpointSettings


def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("fsdp",))


def _state(devices: int = 1, scale: float = 1.0, step: int = 3) -> TrainState:
    """A state with float32, bfloat16 and uint32 leaves, the matrices cut over the devices."""
    cut = NamedSharding(_mesh(devices), PartitionSpec("fsdp"))
    whole = NamedSharding(_mesh(devices), PartitionSpec())
    params = {
        "w": jax.device_put(scale * jax.random.normal(jax.random.key(0), (16, 4)), cut),
        "half": jax.device_put((scale * jax.random.normal(jax.random.key(1), (8, 2))).astype(jnp.bfloat16), cut),
        "bits": jax.device_put(jnp.arange(8, dtype=jnp.uint32) * 536870911, cut),
    }
    opt_state = jax.tree.map(lambda x: jax.device_put(x, whole if x.ndim == 0 else cut), optax.adam(1e-3).init(params))
    return TrainState(jax.device_put(jnp.int32(step), whole), params, opt_state)


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _open(folder: Path, reports: list[str] | None = None, tokenizer: Path | None = None, **settings) -> Checkpointer:
    report = (reports if reports is not None else []).append
    kept = CheckpointSettings(**settings)
    return Checkpointer(folder, kept, recipe_json='{"stage": "x"}', tokenizer_folder=tokenizer, report=report)


def _assert_same_bits(a, b) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_a_state_saved_on_8_devices_comes_back_bit_for_bit_on_8_4_and_1(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(_state(8), 3, {})
        checkpointer.wait()
        for devices in (8, 4, 1):
            target = _state(devices, scale=0.0, step=0)
            restored = checkpointer.restore(_abstract(target))
            _assert_same_bits(restored, _state(1))
            assert restored.params["w"].sharding == target.params["w"].sharding


def test_an_empty_folder_restores_nothing(tmp_path):
    with _open(tmp_path / "new") as checkpointer:
        assert checkpointer.restore(_abstract(_state())) is None


def test_a_donated_state_does_not_reach_the_checkpoint(tmp_path):
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    big = jax.random.normal(jax.random.key(5), (1024, 1024))
    state = TrainState(jnp.int32(1), {"w": big + 0}, ())
    with _open(tmp_path) as checkpointer:
        checkpointer.save(state, 1, {})
        for _ in range(5):
            state = spoil(state)
        checkpointer.wait()
        _assert_same_bits(checkpointer.restore(_abstract(state)).params["w"], big)


def test_the_last_ones_the_best_one_and_every_multiple_are_kept(tmp_path):
    with _open(tmp_path, keep_last=2, keep_every=40, keep_best=1) as checkpointer:
        for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 2.2), (60, 2.1)):
            checkpointer.save(_state(step=step), step, {"validation_loss": loss})
    assert _steps(tmp_path) == [20, 40, 50, 60]


def test_a_checkpoint_carries_recipe_version_and_tokenizer(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.bin").write_bytes(bytes(range(256)))
    with _open(tmp_path / "checkpoints" / "pretrain", tokenizer=tokenizer) as checkpointer:
        checkpointer.save(_state(), 7, {})
    for place in (tmp_path, tmp_path / "checkpoints" / "pretrain", tmp_path / "checkpoints" / "pretrain" / "7"):
        checkpoint = find_checkpoint(place)
        assert checkpoint.step == 7
    checkpoint.unpack_tokenizer(tmp_path / "again")
    assert (tmp_path / "again" / "vocab.bin").read_bytes() == bytes(range(256))
    assert checkpoint.extras()["recipe"] == '{"stage": "x"}'
    only = checkpoint.restore({"params": _abstract(_state()).params})
    _assert_same_bits(only["params"], _state().params)


def _damage_largest(folder: Path, how: str) -> Path:
    victim = max(
        (file for file in (folder / "state").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    if how == "truncated":
        os.truncate(victim, victim.stat().st_size // 2)
    elif how == "missing":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
        victim.write_bytes(content)
    return victim


@pytest.mark.parametrize("how", ["truncated", "missing", "overwritten"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, how):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(_state(step=1), 1, {})
        checkpointer.save(_state(scale=2.0, step=2), 2, {})
    _damage_largest(tmp_path / "2", how)
    reports: list[str] = []
    with _open(tmp_path, reports) as checkpointer:
        restored = checkpointer.restore(_abstract(_state()))
    _assert_same_bits(restored, _state(step=1))
    assert len(reports) == 1 and str(tmp_path / "2") in reports[0] and "damaged" in reports[0]
    with _open(tmp_path) as checkpointer:  # its step can be saved again, and it is kept for whoever wants to look
        checkpointer.save(_state(scale=2.0, step=2), 2, {})
        checkpointer.wait()
        _assert_same_bits(checkpointer.restore(_abstract(_state())), _state(scale=2.0, step=2))
    assert (tmp_path / "2.damaged").is_dir() and find_checkpoint(tmp_path).step == 2


def test_damage_to_every_checkpoint_is_an_error_that_lists_them(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(_state(step=1), 1, {})
    _damage_largest(tmp_path / "1", "truncated")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1\] is whole"), _open(tmp_path) as checkpointer:
        checkpointer.restore(_abstract(_state()))


def test_another_shape_is_an_error_that_names_the_parameter(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(_state(), 3, {})
        checkpointer.wait()
        other = _abstract(_state())
        other.params["w"] = jax.ShapeDtypeStruct((16, 5), jnp.float32, sharding=other.params["w"].sharding)
        with pytest.raises(UserError, match=r"\['w'\] has shape \(16, 4\); expected \(16, 5\)"):
            checkpointer.restore(other)


def test_a_tokenizer_file_that_would_leave_its_folder_is_refused(tmp_path, monkeypatch):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(_state(), 3, {})
    checkpoint = find_checkpoint(tmp_path)
    monkeypatch.setattr(type(checkpoint), "extras", lambda self: {"tokenizer": {"../evil": ""}})
    with pytest.raises(UserError, match=r"'\.\./evil' names a file: expected one plain name"):
        checkpoint.unpack_tokenizer(tmp_path / "out")


def _save_in_child(body: str, folder: Path, **popen) -> subprocess.Popen:
    code = textwrap.dedent(
        f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
        import jax, jax.numpy as jnp
        from pathlib import Path
        from lmjax.settings import CheckpointSettings
        from lmjax.checkpoints.checkpoint import Checkpointer
        from lmjax.optim.train_state import TrainState
        folder = Path({str(folder)!r})
        def state(step, n):
            return TrainState(jnp.int32(step), {{"w": jax.random.normal(jax.random.key(step), (n,))}}, ())
        checkpointer = Checkpointer(folder, CheckpointSettings(), recipe_json="", tokenizer_folder=None, report=print)
        """
    ) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code], text=True, **popen)


def test_a_process_killed_while_saving_leaves_only_whole_checkpoints(tmp_path):
    n = 30_000_000
    body = f"""
    checkpointer.save(state(1, {n}), 1, {{}}); checkpointer.wait()
    checkpointer.save(state(2, {n}), 2, {{}}); print("saving", flush=True); checkpointer.wait()
    print("saved", flush=True)
    """
    child = _save_in_child(body, tmp_path, stdout=subprocess.PIPE)
    assert child.stdout.readline() == "saving\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout.read() == "", "the kill came after the save; use a larger array"
    assert _steps(tmp_path) == [1]
    abstract = TrainState(jnp.int32(0), {"w": jnp.zeros(n)}, ())
    with _open(tmp_path) as checkpointer:
        restored = checkpointer.restore(_abstract(abstract))
    assert int(restored.step) == 1
    _assert_same_bits(restored.params["w"], jax.random.normal(jax.random.key(1), (n,)))
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_full_disk_stops_with_a_clear_error_and_leaves_the_older_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        body = """
        from lmjax.errors import UserError
        checkpointer.save(state(1, 300_000), 1, {}); checkpointer.wait()
        try:
            checkpointer.save(state(2, 1_500_000), 2, {}); checkpointer.wait()
        except UserError as error:
            print("clear:", error)
        """
        child = _save_in_child(body, disk / "run", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        out, _ = child.communicate(timeout=600)
        assert "clear:" in out and "the disk is full" in out and str(disk / "run") in out
        assert _steps(disk / "run") == [1]
        abstract = TrainState(jnp.int32(0), {"w": jnp.zeros(300_000)}, ())
        with _open(disk / "run") as checkpointer:
            assert int(checkpointer.restore(_abstract(abstract)).step) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


REFUSALS = {  # what becomes of the folder after the first save
    "is a file now": ("shutil.rmtree(folder); folder.write_text('in the way')", "Not a directory"),
    "is read-only": (
        "subprocess.run(['mount', '-o', 'remount,ro', str(folder.parent)], check=True)",
        "Read-only file system",
    ),
    "may not be written": ("os.chown(folder, 0, 0); folder.chmod(0o555); os.seteuid(65534)", "Permission denied"),
    "goes while it saves": ("vanish()", "[Nn]ot found|No such file"),
    "breaks": (
        "checkpoint.write_digests = lambda folder, step: (_ for _ in ()).throw(OSError(5, os.strerror(5)))",
        "Input/output error",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_folder_that_refuses_a_save_is_named_with_the_reason_within_seconds(tmp_path, what):
    disk = tmp_path / "disk"
    disk.mkdir()
    tmp_path.chmod(0o755)
    mounted = what == "is read-only"
    if mounted and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    if what == "may not be written" and os.geteuid():
        pytest.skip("needs the right to become another user")
    refuse, reason = REFUSALS[what]
    body = f"""
    import os, shutil, subprocess, time
    from lmjax.errors import UserError
    from lmjax.checkpoints import checkpoint
    def vanish():
        write = checkpoint.write_digests
        checkpoint.write_digests = lambda at, step: (shutil.rmtree(at), write(at, step))
    checkpointer.save(state(1, 1_000), 1, {{}}); checkpointer.wait()
    {refuse}
    try:
        with checkpointer:
            checkpointer.save(state(2, 1_000), 2, {{}})
    except UserError as error:
        print("clear:", error, flush=True)
    """
    try:
        child = _save_in_child(body, disk / "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said, noise = child.communicate(timeout=120)  # Orbax's own threads would hold it for 300 s
        assert child.returncode == 0 and re.match(rf"clear: {disk / 'run'}: cannot be .*({reason})", said), noise
        assert noise == "", "the sentence is enough"
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("best_by", "values", "best"),
    [
        ("validation_loss", {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, 2),
        ("validation_reward", {1: -0.5, 2: 0.25, 3: 0.75, 4: 0.5}, 3),
        ("validation_reward", {1: 0.5, 2: 0.5, 3: float("nan"), 4: None}, 2),  # of equals the newest, never a NaN
    ],
)
def test_the_best_checkpoint_is_used_where_the_recipe_says_so(tmp_path, best_by, values, best):
    def saved(select):
        settings = CheckpointSettings(keep_last=1, keep_best=1, best_by=best_by, select_best=True)
        recipe = json.dumps({"stage": "x", "checkpoint": {"select_best": select}})
        folder = tmp_path / str(select) / "checkpoints" / "x"
        for step, value in values.items():  # each time anew, as a run that is resumed
            with Checkpointer(folder, settings, recipe_json=recipe, tokenizer_folder=None, report=print) as opened:
                opened.save(_state(step=step), step, {} if value is None else {best_by: value})
        assert _steps(folder) == sorted({best, 4})
        return tmp_path / str(select)

    assert find_checkpoint(saved(True)).step == best
    assert find_checkpoint(saved(False)).step == 4
    with _open(tmp_path / "True" / "checkpoints" / "x") as again:
        assert int(again.restore(_abstract(_state())).step) == 4  # a run goes on from the newest all the same
