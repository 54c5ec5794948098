"""Google Cloud Storage, `gs://BUCKET/FOLDER`: paths of objects that are read and written like files, by way of fsspec.

In: a URL, or a run's folder on this machine. Out: etils paths, which Orbax takes too, and what the bucket says of the
objects below one. A workdir on a bucket has a folder of this machine, named by its URL, in the user's cache folder;
see lmjax/checkpoints/remote_workdir.py. Its checkpoints alone are never on this machine.
"""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

from lmjax.errors import UserError, is_bucket, shortened
from lmjax.files import MAX_NAME_BYTES, cache_folder

SCHEME = "gs://"
CHECKPOINTS = "checkpoints"


def located(path: Path | str) -> Path:
    """The path, where it is a URL as one whose methods speak to the bucket. Raises UserError for a malformed URL."""
    if not is_bucket(path):
        return Path(path)
    url = SCHEME + str(path)[len(SCHEME) - 1 :].strip("/")
    names = url[len(SCHEME) :].split("/")
    if len(names) < 2 or not all(re.fullmatch(r"(?!\.+$)[\w.,=@+-]+", name, re.ASCII) for name in names):
        form = "letters, digits and '.,=@+-_'"
        raise UserError(f"{shortened(url)}: expected {SCHEME}BUCKET/FOLDER, its names of {form}; name a folder so")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{url}: gcsfs, which reads buckets, is not installed; install it: pip install gcsfs")
    os.environ["EPATH_USE_TF"] = "false"  # what TensorFlow would read and write, gcsfs does
    file_system()
    from etils import epath

    return cast(Path, epath.Path(url))


def absolute(path: Path) -> Path:
    """Of a URL, which etils would take for a relative path, itself."""
    return path if is_bucket(path) else path.absolute()


def file_system() -> Any:
    """The one that all paths on buckets share. It remembers no listing: others write there, too."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs with a traceback, it raises, too
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs", finalize_on_close=True)


def objects(folder: Path) -> dict[str, dict[str, Any]]:
    """What the bucket knows of each object below the folder: its `size` and `crc32c`, by its name."""
    own = f"{str(folder)[len(SCHEME) :]}/"
    found = file_system().find(str(folder), detail=True)
    return {name[len(own) :]: about for name, about in found.items() if name.startswith(own) and name[-1] != "/"}


def crc32c(path: Path) -> str:
    """The checksum of a file of this machine, as a bucket gives it."""
    try:
        import google_crc32c
    except ImportError as error:
        fix = "install it: pip install google-crc32c"
        raise UserError(
            f"{path}: google-crc32c, which compares it with what a bucket held, is absent; {fix}"
        ) from error
    value = google_crc32c.Checksum()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            value.update(part)
    return base64.b64encode(value.digest()).decode()


def folder_here(workdir: Path) -> Path:
    """The folder of this machine that stands for a workdir on a bucket."""
    name = quote(str(workdir)[len(SCHEME) :], safe="")
    if len(name) > MAX_NAME_BYTES:
        raise UserError(f"{workdir}: expected at most {MAX_NAME_BYTES} characters; choose a shorter --workdir")
    return cache_folder() / "workdirs" / name


def remote_of(workdir: Path) -> Path | None:
    """Where on a bucket a run's folder of this machine, or that of a pipeline's stage, belongs; None: nowhere."""
    kept = cache_folder() / "workdirs"
    if kept not in workdir.parents:
        return None
    name, *stage = workdir.relative_to(kept).parts
    return located("/".join((f"{SCHEME}{unquote(name)}", *stage)))


def checkpoints_of(workdir: Path) -> Path:
    """The folder that holds the checkpoints of a run's folder, a folder for each stage."""
    return (remote_of(workdir) or workdir) / CHECKPOINTS
