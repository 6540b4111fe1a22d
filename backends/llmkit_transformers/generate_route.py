"""The route through `model.generate`: for every model that transformers can generate with, and for beam search.

It turns requests into batches and tokens into chunks. It knows nothing of prompts' texts, nor of who reads the chunks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llmkit.params import GenerationParams
from llmkit.structured import Matcher
from llmkit.text import OutputText
from llmkit.types import Chunk, Request
from llmkit_transformers.fair_lock import FairLock
from llmkit_transformers.loading import LoadedModel
from llmkit_transformers.logprobs import ScoredToken, TokenSpelling
from llmkit_transformers.proof import Company, company
from llmkit_transformers.sampling import UNNAMED_FILTERS, Sampler, penalised
from llmkit_transformers.settings import APPLIED_BY_GENERATE, window

Emit = Callable[[Chunk], None]
Decode = Callable[[Sequence[int]], str]
_global_generator = Lock()


@dataclass(frozen=True, slots=True)
class Numbered:
    """A request with its place in the call."""

    index: int
    request: Request

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The encoded prompt."""
        return self.request.prompt_ids or ()

    @property
    def params(self) -> GenerationParams:
        """The resolved parameters."""
        return self.request.params

    def matcher(self) -> Matcher | None:
        """The state of a new choice in what its text must be; None where it may be anything."""
        guide = self.request.guide
        return None if guide is None else guide.start(self.params.eos_token_ids)

    def output(self, decode: Decode, max_tokens: int, matcher: Matcher | None) -> OutputText:
        """The text of a new choice; a guided one is spelt as its guide sees it, with nothing stripped."""
        guide, params = self.request.guide, self.params
        return OutputText(
            decode if guide is None else guide.decode,
            stops=params.stop_strings,
            eos_ids=params.eos_token_ids,
            max_tokens=max_tokens,
            is_whole=None if matcher is None else lambda: matcher.is_finished,
        )


def batches(
    requests: Sequence[Numbered], batch_size: int, shared: Callable[[GenerationParams], Hashable]
) -> Iterator[list[Numbered]]:
    """Requests in the groups that run together.

    A reproducible request runs alone, because a batch's padding and shape change the bits; so does beam search. The
    others are sorted by length, longest first, so that little is padded and memory is short early rather than late.

    Args:
        requests: encoded requests.
        batch_size: rows that may run together; a request with more choices gets a batch of its own.
        shared: what all rows of a batch must have in common.
    """
    alone: list[Numbered] = []
    together: dict[Hashable, list[Numbered]] = {}
    for one in requests:
        runs_alone = one.request.reproducible or one.params.uses_beams
        (alone if runs_alone else together.setdefault(shared(one.params), [])).append(one)
    for members in together.values():
        yield from _cut(sorted(members, key=lambda one: -len(one.prompt_ids)), batch_size)
    yield from ([one] for one in alone)


def _cut(members: Sequence[Numbered], batch_size: int) -> Iterator[list[Numbered]]:
    group: list[Numbered] = []
    for one in members:
        if group and sum(member.params.n for member in group) + one.params.n > batch_size:
            yield group
            group = []
        group.append(one)
    yield group


