"""Compiled programs in files: written where a program was compiled ahead of time, loaded where it runs.

In: a program as JAX lowered it for a mesh. Out: a file of one line, a JSON header and the runtime's own bytes, or that
program again. Before anything is loaded the program is lowered anew, and all that decides it must be what the header
says: a file for other devices, another mesh, version or program is refused by name, and nothing is compiled instead.
No object is read from a file, but an executable is code: load only what you would run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface
from jax.sharding import Mesh

from lmjax.errors import UserError, shortened
from lmjax.files import MalformedJsonError, parse_json, write_whole
from lmjax.parallel.compiler_options import compiler_options
from lmjax.settings import ComputeSettings

FIRST_LINE = b"lmjax executable\n"
FORMAT = 1
AGAIN = "compile it anew by lmjax plan --save"


@dataclass(frozen=True)
class Identity:
    """What decides a compiled program. Only the same one may be loaded."""

    versions: dict[str, str]  # jax, jaxlib and the platform's runtime
    device_kind: str
    places: list[list[int]]  # each device's number and coordinates, in the order of the mesh
    mesh: dict[str, int]
    options: dict[str, str]  # of the compiler
    module: str  # digest of the program as it was lowered


def identity(lowered: jax.stages.Lowered, mesh: Mesh, compute: ComputeSettings = ComputeSettings()) -> Identity:
    """What decides the program that compiling `lowered` makes for the devices of `mesh`."""
    devices = list(mesh.devices.flat)
    return Identity(
        versions={"jax": jax.__version__, "jaxlib": jaxlib.__version__} | _runtime(devices[0]),
        device_kind=devices[0].device_kind,
        places=[[device.id, *getattr(device, "coords", ()), getattr(device, "core_on_chip", 0)] for device in devices],
        mesh=dict(mesh.shape),
        options=compiler_options(mesh, compute),
        module=hashlib.sha256(lowered.as_text().encode()).hexdigest(),
    )


def save_executable(
    path: Path,
    lowered: jax.stages.Lowered,
    compiled: jax.stages.Compiled,
    mesh: Mesh,
    about: dict[str, Any],
    compute: ComputeSettings = ComputeSettings(),
) -> None:
    """Writes what compiling `lowered` gave. `about`, plain values by name, is compared when a file does not fit."""
    runtime: Any = compiled.runtime_executable()
    payload = runtime.serialize()
    header = {"format": FORMAT, "digest": hashlib.sha256(payload).hexdigest(), "about": about}
    header |= dataclasses.asdict(identity(lowered, mesh, compute))
    write_whole(path, FIRST_LINE + json.dumps(header).encode() + b"\n" + payload)


def load_executable(
    path: Path,
    lowered: jax.stages.Lowered,
    mesh: Mesh,
    about: dict[str, Any],
    compute: ComputeSettings = ComputeSettings(),
) -> jax.stages.Compiled:
    """The program that `lowered` is, from a file that `save_executable` wrote; nothing is compiled.

    `about` is what it would have been written with. Raises UserError where the file is none, is damaged, or holds
    another program, naming what differs.
    """
    header, payload = _read(path)
    _check(path, header, identity(lowered, mesh, compute), about)
    entry = compilation_cache.compress_executable(compilation_cache.combine_executable_and_time(payload, 0))
    try:
        with _cache_of(entry) as cache:
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{path}: the runtime does not take this executable: {error}; {AGAIN}") from error
    if not cache.asked:
        raise RuntimeError(f"{path}: jax {jax.__version__} compiled the program without asking for the executable")
    return compiled


def _runtime(device: Any) -> dict[str, str]:
    """The version of what compiles and runs programs for a device: of libtpu, or of the client."""
    if device.platform == "tpu":
        return {"libtpu": metadata.version("libtpu")}
    return {device.platform: device.client.platform_version}


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a file that lmjax plan --save wrote") from error
    first, _, rest = content.partition(b"\n")
    line, _, payload = rest.partition(b"\n")
    try:
        header = parse_json(line) if first + b"\n" == FIRST_LINE else None
    except MalformedJsonError:
        header = None
    if not isinstance(header, dict) or not {"format", "digest"} <= header.keys():
        raise UserError(f"{path}: expected a file that lmjax plan --save wrote; name another one, or write it anew")
    if header["format"] != FORMAT:
        raise UserError(f"{path}: its format is {shortened(header['format'])}, this lmjax reads {FORMAT}; {AGAIN}")
    if hashlib.sha256(payload).hexdigest() != header["digest"]:
        raise UserError(f"{path}: the executable in it is not whole; copy it again, or {AGAIN}")
    return header, payload


def _check(path: Path, header: dict[str, Any], here: Identity, about: dict[str, Any]) -> None:
    """Raises UserError at the first part of the header that is not as it is here."""
    names = {
        "device_kind": "devices",
        "versions": "versions",
        "places": "places of the devices in the slice",
        "mesh": "mesh",
        "options": "compiler options",
    }
    wanted = dataclasses.asdict(here)
    for part, name in names.items():
        if header.get(part) != wanted[part]:
            raise UserError(f"{path}: compiled for other {name}: {_changes(header.get(part), wanted[part])}; {AGAIN}")
    if header.get("module") != here.module:
        changed = _changes(header.get("about"), about) or "lmjax's own code"
        raise UserError(f"{path}: compiled from another program, which differs in {changed}; {AGAIN}")


def _changes(there: Any, here: Any) -> str:
    """What differs, in words: of two objects their fields, of two lists their lengths or first entries."""
    if isinstance(there, dict) and isinstance(here, dict):
        both = sorted(there.keys() | here.keys())
        pairs = [(name, there.get(name), here.get(name)) for name in both]
        return ", ".join(
            f"{shortened(name)[1:-1]} {shortened(old)}, here {shortened(new)}" for name, old, new in pairs if old != new
        )
    if isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            return f"{len(there)} devices, here {len(here)}"
        old, new = next((old, new) for old, new in zip(there, here, strict=True) if old != new)
        return f"{shortened(old)}, here {shortened(new)}"
    return f"{shortened(there)}, here {shortened(here)}"


class _OneProgram(CacheInterface):
    """A compilation cache that answers the first question, whatever it is, with the one program that it holds."""

    _path = Path()

    def __init__(self, entry: bytes) -> None:
        self._entry = entry
        self.asked = False

    def get(self, key: str) -> bytes | None:
        first, self.asked = not self.asked, True
        return self._entry if first else None

    def put(self, key: str, value: bytes) -> None:
        """Keeps nothing."""


@contextmanager
def _cache_of(entry: bytes) -> Iterator[_OneProgram]:
    """JAX's compilation cache is one that holds this program alone, and what is wrong with it is an error."""
    names = ("jax_enable_compilation_cache", "jax_raise_persistent_cache_errors")
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    cache = _OneProgram(entry)
    for name in names:
        jax.config.update(name, True)
    compilation_cache._cache, compilation_cache._cache_initialized = cache, True
    try:
        yield cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
