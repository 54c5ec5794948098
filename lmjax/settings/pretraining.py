"""Pretraining of encoders and of encoder-decoders: stages beside that of lmjax/settings/stages.py for decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmjax.errors import require
from lmjax.settings.masking import MaskingSettings, PairSettings, SpanSettings
from lmjax.settings.model import AttentionSettings, ModelSettings, PositionSettings
from lmjax.settings.stages import Pretrain


@dataclass(frozen=True)
class PretrainMasked(Pretrain):
    """Pretraining of an encoder, which predicts the tokens that are hidden from it (Devlin et al. 2019, BERT).

    With `pairs`, a row is two texts of which the second follows the first or is from another document, and the model
    also predicts which; both losses are means, which are added. Without, rows are full: [CLS] and text, packed as
    `data` says (Liu et al. 2019, RoBERTa).
    """

    kind: ClassVar[str] = "pretrain_masked"

    model: ModelSettings = ModelSettings(attention=AttentionSettings(causal=False))
    masking: MaskingSettings = MaskingSettings()
    pairs: bool = True
    next_sentence: PairSettings = PairSettings()

    def check(self) -> None:
        super().check()
        check_family(self, causal=False, stacks=1)
        fix = "leave it out, or set pairs = False"
        values = {"packing": (self.data.packing, "split"), "isolate_documents": (self.data.isolate_documents, False)}
        for name, (value, default) in values.items():
            expected = f"{default!r} with pairs, which have rows of their own"
            require(not self.pairs or value == default, f"data.{name}", value, expected, fix)
        unused = self.pairs or self.next_sentence == PairSettings()
        require(unused, "next_sentence", self.next_sentence, "its default without pairs", "leave it out")

    @property
    def language_model(self) -> tuple[str, ...]:
        return ("params", "trunk") if self.pairs else ("params",)


@dataclass(frozen=True)
class PretrainSpans(Pretrain):
    """Pretraining of an encoder-decoder, which writes the spans that are missing in its inputs (Raffel et al. 2020).

    The inputs have data.sequence_length tokens; the length of the targets follows.
    """

    kind: ClassVar[str] = "pretrain_spans"

    model: ModelSettings = ModelSettings(encoder_layers=4, positions=PositionSettings(kind="relative"))
    spans: SpanSettings = SpanSettings()

    def check(self) -> None:
        super().check()
        check_family(self, causal=True, stacks=2)
        expected = "false: documents share a row, or with data.packing = 'first_fit' are segments of it"
        require(not self.data.isolate_documents, "data.isolate_documents", True, expected, "leave it out")


def check_family(stage: Pretrain, *, causal: bool, stacks: int) -> None:
    """Raises FieldError where the model of a stage is of another family, and for prompts, which it cannot continue."""
    model = stage.model
    if stage.own_model:
        expected, fix = f"{causal} for {stage.kind}", 'use a preset such as "bert_base" or "t5_base"'
        require(model.attention.causal == causal, "model.attention.causal", model.attention.causal, expected, fix)
        fits = (model.encoder_layers is not None) == (stacks == 2)
        expected = "an encoder's depth" if stacks == 2 else "none"
        require(fits, "model.encoder_layers", model.encoder_layers, f"{expected} for {stage.kind}", fix)
    prompts = stage.evaluation.prompts
    fix = "leave them out"
    require(not prompts, "evaluation.prompts", prompts, f"none for {stage.kind}, which continues no text", fix)
