"""Text from a model while it is trained, under every strategy: train.py's --sample_prompt."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch

from base.errors import InputError
from inference.sampling import Sampling, draw, sampling_distribution
from inference.text import TextStream, encode
from model_builder import ConfigurableGPT
from tokenization.tokenizers import find_tokenizer, load_tokenizer
from training.config import TrainConfig

SAMPLING = Sampling(temperature=0.8)


class TextSampler:
    """sampler(model, autocast) is what follows the prompt, the same draw every time. Raises what
    load_tokenizer raises, and InputError for a prompt that this model cannot read."""

    def __init__(self, config: TrainConfig, folder: Path, vocab_size: int) -> None:
        """`folder` is that of the dataset, with its tokenizer."""
        self.max_new_tokens, self.seed = config.sample_tokens, config.seed
        self.tokenizer, self.eot_id = load_tokenizer(folder), find_tokenizer(folder).eot_id
        self.prompt_ids = encode(self.tokenizer, config.sample_prompt)  # shards have no BOS
        if not self.prompt_ids or max(self.prompt_ids) >= vocab_size:
            said = f"sample_prompt={config.sample_prompt!r} is {self.prompt_ids[:8]} to {folder}'s tokenizer"
            raise InputError(f"{said}: it needs at least one id, and the model knows 0 to {vocab_size - 1}")

    def __call__(self, model: ConfigurableGPT, autocast: contextlib.AbstractContextManager) -> str:
        """Every rank calls it."""
        ids = continuation(model, self.prompt_ids, self.max_new_tokens, SAMPLING, self.seed, autocast)
        text = TextStream(self.tokenizer, self.prompt_ids)
        return "".join(text.feed(i) for i in (ids[: ids.index(self.eot_id)] if self.eot_id in ids else ids))


@torch.no_grad()
def continuation(
    model: ConfigurableGPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    autocast: contextlib.AbstractContextManager,
) -> list[int]:
    """The ids that follow the prompt. No cache, and always max_new_tokens of them: it calls the model as an
    evaluation does, so sharded weights are gathered, and all ranks call it equally often, whatever each of
    them draws. The model's mode and torch's random state are left as they were."""
    was_training = model.training
    model.eval()
    generator = torch.Generator("cpu").manual_seed(seed)
    ids, device = list(prompt_ids), model.token_embedding.weight.device
    with torch.compiler.set_stance("force_eager"), autocast:  # else every length would be compiled
        for _ in range(max_new_tokens):
            logits, _ = model(torch.tensor([ids[-model.config.block_size :]], device=device))
            ids.append(int(draw(*sampling_distribution(logits[:, -1], sampling), [generator])))
    model.train(was_training)
    return ids[len(prompt_ids) :]
