"""What tasks on token shards share: their sources, and how often each has been read."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from lmjax.data.draws import Stream
from lmjax.data.loader import RowLoader, check_one_tokenizer
from lmjax.data.packing import Rows
from lmjax.data.ramp import BatchRamp
from lmjax.data.source_shares import lines_of, source_names
from lmjax.data.token_shards import TokenShards
from lmjax.optim.schedules import Schedule, token_clock
from lmjax.settings import Pretrain
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session, Task, TaskData
from lmjax.training.loop import Values


@dataclass(frozen=True)
class Pretraining(Task):
    """A task on the shards of sources; a plan, which compiles from shapes, has none."""

    train: tuple[TokenShards, ...] = ()
    validation: tuple[TokenShards, ...] = ()

    @abstractmethod
    def rows(self, resolved: ResolvedStage, shards: TokenShards, number: int, *, validation: bool = False) -> Rows:
        """The rows of the training or validation source with this number."""

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        data = resolved.of(Pretrain).data
        check_one_tokenizer(self.train)

        def shares(loader: RowLoader, steps: int) -> list[str]:
            return lines_of(data.train, [shards.tokens for shards in self.train], loader.epochs_at(steps), "tokens")

        return TaskData(
            train=[self.rows(resolved, shards, number) for number, shards in enumerate(self.train)],
            weights=[source.weight for source in data.train],
            validation=[
                self.rows(resolved, shards, number, validation=True) for number, shards in enumerate(self.validation)
            ],
            names=source_names(data.validation),
            shares=shares,
        )

    def clock(self, resolved: ResolvedStage) -> Schedule:
        ramp = BatchRamp(resolved.of(Pretrain).data)
        return token_clock(ramp.table.first_steps, ramp.step_tokens, ramp.table.tokens_before, row=1)

    def progress(self, loader: RowLoader, done: int) -> Values:
        epochs = loader.epochs_at(done)
        return {"epochs": epochs[0]} if len(epochs) == 1 else {f"epochs/{i}": share for i, share in enumerate(epochs)}


def row_stream(stage: Pretrain, number: int, validation: bool) -> Stream:
    """The draws of a source's rows; those of validation are the same for all seeds, so that runs can be compared."""
    return Stream(0, number, "validation") if validation else Stream(stage.data.seed, number, "train")
