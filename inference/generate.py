"""Tokens from a model: prompts of any lengths in one batch, over a KV cache that is allocated once.

for step in stream(model, [prompt_ids], max_new_tokens=100, sampling=Sampling(temperature=0.7),
tokenizer=tokenizer):
    print(step[0].text, end="")
completions = generate(model, [a, b, c], max_new_tokens=100, stop_ids=[eot_id], logprobs=True)
"""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from base.errors import InputError
from model_builder import ConfigurableGPT
from model_components import KVCache

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from the logits. Raises InputError for a value outside its range."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # 1: off

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 1e-6 <= self.temperature < float(
            "inf"
        ):  # less would overflow the logits
            raise InputError(f"temperature={self.temperature} must be 0 (greedy) or finite and at least 1e-6")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must be at least 0 (0 is off)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must lie in (0, 1] (1 is off)")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p={self.min_p} must lie in [0, 1] (0 is off)")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(
                f"repetition_penalty={self.repetition_penalty} must be positive and finite (1 is off)"
            )


NUCLEUS_CANDIDATES = 1024  # sorting 152 k logits takes 35 ms on CPU, finding the largest 1024 under 1 ms


def sampling_distribution(logits: Tensor, s: Sampling) -> tuple[Tensor, Tensor | None]:
    """logits [B, V] as the probabilities [B, N], fp32, from which the next token is drawn, and the ids [B,
    N] they belong to; None: N is V and each column is its own id. In transformers' order, after the
    repetition penalty:

    temperature   divides the logits; 0 leaves only the largest
    top_k         keeps the k most likely tokens, and those that tie with the last of them
    top_p         keeps the smallest set of tokens whose probabilities sum to top_p (Holtzman et al. 2020)
    min_p         keeps the tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)
    """
    logits = logits.float()
    B, V = logits.shape
    if s.temperature == 0:
        return torch.ones(B, 1, device=logits.device), logits.argmax(-1, keepdim=True)
    logits, ids = logits / s.temperature, None
    if 0 < s.top_k < V:
        kth = logits.topk(s.top_k).values[:, -1:]
        logits, ids = logits.topk(int((logits >= kth).sum(-1).max()))
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if s.top_p < 1:
        total = logits.logsumexp(-1, keepdim=True)
        if ids is None:
            largest, ids = logits.topk(min(V, NUCLEUS_CANDIDATES))
            if ids.size(1) < V and bool(((largest - total).exp().sum(-1) <= s.top_p + 1e-4).any()):
                largest, ids = logits.sort(descending=True)  # the nucleus may be larger than that
            logits = largest
        probabilities = (logits - total).exp()  # largest first
        outside = probabilities.cumsum(-1) - probabilities >= s.top_p
        outside[:, 0] = False
        logits = logits.masked_fill(outside, -torch.inf)
    if s.min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(
            probabilities < s.min_p * probabilities.amax(-1, keepdim=True), -torch.inf
        )
    return logits.softmax(-1), ids


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """logits [B, V], where seen [B, V] divided by the penalty if positive, else multiplied by it (Keskar et
    al. 2019)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def draw(probabilities: Tensor, ids: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
    """One token [B] from each row of the distribution, by a generator of its own. On the CPU: the same on
    every device."""
    cumulative = probabilities.cpu().double().cumsum(-1)
    u = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=g) for g in generators])
    column = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(
        max=cumulative.size(1) - 1
    )
    return (column if ids is None else ids.cpu().gather(1, column))[:, 0]


class Decoder:
    """A model with the cache of one batch: `prefill` takes the prompts, `step` one token for each row; both
    give the logits [B, V] of what comes next. With `compiled`, a step is one graph, compiled once for a
    batch and cache size."""

    def __init__(self, model: ConfigurableGPT, compiled: bool) -> None:
        self.model, self.compiled = model, compiled
        self.device, self.dtype = model.token_embedding.weight.device, model.token_embedding.weight.dtype

    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor:
        """Allocates a cache that max_new_tokens more of them fit into, up to block_size."""
        self.fresh = True
        B, lengths = len(prompts), [len(p) for p in prompts]
        T = max(lengths)
        slots = T + max_new_tokens
        if self.compiled:
            slots = -(-slots // CACHE_GRANULE) * CACHE_GRANULE  # so that few sizes are compiled
        self.slots = min(slots, self.model.config.block_size)
        self.cache = KVCache(self.model.config, B, self.slots, self.device, self.dtype)
        padded = torch.tensor(
            [[*p, *[0] * (T - len(p))] for p in prompts], device=self.device
        )  # what pads is never seen
        self.lengths = torch.tensor(lengths, device=self.device)
        x = self.model.features(padded, kv_cache=self.cache)  # [B, T, C]
        last = x[torch.arange(B, device=self.device), self.lengths - 1]
        if self.compiled or min(lengths) < T:
            self.cache.set_positions(self.lengths)
        return F.linear(last, self.model.head_weight)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens [B] follow what the cache holds."""
        tokens = tokens.to(self.device)[:, None]
        if self.cache.positions is None:
            return next_logits(self.model, tokens, self.cache)
        if not self.compiled:
            logits = next_logits(self.model, tokens, self.cache)
        else:
            if tokens.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            # Only the first step of a batch may compile; to enter this context at every token would cost a
            # tenth of it
            freeze = torch._inductor.config.patch(freezing=tokens.device.type == "cpu")
            with freeze if self.fresh else contextlib.nullcontext():
                logits = compiled_step(self.model)(self.model, tokens, self.cache)
            self.fresh = False
        self.cache.positions.add_(1).clamp_(
            max=self.slots - 1
        )  # a row that has ended may stay in the last slot
        return logits


