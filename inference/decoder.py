"""The model's side of generation: prompts into a KV cache that is allocated once, then a token a step."""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model_builder import ConfigurableGPT
from model_components import KVCache


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
