"""Tokenizers that were published as files: where theirs come from, for a recipe whose own are not there."""

from __future__ import annotations

from pathlib import Path

from lmjax.errors import UserError
from lmjax.settings import TokenizerSettings

_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models/124M"
_HUGGING_FACE = "https://huggingface.co"
PUBLISHED: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {  # by kind: whose they are, and each file's address
    "bpe": (
        "GPT-2's two files",
        (("encoder.json", f"{_OPENAI}/encoder.json"), ("vocab.bpe", f"{_OPENAI}/vocab.bpe")),
    ),
    "wordpiece": (
        "BERT's vocabulary",
        (("vocab.txt", f"{_HUGGING_FACE}/google-bert/bert-base-uncased/resolve/main/vocab.txt"),),
    ),
    "huggingface": (
        "T5's pipeline",
        (
            ("tokenizer.json", f"{_HUGGING_FACE}/google-t5/t5-base/resolve/main/tokenizer.json"),
            ("tokenizer_config.json", f"{_HUGGING_FACE}/google-t5/t5-base/resolve/main/tokenizer_config.json"),
        ),
    ),
}


def require_tokenizer(settings: TokenizerSettings) -> None:
    """Raises UserError where nothing is at `settings.path`, with the commands that fetch the published files there."""
    path = Path(settings.path).expanduser()
    if path.exists():
        return
    folder = path if not path.suffix else path.parent
    whose, files = PUBLISHED.get(settings.kind, ("", ()))
    fix = "name a folder that has one, or leave it out to train one"
    if files:
        commands = [f"mkdir -p {folder}", *(f"curl -fL {address} -o {folder / name}" for name, address in files)]
        fix = f"name a folder that has them, or fetch {whose}:\n  " + "\n  ".join(commands)
    raise UserError(f"tokenizer.path = {settings.path!r}: expected the files of a {settings.kind} tokenizer; {fix}")
