"""Text from a trained model, to the terminal as it is drawn.

    python sample.py --out_dir=out-quickstart --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --seed=1

The fields of SampleConfig are the flags. `--prompt=FILE:path` reads the prompt from a file.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from inference.generate import check_sampling, generate
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig, check_field_types
from tokenization.tokenizers import load_tokenizer
from training import checkpoint, dist
from training.config import parse_flags, user_errors


@dataclass(kw_only=True)
class SampleConfig:
    out_dir: str = "out"
    step: int | None = None  # None: the newest checkpoint that verifies
    prompt: str = ""  # empty: the beginning of a document
    max_new_tokens: int = 200
    num_samples: int = 1
    temperature: float = 0.8  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    seed: int = 1337
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # weights and cache

    def __post_init__(self) -> None:
        check_field_types(self)
        check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        for name in ("max_new_tokens", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed={self.seed} must lie in [0, 2^62)")


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with user_errors():
        words, flags = parse_flags(argv, get_type_hints(SampleConfig))
        if words:
            raise ValueError(f"{words[0]!r} is no flag: did you mean --prompt={words[0]!r}?")
        config = SampleConfig(**flags)
        device = dist.select_device(config.device)
        dtype = dist.select_dtype(config.dtype, device)
        path = checkpoint.find_checkpoint(config.out_dir, config.step)
        if path is None:
            raise FileNotFoundError(f"no checkpoint in {config.out_dir}/checkpoints: train one, or pass --out_dir=...")
        state, saved = checkpoint.load_state(path)
        tokenizer = load_tokenizer(config.out_dir)
        text = config.prompt
        if text.startswith("FILE:"):
            text = Path(text.removeprefix("FILE:")).read_text(encoding="utf-8")
        eot_id = state["data"]["eot_id"]
        prompt_ids = tokenizer.encode(text).ids or [eot_id]
        with device:
            model = ConfigurableGPT(ModelArchitectureConfig.from_dict(saved["model"]))
        checkpoint.load_weights(path, model)
    model = model.to(dtype).eval()

    for i in range(config.num_samples):
        if i:
            print("\n---")
        print(text, end="", flush=True)
        stream = text_stream(tokenizer, prompt_ids)
        for token in generate(
            model,
            prompt_ids,
            config.max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            config.min_p,
            seed=config.seed + i,
            stop_ids=() if eot_id is None else (eot_id,),
        ):
            print(stream(token), end="", flush=True)
        print()
    return 0


def text_stream(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[int], str]:
    """A function from the next id to the text that it completes: a character may need several tokens."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    for token in prompt_ids:  # spaces at the start of a token depend on what came before
        stream.step(tokenizer, token)
    return lambda token: stream.step(tokenizer, token) or ""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
