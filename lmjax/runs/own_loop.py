"""What a training loop of one's own takes: devices, batches of tokens, and checkpoints that `lmjax.load` reads.

The other parts of it are functions of the packages below: `model_of`, `language_loss`, `make_train_step`, `init_state`,
`jit_step` and `placed_batch`. docs/python.md puts them together.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.data.loader import Loader, RowLoader, ValidationBatches, validation_batches
from lmjax.files import user_path
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.start_jax import prepare_jax
from lmjax.settings import CheckpointSettings, DataSettings, MeshSettings, ModelSettings, Pretrain, TokenizerSettings
from lmjax.settings.recipe_files import to_json
from lmjax.stages.prepare_data import prepare
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.progress import ProgressDisplay

NAME = "own_loop"  # of the folder below checkpoints/


class TokenBatches(NamedTuple):
    """The tokenizer and the batches of a loop of one's own; `placed_batch` puts one on the devices."""

    tokenizer: Tokenizer
    train: RowLoader
    validation: ValidationBatches


def mesh(
    *,
    replica: int | None = None,
    data: int | None = None,
    fsdp: int | None = None,
    sequence: int | None = None,
    tensor: int | None = None,
) -> Mesh:
    """All devices that JAX sees, along named axes; one axis may be -1 and takes what is left.

    `replica` goes across slices, `data` has whole parameters on each device, `fsdp` cuts them, `sequence` cuts rows
    along time, `tensor` heads and feed-forward width. Where none is given, all devices are along `data`. Raises
    UserError where the sizes do not multiply up to the devices.
    """
    prepare_jax()
    return make_mesh(MeshSettings(replica, data, fsdp, sequence, tensor))


def token_batches(
    data: DataSettings,
    workdir: Path | str,
    tokenizer: TokenizerSettings = TokenizerSettings(),
    *,
    quiet: bool = False,
) -> TokenBatches:
    """The batches of `data.train`, mixed and shuffled as the settings say, and of `data.validation`, in order.

    The tokenizer is loaded, or trained on `data.train`, and kept below `workdir` with the tokens; both are made once.
    `train.batch_at(step)` is a pure function of the settings and the step: a dict of NumPy arrays
    [batch_size, sequence_length] by the names in lmjax/data/batch.py. Raises UserError for bad input.
    """
    prepare_jax()
    folder = user_path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    shape = ModelSettings(context=data.sequence_length)
    recipe = Pretrain(name=NAME, tokenizer=tokenizer, data=data, model=shape)
    prepared = prepare(recipe, folder, ProgressDisplay(silent=quiet))
    train = Loader(prepared.train, [source.weight for source in data.train], data)
    validation = validation_batches(prepared.validation, data, data.batch_size)
    return TokenBatches(prepared.tokenizer, train, validation)


def checkpointer(
    workdir: Path | str,
    model: LanguageModel,
    tokenizer: Tokenizer,
    settings: CheckpointSettings = CheckpointSettings(),
) -> Checkpointer:
    """The checkpoints of a loop of one's own in `workdir`, with the model's settings and the tokenizer in each.

    A context manager: leaving it waits for what is being written. `restore(state)` gives the newest state, laid out as
    `state` is, or None; `save(state, step)` writes one behind the steps that follow, and deletes older ones as the
    settings say. `lmjax.load(workdir)` reads the newest. Raises UserError when the disk is full or refuses.
    """
    kind: Any = tokenizer.kind
    encoding = TokenizerSettings() if kind == "byte" else TokenizerSettings(kind=kind, vocab_size=tokenizer.vocab_size)
    length = min(DataSettings().sequence_length, model.settings.context)
    recipe = Pretrain(
        name=NAME,
        tokenizer=encoding,
        data=DataSettings(sequence_length=length),
        model=model.settings,
        compute=model.compute,
        checkpoint=settings,
    )
    with tempfile.TemporaryDirectory() as files:
        tokenizer.save(Path(files))
        return Checkpointer(
            user_path(workdir) / "checkpoints" / NAME,
            settings,
            recipe_json=to_json(recipe),
            tokenizer_folder=Path(files),
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