CACHE_GRANULE = 64


def next_logits(model: ConfigurableGPT, tokens: Tensor, cache: KVCache) -> Tensor:
    return F.linear(model.features(tokens, kv_cache=cache)[:, -1], model.head_weight)


def needed_guards(guards: Sequence[Any]) -> list[bool]:
    """torch would check some 60 properties of each layer at every token, which takes as long as a layer.
    Here the weights are constants, so the first of them says which model it is; the shapes say the rest."""
    kinds = ("TENSOR_MATCH", "GLOBAL_STATE", "GRAD_MODE")
    return [
        guard.guard_type in kinds or guard.name.endswith("['token_embedding']._parameters['weight']")
        for guard in guards
    ]


COMPILED: weakref.WeakKeyDictionary[ConfigurableGPT, Callable[..., Tensor]] = weakref.WeakKeyDictionary()


def compiled_step(model: ConfigurableGPT) -> Callable[..., Tensor]:
    """next_logits as one graph. On CPU its weights become constants in the layout of the matmul kernels (a
    copy: the model must not be trained on meanwhile); on CUDA it is replayed as a CUDA graph."""
    if model not in COMPILED:
        on_cuda = model.token_embedding.weight.is_cuda
        options = {"triton.cudagraphs": True} if on_cuda else {"guard_filter_fn": needed_guards}
        COMPILED[model] = torch.compile(next_logits, dynamic=False, options=options)
    return COMPILED[model]