@dataclass(slots=True)
class GenerateRoute:
    """Runs groups of requests through `model.generate`, one at a time; between two steps, the engine has its turn."""

    loaded: LoadedModel
    decode: Decode
    spelling: TokenSpelling
    settings: GenerationConfig
    lock: FairLock = field(default_factory=FairLock)
    company: Company | None = None
    """Which rows may be in one batch; tried before the first batch of several."""

    def run(self, group: Sequence[Numbered], emit: Emit, cancelled: Event) -> None:
        """Generate a group's texts, emitting chunks as they become final; ends early once cancelled."""
        with self.lock, torch.inference_mode():
            if group[0].params.uses_beams:
                self._run_beams(group[0], emit, cancelled)
            else:
                self._run_rows(group, emit, cancelled)

    def _run_rows(self, group: Sequence[Numbered], emit: Emit, cancelled: Event) -> None:
        rows = [_Row(one, choice, self) for one in group for choice in range(one.params.n)]
        while rows and not cancelled.is_set():
            for part in [rows] if len(rows) == 1 else self._in_company(rows):
                if not cancelled.is_set():
                    self._run_part(part, emit, cancelled)
            rows = [row for row in rows if not row.is_done]

    def _in_company(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """The rows in the batches that the model can take: some read padding, and some other rows."""
        if self.company is None:
            self.company = company(self.loaded.model, self._logits)
            if self.company == "any" and any(getattr(self.settings, name, None) for name in APPLIED_BY_GENERATE):
                self.company = "same length"  # a text that went on in another batch would begin anew for these
        parts: defaultdict[int, list[_Row]] = defaultdict(list)
        for place, row in enumerate(rows):
            parts[{"any": 0, "same length": len(row.ids), "none": place}[self.company]].append(row)
        return list(parts.values())

    def _run_part(self, rows: Sequence[_Row], emit: Emit, cancelled: Event) -> None:
        """Generate until all rows are done, or until the longest stands at the last position that the model has.

        A row that is done is fed on while others go on, so those that are not are left then for a batch without it.
        """
        params, lengths = rows[0].request.params, {len(row.ids) for row in rows}
        for row in rows:
            if row.choice == 0 and not row.text.token_ids:
                n_prompt = len(row.request.prompt_ids)
                emit(Chunk(row.request.index, prompt_tokens=n_prompt, padded=len(lengths) > 1))
        n_wanted = max(row.n_left for row in rows)
        n_new = min(n_wanted, self._room(max(lengths)))
        choosing = [] if all(row.sampler.is_plain_greedy for row in rows) else [_ChooseTokens(rows)]
        cast("Any", self.loaded.model).generate(
            **self._inputs([row.ids for row in rows], params),
            generation_config=self._config(params, n_new),
            logits_processor=LogitsProcessorList(choosing),
            stopping_criteria=StoppingCriteriaList([_FollowRows(rows, self.lock, emit, cancelled)]),
        )
        for row in rows if n_new == n_wanted else ():
            row.end(emit)

    def _room(self, n_tokens: int) -> float:
        """New tokens for which a decoder has positions behind so many; an encoder's are no part of them."""
        positions = None if self.is_encoder_decoder else window(self.loaded.model.config.get_text_config())
        return math.inf if positions is None else max(1, positions - n_tokens)

    def _logits(self, prompts: Sequence[Sequence[int]], n_new: int) -> Tensor:
        """`(B, n_new, V)`: what `generate` chooses so many tokens from, greedily, for prompts in one batch."""
        params = GenerationParams()
        config = self._config(params, n_new)
        config.update(output_logits=True, return_dict_in_generate=True, min_length=0, min_new_tokens=0)
        found = cast("Any", self.loaded.model).generate(**self._inputs(prompts, params), generation_config=config)
        return torch.stack(found.logits, dim=1)

    def _run_beams(self, one: Numbered, emit: Emit, cancelled: Event) -> None:
        params = one.params
        emit(Chunk(one.index, prompt_tokens=len(one.prompt_ids)))
        n_before = 1 if self.is_encoder_decoder else len(one.prompt_ids)
        with _seeded(params.seed if params.do_sample else None):
            sequences = cast("Any", self.loaded.model).generate(
                **self._inputs([one.prompt_ids], params),
                generation_config=self._beam_config(params),
                logits_processor=LogitsProcessorList([_Penalise(self.penalty_context(one), n_before, params)]),
                stopping_criteria=StoppingCriteriaList([_StopBeams(self, one, n_before, emit, cancelled)]),
            )
        texts = _token_rows(sequences[:, n_before:])
        for choice, sequence in enumerate(texts):
            row = _Row(one, choice, self)
            for token_id in sequence:
                row.take(token_id, emit)
            row.end(emit)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts go to an encoder."""
        return bool(self.loaded.model.config.is_encoder_decoder)

    def shared(self, params: GenerationParams) -> Hashable:
        """What all rows of a batch must have in common, since `generate` applies it to the batch as a whole."""
        forced_last = cast("int | None", self.settings.forced_eos_token_id)
        limit = None if forced_last is None else params.max_tokens
        return params.eos_token_ids, params.bos_token_id if self.is_encoder_decoder else None, limit

    def max_new_tokens(self, params: GenerationParams) -> int:
        """The request's limit, which knows the prompt's room; a decoder that has its own positions limits it too."""
        positions = window(self.loaded.model.config) if self.is_encoder_decoder else None
        wanted = params.max_tokens or 1
        return wanted if positions is None else max(1, min(wanted, positions - 1))

    def penalty_context(self, one: Numbered) -> tuple[int, ...]:
        """Prompt tokens that the repetition penalty counts: those that the decoder sees."""
        return () if self.is_encoder_decoder else one.prompt_ids

    def _inputs(self, prompts: Sequence[Sequence[int]], params: GenerationParams) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, `(B, T)` int64; left-padded, so that every newest token shares a column."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad_id(params), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            start = 0 if self.is_encoder_decoder else width - len(prompt)
            ids[row, start : start + len(prompt)] = torch.tensor(prompt)
            mask[row, start : start + len(prompt)] = 1
        device = self.loaded.model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def _pad_id(self, params: GenerationParams) -> int:
        """Any token does where none is set: padding is masked."""
        first_eos = next(iter(params.eos_token_ids), 0)
        return first_eos if params.pad_token_id is None else params.pad_token_id

    def _config(self, params: GenerationParams, max_new_tokens: float) -> GenerationConfig:
        """The search is greedy over scores in which the samplers have already chosen."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=int(max_new_tokens),
            eos_token_id=list(params.eos_token_ids) or None,
            pad_token_id=self._pad_id(params),
            decoder_start_token_id=self._decoder_start(params),
            use_cache=True,
            return_dict_in_generate=False,
        )

    def _beam_config(self, params: GenerationParams) -> GenerationConfig:
        config = self._config(params, self.max_new_tokens(params))
        config.num_beams, config.num_return_sequences = params.num_beams, params.n
        config.early_stopping = False if params.early_stopping is None else params.early_stopping
        config.length_penalty = 1.0 if params.length_penalty is None else params.length_penalty
        config.do_sample = params.do_sample
        if params.do_sample:
            ours = ("temperature", "top_k", "top_p", "min_p", "typical_p")
            config.update(**{name: value for name, value in params if name in ours})
            config.update(**{name: getattr(self.settings, name) for name in UNNAMED_FILTERS})
        return config

    def _decoder_start(self, params: GenerationParams) -> int | None:
        if not self.is_encoder_decoder:
            return None
        own = cast("int | None", self.settings.decoder_start_token_id)
        return own if params.bos_token_id is None else params.bos_token_id


