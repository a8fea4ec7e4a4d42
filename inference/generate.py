"""Tokens from a model: prompts of any lengths in one batch, over a KV cache that is allocated once.

for step in stream(model, [prompt_ids], max_new_tokens=100, sampling=Sampling(temperature=0.7),
tokenizer=tokenizer):
    print(step[0].text, end="")
completions = generate(model, [a, b, c], max_new_tokens=100, stop_ids=[eot_id], logprobs=True)
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from base.errors import InputError
from inference.decoder import Decoder
from inference.sampling import Sampling, draw, penalize_repetition, sampling_distribution
from inference.text import TextStream
from model_builder import ConfigurableGPT

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
    sampling: Sampling = Sampling(),  # noqa: B008  immutable
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
    outgrows block_size, it continues with the last half of its context. Raises InputError for an empty
    prompt, for ids outside the vocabulary and stop strings without a tokenizer."""
    check_request(model.config.vocab_size, prompts, max_new_tokens, stop_strings, tokenizer, allowed_ids)
    model.eval()
    block_size = model.config.block_size
    rows = [
        Row(list(p)[-block_size:], TextStream(tokenizer, p, stop_strings) if tokenizer is not None else None)
        for p in prompts
    ]
    chooser = Chooser(model, prompts, sampling, seed, allowed_ids)
    active = set(range(len(rows)))
    decoder = Decoder(model, compiled)
    logits = decoder.prefill([row.context for row in rows], max_new_tokens - 1)
    for n in range(1, max_new_tokens + 1):
        tokens = chooser(logits)
        chosen = logprobs_of(logits, tokens) if logprobs else None
        events = []
        for i, token in enumerate(tokens.tolist()):
            if i in active:
                text, finish = rows[i].feed(token, stop_ids, last=n == max_new_tokens)
                stopped = finish == "stop_id"
                logprob = None if chosen is None or stopped else chosen[i]
                events.append(Event(i, None if stopped else token, text, logprob, finish))
        active -= {event.row for event in events if event.finish}
        yield events
        if not active:
            return
        full = [i for i in active if len(rows[i].context) > block_size]
        if full:
            for i, row in enumerate(rows):
                if i not in active:
                    row.context = row.context[-1:]
                elif i in full:
                    row.context = row.context[-max(1, block_size // 2) :]
            logits = decoder.prefill([row.context for row in rows], max_new_tokens - n - 1)
        else:
            logits = decoder.step(tokens)


def check_request(
    V: int,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_strings: Sequence[str],
    tokenizer: "Tokenizer | None",
    allowed_ids: Sequence[int] | None,
) -> None:
    """Raises InputError for what cannot be generated. V is the model's vocabulary."""
    if not prompts or not all(prompts):
        raise InputError("the prompt has no tokens: begin with the end-of-text id to start a new document")
    if allowed_ids is not None and len(allowed_ids) == 0:
        raise InputError("allowed_ids is empty: nothing could be sampled")
    for ids in (*prompts, allowed_ids or (0,)):
        if not 0 <= min(ids) <= max(ids) < V:
            outside = max(ids) if max(ids) >= V else min(ids)
            raise InputError(f"token id {outside} is outside the model's vocabulary of {V}")
    if stop_strings and tokenizer is None:
        raise InputError("stop strings need a tokenizer")
    if not all(stop_strings):
        raise InputError("a stop string is empty")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")


@dataclass
class Row:
    """One prompt and what has come after it."""

    context: list[int]  # that the model sees
    text: TextStream | None

    def feed(self, token: int, stop_ids: Collection[int], last: bool) -> tuple[str, str | None]:
        """The text that is certain now, and why the row ends, if it does."""
        self.context.append(token)
        if token in stop_ids:
            return self.text.held if self.text else "", "stop_id"
        if self.text is None:
            return "", "length" if last else None
        text = self.text.feed(token)
        if self.text.stopped:
            return text, "stop_string"
        return (text + self.text.held, "length") if last else (text, None)


class Chooser:
    """The next token of each row from its logits; remembers what repetition_penalty has to know."""

    def __init__(
        self,
        model: ConfigurableGPT,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        allowed_ids: Sequence[int] | None,
    ) -> None:
        self.sampling, self.device = sampling, model.token_embedding.weight.device
        B, V = len(prompts), model.config.vocab_size
        self.generators = [torch.Generator("cpu").manual_seed(seed + row) for row in range(B)]
        self.forbidden = self.seen = None
        if allowed_ids is not None:
            self.forbidden = torch.ones(V, dtype=torch.bool, device=self.device)
            self.forbidden[torch.tensor(list(allowed_ids), device=self.device)] = False
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(B, V, dtype=torch.bool, device=self.device)
            for row, prompt in enumerate(prompts):
                self.seen[row, torch.tensor(prompt, device=self.device)] = True

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [B, V] -> tokens [B]"""
        scores = logits
        if self.seen is not None:
            scores = penalize_repetition(logits.float(), self.seen, self.sampling.repetition_penalty)
        if self.forbidden is not None:
            scores = scores.masked_fill(self.forbidden, -torch.inf)
        probabilities, ids = sampling_distribution(scores, self.sampling)
        greedy = self.sampling.temperature == 0
        tokens = ids[:, 0] if greedy else draw(probabilities, ids, self.generators).to(self.device)
        if self.seen is not None:
            self.seen[torch.arange(len(tokens), device=self.device), tokens] = True
        return tokens


def logprobs_of(logits: Tensor, tokens: Tensor) -> list[float]:
    """ln p of each row's token [B] under logits [B, V]."""
    logits = logits.float()
    return (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).tolist()


@dataclass
class Completion:
    """What follows one prompt."""

    ids: list[int] = field(default_factory=list)
    text: str = ""  # empty without a tokenizer
    logprobs: list[float] = field(default_factory=list)  # one for each id where they were asked for
    finish: str = ""  # stop_id, stop_string or length

    def add(self, event: Event) -> None:
        self.text += event.text
        self.finish = event.finish or ""
        self.ids += [event.id] if event.id is not None else []
        self.logprobs += [event.logprob] if event.logprob is not None else []


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
            completions[event.row].add(event)
    return completions
