"""How the next token is drawn from the logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from base.errors import InputError


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
