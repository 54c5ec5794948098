"""The names of the files in a run's folder, and the order of a pipeline's stages as its folder tells it."""

from __future__ import annotations

from pathlib import Path

from lmjax.errors import UserError
from lmjax.files import MalformedJsonError, check_form, parse_json, read_text, safe_name

RECIPE_FILE, SUMMARY_FILE, ENVIRONMENT_FILE = "recipe.json", "summary.json", "environment.json"
METRICS_FILE = "metrics.jsonl"
WALL_SECONDS = "wall_seconds"  # in the record and the summary: of all runs of the workdir together
PROVENANCE_FILE = "origins.json"  # what a stage was made from beside its recipe, by digest
ANSWERED_FILE = "answered.jsonl"  # of a comparison: a line for each batch of prompts, until all are answered
PIPELINE_FILE = "pipeline.json"  # in a pipeline's workdir: the names of its stages, in order
MEASURES_FILE = "measures.json"  # of the model that a stage ends with; of a pipeline, of the one it begins with
TABLE_FILE, RUNS = "table.jsonl", "runs"  # in a sweep's workdir: its table, and the folder of its runs
START_TOKENIZER = "tokenizer-start"  # the folder of the tokenizer of a stage's initial checkpoint


def is_pipeline(folder: Path) -> bool:
    """Whether it is the workdir of a pipeline."""
    return (folder / PIPELINE_FILE).is_file()


def stage_names(folder: Path) -> list[str]:
    """The stages of a pipeline's workdir, in order. Raises UserError where a name is not that of a folder in it."""
    path = folder / PIPELINE_FILE
    try:
        names = check_form(parse_json(read_text(path)), list[str], path, fix="run the pipeline again")
    except MalformedJsonError as error:
        raise UserError(f"{path}: expected a list of stages: {error}; run the pipeline again") from error
    return [safe_name(name, path) for name in names]
