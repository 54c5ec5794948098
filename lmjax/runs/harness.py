"""lm-eval's tasks put to a checkpoint, for `lmjax harness`: its table of metrics, and every sample as a JSON line.

In: a checkpoint, names of tasks, a folder of YAML files that define further ones. Out: what lm-eval reports.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lmjax.errors import UserError, nearest, require, text_of
from lmjax.files import new_file, write_json_lines
from lmjax.runs.harness_model import HarnessModel, require_lm_eval
from lmjax.settings import MeshSettings

LONGEST_HINT = 300  # characters
REPORTED = (
    "results",
    "groups",
    "n-shot",
    "n-samples",
    "versions",
    "higher_is_better",
    "lm_eval_version",
)  # of what lm-eval returns


@dataclass(frozen=True)
class HarnessTasks:
    """Which of lm-eval's tasks are run, by name or pattern, on the first `limit` documents of each."""

    names: tuple[str, ...]
    include_path: Path | None = None  # a folder with YAML files of further tasks
    shots: int | None = None  # None: as many as each task says
    limit: int | None = None
    apply_chat_template: bool = False

    def __post_init__(self) -> None:
        require(self.shots is None or self.shots >= 0, "--shots", self.shots, "a number from 0", "use 0 for none")
        require(self.limit is None or self.limit > 0, "--limit", self.limit, "a number above 0", "leave it out for all")
        folder, fix = self.include_path, "name the folder of the tasks' YAML files"
        require(folder is None or folder.is_dir(), "--include-path", str(folder), "a folder", fix)

    def load(self) -> list[Any]:
        """The tasks, and groups of tasks, with their documents.

        Raises UserError without lm-eval, for a name that no task has, and for a task that cannot be read.
        """
        require_lm_eval()
        manager = self._manager()
        found = [name for pattern in self.names for name in self._matching(manager, pattern)]
        try:
            loaded = manager.load(list(dict.fromkeys(found)))
        except Exception as error:  # a task may fail in whatever its YAML, its functions and its data set do
            raise self.failed("load", error, "correct the task, or see to it that its data set can be read") from error
        inner = {child for children in loaded["group_map"].values() for child in children}
        return [one for name, one in (loaded["groups"] | loaded["tasks"]).items() if name not in inner]

    def failed(self, what: str, error: Exception, fix: str) -> UserError:
        """What a task's own error becomes."""
        said = f"{type(error).__name__}: {text_of(error)}"
        return UserError(f"--tasks {','.join(self.names)}: lm-eval cannot {what} it: {said}; {fix}")

    def _manager(self) -> Any:
        """lm-eval's index of tasks: of the folder alone, which is quick, where it defines all that are named."""
        from lm_eval.tasks import TaskManager

        if self.include_path is not None:
            own = TaskManager(include_path=self.include_path, include_defaults=False)
            if set(self.names) <= set(own.all_subtasks):
                return own
        return TaskManager(include_path=self.include_path)

    def _matching(self, manager: Any, pattern: str) -> list[str]:
        found = manager.match_tasks([pattern])
        where = "" if self.include_path is None else f" or of {self.include_path}"
        hint = nearest(pattern, manager.all_tasks)
        fix = hint if len(hint) < LONGEST_HINT else "`lm-eval ls tasks` lists those of lm-eval"
        require(bool(found), "--tasks", pattern, f"a task of lm-eval{where}", fix)
        return found


def run_harness(model: HarnessModel, tasks: HarnessTasks, loaded: list[Any] | None = None) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` returns: "results" by task, and under "samples" every document of each.

    `loaded` is what `tasks.load()` gave. Raises UserError as it does, as `HarnessModel` does, and for a task that fails
    at one of its documents.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # of its bootstrap: a fork beside JAX's threads may hang
    try:
        return simple_evaluate(
            model=model,
            tasks=tasks.load() if loaded is None else loaded,
            num_fewshot=tasks.shots,
            limit=tasks.limit,
            apply_chat_template=tasks.apply_chat_template,
            task_manager=TaskManager(include_defaults=False),  # all are loaded: an index of them takes seconds
        )
    except (UserError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # as in `load`
        raise tasks.failed("run", error, "correct the task or its data") from error


def print_harness(
    checkpoint: Path, tasks: HarnessTasks, *, mesh: MeshSettings, out: Path | None = None, as_json: bool = False
) -> None:
    """Prints lm-eval's table of metrics, and writes every sample, as lm-eval records it, to `out`, a JSONL file."""
    loaded = tasks.load()
    from lm_eval.utils import handle_non_serializable

    model = HarnessModel(checkpoint, mesh)
    print(model.reader.about(), file=sys.stderr)
    with new_file(out) as lines:
        found = run_harness(model, tasks, loaded)
        write_json_lines(lines, records(found), default=handle_non_serializable)
    if as_json:
        reported = {name: found[name] for name in REPORTED if name in found}
        print(json.dumps(reported, indent=2, default=handle_non_serializable))
        return
    print(table_of(found))


def table_of(found: Mapping[str, Any]) -> str:
    """A line for each metric of each task or group: shots, documents, the value and its standard error."""
    width = max(len("task"), *map(len, found["results"]))
    lines = [f"{'task':{width}} {'shots':>5} {'documents':>9}  metric"]
    for task, values in found["results"].items():
        shots, documents = found["n-shot"].get(task, ""), values.get("sample_len", "")
        for name, value in values.items():
            metric, comma, way = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{way}")
            spread = f" \N{PLUS-MINUS SIGN} {error:.4f}" if isinstance(error, float) else ""
            shown = f"{value:.4f}" if isinstance(value, float) else value
            called = metric if way == "none" else f"{metric} ({way})"
            lines.append(f"{task:{width}} {shots:>5} {documents:>9}  {called} {shown}{spread}")
    return "\n".join(lines)


def records(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each document of each task: the document, the requests and what the model answered, the metrics."""
    for task, samples in found["samples"].items():
        for sample in samples:
            yield {"task": task, **sample}
