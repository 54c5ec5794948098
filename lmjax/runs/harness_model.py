"""A checkpoint as a model of lm-eval, the language model evaluation harness: what `lmjax harness` puts its tasks to.

In: lm-eval's requests, which are texts. Out: the log-probability of a continuation and whether greedy decoding would
write it; the log-probability of a whole text; or a continuation. Texts become tokens as lm-eval's own model "hf" makes
them, so that an imported model has the numbers of the folder that it came from. Once this module is imported, lm-eval
knows the model by the name "lmjax".
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.data.conversations import END
from lmjax.errors import UserError, require, shortened
from lmjax.evaluate.answers import added_before
from lmjax.evaluate.endings import Ending
from lmjax.evaluate.likelihood import TokenProbs
from lmjax.generate.decode import continued
from lmjax.generate.sampling import SamplingSettings
from lmjax.interop.chat_template import ChatTemplate, as_jinja, encode_rendered
from lmjax.runs.evaluate import Reader
from lmjax.runs.load import Trained
from lmjax.settings import MeshSettings
from lmjax.tokenizers.tokenizer import tokenizer_fingerprint

PRESENT = importlib.util.find_spec("lm_eval") is not None
if TYPE_CHECKING or not PRESENT:
    LM: Any = object
else:
    from lm_eval.api.model import LM

PROMPTS_AT_ONCE = 16  # that are continued together
MOST_TOKENS = 256  # of a continuation, where a task names no number: lm-eval's own
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")  # of a task's generation_kwargs, by the same names


class HarnessModel(LM):
    """`lm_eval.api.model.LM` over a checkpoint, on all devices."""

    def __init__(self, checkpoint: Path | str, mesh: MeshSettings = MeshSettings(), **_: Any) -> None:
        """What else lm-eval gives every model, such as batch_size and device, is not needed.

        Raises UserError without lm-eval, and for a checkpoint that is no language model's or has no tokenizer.
        """
        require_lm_eval()
        super().__init__()
        self.reader = Reader(checkpoint, mesh, top=1)
        self._trained, self._tokenizer = self.reader.trained, self.reader.trained.tokenizer
        self._context = self._trained.model.settings.context
        self._before = added_before(self._tokenizer)
        self._template = chat_template_of(self._trained)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the log-probability in nats, and whether all its tokens are the likeliest.

        An empty context is the token that precedes every text; one that is too long loses its beginning. Raises
        UserError for a continuation that has no tokens, or more than the model's context.
        """
        rows = self._within_context([self._row(*request.args) for request in requests])
        pairs = itertools.groupby(zip(requests, rows, strict=True), key=lambda pair: pair[0].args[0])
        found = self.reader.likelihood.after([row for _, row in same] for _, same in pairs)
        answers = []
        scores = _scores(rows, itertools.chain.from_iterable(found), disable_tqdm)
        for request, answer in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
            answers.append(answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text in nats, through windows that move on by the whole context.

        As in "hf" the first token that a tokenizer adds to every text is counted, too.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        rows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.reader.begin, self._context, context_len=1)
            some = [Ending(np.array([*before, *own]), len(own)) for before, own in map(make_disjoint_window, windows)]
            rows += some
            owners += [number] * len(some)
        sums = [0.0] * len(requests)
        found = self.reader.likelihood.of(row.ids for row in rows)
        for number, (log_prob, _) in zip(owners, _scores(rows, found, disable_tqdm), strict=True):
            sums[number] += log_prob
        for request, log_prob in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, log_prob)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context, up to the end of text or one of the strings in `until`, without it.

        It is greedy unless the task samples. A context loses the beginning for which `max_gen_toks` leaves no room.
        Raises UserError for `generation_kwargs` that are not known here.
        """
        from tqdm import tqdm

        numbers_by_settings = defaultdict(list)
        for number, request in enumerate(requests):
            numbers_by_settings[self._sampling(request.args[1])].append(number)
        prompts = [self.encode(request.args[0]) or [self.reader.begin] for request in requests]
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="continuations") as bar:
            for settings, numbers in numbers_by_settings.items():
                room = self._context - settings.max_tokens
                self._warn_of_cut(sum(len(prompts[number]) > room for number in numbers), len(numbers), room)
                numbers.sort(key=lambda number: len(prompts[number]))
                for at in range(0, len(numbers), PROMPTS_AT_ONCE):
                    some = numbers[at : at + PROMPTS_AT_ONCE]
                    # Rows of one batch draw differently; the seed lets those of the next ones do so, too.
                    drawn = dataclasses.replace(settings, seed=at)
                    ids = [prompts[number][-room:] for number in some]
                    done = continued(self._trained.model, self._trained.params, self._tokenizer, ids, drawn)
                    for number, completion in zip(some, done, strict=True):
                        texts[number] = completion.text
                        self.cache_hook.add_partial("generate_until", requests[number].args, completion.text)
                    bar.update(len(some))
        return texts

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval knows its stored requests by."""
        return tokenizer_fingerprint(self._tokenizer)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template in Jinja, or None where it is not wanted. Raises UserError where there is none."""
        return self._require_template().template if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, opened for an answer, or up to the end of the answer that it begins.

        Raises UserError where there is no template, or where it refuses the conversation.
        """
        text = self._require_template().render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        begun = last.lstrip() if last.lstrip() in text else last.strip()
        before, found, _ = text.rpartition(begun)
        return before + found

    def _require_template(self) -> ChatTemplate:
        if self._template is None:
            raise UserError(
                f"--apply-chat-template: {self._trained.recipe.name!r} has no chat template: expected a checkpoint of "
                "a stage that trained on conversations, or of a model imported with one; leave the option out"
            )
        return self._template

    def encode(self, text: str) -> list[int]:
        """The tokens, with what the tokenizer puts before every text unless the text begins with it."""
        ids = self._own_ids(text)
        return ids if ids[: len(self._before)] == self._before else self._before + ids

    def _own_ids(self, text: str) -> list[int]:
        return encode_rendered(text, self._template.ids if self._template else {}, self._tokenizer)

    def _row(self, context: str, continuation: str) -> Ending:
        """Blanks at the end of a context belong to the continuation; the two are encoded together, and cut."""
        shown = context.rstrip()
        moved = context[len(shown) :] + continuation
        ids = self.encode(shown + moved) if shown else self._own_ids(moved)
        count = len(ids) - len(self.encode(shown)) if shown else len(ids)
        if not shown and ids[:1] == [self.reader.begin]:
            count -= 1
        elif not shown:
            ids = [self.reader.begin, *ids]
        if not 0 < count <= self._context:
            what = f"the continuation {shortened(continuation)} after {shortened(context[-40:])} has {count} tokens"
            raise UserError(f"{what}: expected 1 to the context of {self._context}; change the task's choices")
        return Ending(np.array(ids), count)

    def _within_context(self, rows: list[Ending]) -> list[Ending]:
        most = self._context + 1
        self._warn_of_cut(sum(len(row.ids) > most for row in rows), len(rows), self._context)
        return [Ending(row.ids[-most:], row.asked) for row in rows]

    def _warn_of_cut(self, cut: int, of: int, room: int) -> None:
        if cut:
            what = "%d of %d requests are longer than the %d tokens that the context of %d leaves them: %s"
            lost = "their contexts lose their beginning"
            logging.getLogger(__name__).warning(what, cut, of, room, self._context, lost)

    def _sampling(self, options: Mapping[str, Any]) -> SamplingSettings:
        """A task's generation_kwargs."""
        from lm_eval.models.utils import normalize_gen_kwargs

        try:
            given: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), min(MOST_TOKENS, self._context // 2)))
        except (TypeError, ValueError) as error:
            raise UserError(f"generation_kwargs: {error}; correct them in the task") from error
        most, until, samples = (given.pop(name) for name in ("max_gen_toks", "until", "do_sample"))
        fits, fix = 0 < most < self._context, "set max_gen_toks in the task's generation_kwargs"
        require(fits, "generation_kwargs.max_gen_toks", most, f"1 to less than the context of {self._context}", fix)
        drawn = {name: given.pop(name) for name in SAMPLING if name in given}
        if not samples:
            drawn["temperature"] = 0.0
        beams = given.pop("num_beams", 1)
        require(beams == 1, "generation_kwargs.num_beams", beams, "1: no beam search is here", "leave it out")
        for name, value in given.items():
            known = ", ".join(("until", "max_gen_toks", "do_sample", *SAMPLING))
            require(False, f"generation_kwargs.{name}", value, f"one of {known}", "leave it out of the task")
        stop, ends = tuple(filter(None, until)), self._trained.turns.ends
        return SamplingSettings(max_tokens=most, stop=stop, ends=ends, **drawn)


def _scores(rows: Sequence[Ending], found: Iterator[TokenProbs], disable_tqdm: bool) -> Iterator[tuple[float, bool]]:
    """Of the end of each row the log-probability, and whether all its tokens are the likeliest."""
    from tqdm import tqdm

    bar = tqdm(found, total=len(rows), disable=disable_tqdm, desc="continuations")
    for (ids, own), one in zip(rows, bar, strict=True):
        likeliest = one.top_ids[-own:, 0] == ids[-own:]
        yield float(one.log_probs[-own:].sum()), bool(likeliest.all())


def chat_template_of(trained: Trained) -> ChatTemplate | None:
    """The template of the stage, or the one that an imported model came with."""
    own, turns = trained.recipe.template, trained.turns
    if own is not None:
        ids = {END: trained.tokenizer.eos_id}
        return ChatTemplate(
            as_jinja(own),
            {"eos_token": END, **dict(own.tokens)},
            ids,
            own.ends,
            f"the template of {trained.recipe.name!r}",
        )
    return turns if isinstance(turns, ChatTemplate) else None


def require_lm_eval() -> None:
    """Raises UserError where lm-eval is not installed."""
    if not PRESENT:
        raise UserError("lmjax harness: lm-eval is not installed: expected 0.4.13; run pip install 'lmjax[harness]'")


if PRESENT:
    from lm_eval.api.registry import register_model

    register_model("lmjax")(HarnessModel)
