"""Tokens from a model, one at a time, over a KV cache."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from model_builder import ConfigurableGPT
from model_components import KVCache


def check_sampling(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Raises ValueError for a value outside its range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be finite and at least 0 (0 is greedy)")
    if top_k < 0:
        raise ValueError(f"top_k={top_k} must be at least 0 (0 is off)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1] (1 is off)")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p} must lie in [0, 1] (0 is off)")


def sampling_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """logits [V] as the probabilities [V], fp32, from which the next token is drawn. In transformers' order:

    temperature   divides the logits; 0 leaves only the largest
    top_k         keeps the k most likely tokens
    top_p         keeps the smallest set of tokens whose probabilities sum to top_p (Holtzman et al. 2020)
    min_p         keeps the tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)
    """
    logits = logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    logits = logits / temperature
    if 0 < top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort()
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        outside[-1] = False
        logits = logits.masked_fill(outside.scatter(0, order, outside), -torch.inf)
    if min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < min_p * probabilities.max(), -torch.inf)
    return logits.softmax(-1)


@torch.inference_mode()
def generate(
    model: ConfigurableGPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yields up to max_new_tokens ids and ends before one of stop_ids. The same seed gives the same tokens. Where prompt and
    answer outgrow block_size, the model goes on with the last half of its context. Raises ValueError for an empty prompt."""
    check_sampling(temperature, top_k, top_p, min_p)
    if not prompt_ids:
        raise ValueError("the prompt has no tokens: begin with the end-of-text id to start a new document")
    model.eval()
    weight = model.token_embedding.weight
    block_size = model.config.block_size
    generator = torch.Generator("cpu").manual_seed(seed)  # the draw is on the CPU: the same on every device
    ids = list(prompt_ids)
    cache, pending = None, ids[-block_size:]
    for _ in range(max_new_tokens):
        if cache is None or cache.length + len(pending) > block_size:
            if cache is not None:
                pending = ids[-max(1, block_size // 2) :]
            max_tokens = min(block_size, len(pending) + max_new_tokens)
            cache = KVCache(model.config, 1, max_tokens, weight.device, weight.dtype)
        logits, _ = model(torch.tensor([pending], device=weight.device), kv_cache=cache)
        probabilities = sampling_distribution(logits[0, -1], temperature, top_k, top_p, min_p)
        token = int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
        if token in stop_ids:
            return
        yield token
        ids.append(token)
        pending = [token]