class TextStream:
    """The text of a row as its tokens come. A character may need several tokens; what may yet become a stop
    string is held back, and from a stop string on there is no text."""

    def __init__(
        self, tokenizer: "Tokenizer", prompt_ids: Sequence[int], stop_strings: Sequence[str] = ()
    ) -> None:
        from tokenizers.decoders import DecodeStream

        self.tokenizer, self.stop_strings = tokenizer, stop_strings
        self.decoder = DecodeStream(skip_special_tokens=True)
        for token in prompt_ids:  # spaces at the start of a token depend on what came before
            self.decoder.step(tokenizer, token)
        self.held, self.stopped = "", False

    def feed(self, token: int) -> str:
        """The text that is certain now."""
        self.held += self.decoder.step(self.tokenizer, token) or ""
        ends = [at for stop in self.stop_strings if (at := self.held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            text, self.held = self.held[: min(ends)], ""
            return text
        keep = max(
            (n for stop in self.stop_strings for n in range(1, len(stop)) if self.held.endswith(stop[:n])),
            default=0,
        )
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text


class Event(NamedTuple):
    """What one step brought to one row: a token, an end (`finish`: stop_id, stop_string or length), or
    both."""

    row: int
    id: int | None  # None: a stop id came, which is not part of the answer
    text: str
    logprob: float | None
    finish: str | None


@torch.inference_mode()
def stream(
    model: ConfigurableGPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: "Tokenizer | None" = None,
    allowed_ids: Sequence[int] | None = None,
    logprobs: bool = False,
    compiled: bool = False,
) -> Iterator[list[Event]]:
    """One list of events a step, of the rows that have not ended. Row i draws with seed + i, and gets the
    tokens that it would get alone. `allowed_ids`: no other id is sampled. `logprobs`: of each token under
    the model itself, in nats, before temperature and filters. Text needs the tokenizer. Where a row
    outgrows block_size, it goes on with the last half of its context. Raises InputError for an empty
    prompt, for ids outside the vocabulary and stop strings without a tokenizer."""
    V, block_size = model.config.vocab_size, model.config.block_size
    if not prompts or not all(prompts):
        raise InputError("the prompt has no tokens: begin with the end-of-text id to start a new document")
    for ids in (*prompts, allowed_ids or (0,)):
        if not 0 <= min(ids) <= max(ids) < V:
            raise InputError(
                f"token id {max(ids) if max(ids) >= V else min(ids)} is outside the model's vocabulary of {V}"
            )
    if stop_strings and tokenizer is None:
        raise InputError("stop strings need a tokenizer")
    if not all(stop_strings):
        raise InputError("a stop string is empty")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if allowed_ids is not None and len(allowed_ids) == 0:
        raise InputError("allowed_ids is empty: nothing could be sampled")
    model.eval()
    device = model.token_embedding.weight.device
    B = len(prompts)
    contexts = [list(p)[-block_size:] for p in prompts]
    texts = [TextStream(tokenizer, p, stop_strings) if tokenizer is not None else None for p in prompts]
    generators = [torch.Generator("cpu").manual_seed(seed + row) for row in range(B)]
    forbidden = seen = None
    if allowed_ids is not None:
        forbidden = torch.ones(V, dtype=torch.bool, device=device).index_fill_(
            0, torch.tensor(list(allowed_ids), device=device), 0
        )
    if sampling.repetition_penalty != 1:
        seen = torch.zeros(B, V, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            seen[row, torch.tensor(prompt, device=device)] = True
    active = set(range(B))

    decoder = Decoder(model, compiled)
    logits = decoder.prefill(contexts, max_new_tokens - 1)
    for n in range(1, max_new_tokens + 1):
        scores = logits
        if seen is not None:
            scores = penalize_repetition(logits.float(), seen, sampling.repetition_penalty)
        if forbidden is not None:
            scores = scores.masked_fill(forbidden, -torch.inf)
        probabilities, ids = sampling_distribution(scores, sampling)
        tokens = ids[:, 0] if sampling.temperature == 0 else draw(probabilities, ids, generators).to(device)
        if seen is not None:
            seen[torch.arange(B, device=device), tokens] = True
        chosen = None
        if logprobs:
            chosen = (logits.float().gather(1, tokens[:, None])[:, 0] - logits.float().logsumexp(-1)).tolist()

        events = []
        for row, token in enumerate(tokens.tolist()):
            if row not in active:
                continue
            contexts[row].append(token)
            text, finish = "", "length" if n == max_new_tokens else None
            if token in stop_ids:
                text, finish = texts[row].held if texts[row] else "", "stop_id"
            elif texts[row]:
                text = texts[row].feed(token)
                if texts[row].stopped:
                    finish = "stop_string"
                elif finish:
                    text += texts[row].held
            logprob = chosen[row] if chosen and finish != "stop_id" else None
            events.append(Event(row, None if finish == "stop_id" else token, text, logprob, finish))
        active -= {event.row for event in events if event.finish}
        yield events
        if not active:
            return

        full = [row for row in active if len(contexts[row]) > block_size]
        if full:
            for row in range(B):
                if row not in active:
                    contexts[row] = contexts[row][-1:]
                elif row in full:
                    contexts[row] = contexts[row][-max(1, block_size // 2) :]
            logits = decoder.prefill(contexts, max_new_tokens - n - 1)
        else:
            logits = decoder.step(tokens)


@dataclass
class Completion:
    """What follows one prompt."""

    ids: list[int] = field(default_factory=list)
    text: str = ""  # empty without a tokenizer
    logprobs: list[float] = field(default_factory=list)  # one for each id where they were asked for
    finish: str = ""  # stop_id, stop_string or length


def generate(
    model: ConfigurableGPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *args: Sampling,
    **options: object,
) -> list[Completion]:
    """All of `stream`, one completion for each prompt; the arguments are those of stream."""
    completions = [Completion() for _ in prompts]
    for events in stream(model, prompts, max_new_tokens, *args, **options):
        for event in events:
            c = completions[event.row]
            c.text += event.text
            c.finish = event.finish or ""
            if event.id is not None:
                c.ids.append(event.id)
            if event.logprob is not None:
                c.logprobs.append(event.logprob)
    return completions