class _Row:
    """One choice of one request while it is generated."""

    def __init__(self, request: Numbered, choice: int, route: GenerateRoute) -> None:
        params = request.params
        self.request, self.choice = request, choice
        self.context = route.penalty_context(request)
        self.max_tokens = route.max_new_tokens(params)
        self.sampler = Sampler(params, choice, route.settings, request.matcher())
        self.spelling = route.spelling
        self.scored: ScoredToken | None = None
        self.text = request.output(route.decode, self.max_tokens, self.sampler.matcher)

    @property
    def is_done(self) -> bool:
        return self.text.finish_reason is not None

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt's tokens and those generated so far."""
        return (*self.request.prompt_ids, *self.text.token_ids)

    @property
    def n_left(self) -> int:
        """Tokens that it may still get."""
        return self.max_tokens - len(self.text.token_ids)

    def choose(self, scores: Tensor) -> int:
        """The next token by this row's own parameters; `take` brings it back."""
        if not self.sampler.wants_logprobs:
            return self.sampler.next_token(scores, self.context, self.text.token_ids)
        self.scored = self.sampler.next_scored(scores, self.context, self.text.token_ids)
        return self.scored.token_id

    def take(self, token_id: int, emit: Emit) -> None:
        if not self.is_done:
            piece = self.text.feed(token_id)
            logprobs = None if self.scored is None else (self.spelling.spelt(self.scored),)
            reason = self.text.finish_reason
            emit(Chunk(self.request.index, self.choice, piece, (token_id,), reason, logprobs=logprobs))

    def end(self, emit: Emit) -> None:
        """Finish a row that the model's own limits ended (`max_time` in its generation config)."""
        if not self.is_done:
            emit(Chunk(self.request.index, self.choice, self.text.end("length"), (), self.text.finish_reason))


class _ChooseTokens(LogitsProcessor):
    """Lets each row's sampler choose, and leaves its choice as the only possible token."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for index, row in enumerate(self._rows):
            if not row.is_done and not row.sampler.is_plain_greedy:
                token_id = row.choose(scores[index])
                scores[index].fill_(-torch.inf)
                scores[index, token_id] = 0.0
        return scores


class _FollowRows(StoppingCriteria):
    """Gives every new token to its row, and tells `generate` which rows have ended."""

    def __init__(self, rows: Sequence[_Row], lock: FairLock, emit: Emit, cancelled: Event) -> None:
        self._rows, self._lock, self._emit, self._cancelled = rows, lock, emit, cancelled

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        newest = [row[0] for row in _token_rows(input_ids[:, -1:])]
        for row, token_id in zip(self._rows, newest, strict=True):
            row.take(token_id, self._emit)
        self._lock.let_others()
        done = [row.is_done or self._cancelled.is_set() for row in self._rows]
        return torch.tensor(done, device=input_ids.device)


@dataclass
class _Penalise(LogitsProcessor):
    """Penalties for beams, whose rows change places from step to step."""

    context: tuple[int, ...]
    n_before: int
    params: GenerationParams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self.params.has_penalties:
            return scores
        generated = _token_rows(input_ids[:, self.n_before :])
        rows = zip(scores, generated, strict=True)
        return torch.stack([penalised(row, self.context, tokens, self.params) for row, tokens in rows])


@dataclass
class _StopBeams(StoppingCriteria):
    """Ends a beam at a stop string, and tells the reader at every step that work goes on, so that it can leave."""

    route: GenerateRoute
    one: Numbered
    n_before: int
    emit: Emit
    cancelled: Event
    stops: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.stops = self.one.params.stop_strings

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.emit(Chunk(self.one.index))
        generated = _token_rows(input_ids[:, self.n_before :])
        self.route.lock.let_others()
        texts = [self.route.decode(tokens) if self.stops else "" for tokens in generated]
        done = [self.cancelled.is_set() or any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _token_rows(ids: Any) -> list[list[int]]:
    """`(B, T)` token ids as lists."""
    return cast("list[list[int]]", ids.tolist())


@contextmanager
def _seeded(seed: int | None) -> Generator[None]:
    """The global generator under a seed, and back as it was; transformers samples beams from that one alone."""
    if seed is None:
        yield
        return
    with _global_generator, torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        yield
