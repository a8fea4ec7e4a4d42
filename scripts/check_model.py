"""Does a Hugging Face model work here? Tokenizer, weights, a round trip of text, a forward pass,
parameters, memory.

    python scripts/check_model.py --model=Qwen/Qwen3-4B-Instruct-2507 --device=cuda --dtype=bfloat16
    python scripts/check_model.py --model=exported --tokenizer_only

One line a check. Exit code 0 if all pass; 2, with one line that says what is wrong, at the first that does
not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from base import cli, fields
from base.errors import InputError
from base.fields import knob
from base.text import printable
from hardware.device import device_name, memory_gb, select_device, select_dtype
from inference.chat import has_template, load_template
from inference.generate import generate
from inference.models import FoundModel, find_model
from inference.sampling import Sampling
from inference.text import encode
from operators.loss import IGNORED_TARGET
from tokenization.tokenizers import find_tokenizer, load_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog.\n\tdef f(x): return 3.14 * x  # naïve, 汉字, 🙂\n"
QUESTION = [{"role": "user", "content": "What is two and two?"}]


@dataclass(kw_only=True)
class CheckConfig:
    model: str = knob("", "a folder of Hugging Face's layout, or a hub id")
    tokenizer_only: bool = knob(False, "load no weights")
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the weights")
    context_length: int | None = knob(None, "none: the model's")

    def __post_init__(self) -> None:
        fields.check(self)
        if not self.model:
            raise InputError("--model=DIR_OR_ID is missing")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, CheckConfig, check)


@torch.inference_mode()
def check(config: CheckConfig) -> None:
    """Prints what passes; raises InputError at what does not."""
    device = select_device(config.device)
    dtype = select_dtype(config.dtype, device)
    known = (
        None
        if config.tokenizer_only
        else find_model(model=config.model, context_length=config.context_length)
    )
    source = config.model if known is None else known.path
    found = find_tokenizer(source)
    tokenizer = load_tokenizer(source)
    ids = encode(tokenizer, TEXT)
    print(
        f"ok  tokenizer: {found.length:,} tokens, between documents {printable(found.eot_token)} ({found.eot_id})"
    )
    back = tokenizer.decode(ids, skip_special_tokens=False)
    if back != TEXT:
        raise InputError(f"{source}: {TEXT!r} comes back from the tokenizer as {back!r}")
    print(f"ok  round trip: {len(TEXT.encode())} bytes in {len(ids)} tokens and back")
    if has_template(found):
        template = load_template(source)
        prompt_ids = encode(tokenizer, template.render(QUESTION))
        modes = "with thinking modes" if template.knows_thinking else "without thinking"
        print(f"ok  chat template, {modes}: {len(prompt_ids)} tokens for a question")
    else:
        print("--  no chat template")
    if known is not None:
        check_weights(known, tokenizer, ids, source, device, dtype)
    print("all checks passed")


def check_weights(
    known: FoundModel,
    tokenizer: Any,
    ids: list[int],
    source: object,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """The forward pass and a greedy answer of the model itself."""
    start = time.perf_counter()
    model = known.load(device, dtype)
    where = f"{str(dtype).removeprefix('torch.')} on {device_name(device)}"
    print(f"ok  model: {model.config.get_architecture_name()}, {where}, {time.perf_counter() - start:.1f} s")
    stored = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    inner = model.get_num_params_non_embedding()
    print(f"ok  parameters: {model.get_num_params():,}, {inner:,} without embeddings; {stored:.2f} GB")
    ids = ids[: model.config.block_size]
    logits, _ = model(torch.tensor([ids], device=device))
    if not torch.isfinite(logits).all():
        raise InputError(
            f"{source}: the forward pass gives logits that are not finite in {dtype}: try --dtype=float32"
        )
    targets = torch.tensor([[*ids[1:], IGNORED_TARGET]], device=device)
    loss = float(model(torch.tensor([ids], device=device), targets)[1])
    ignorant = math.log(model.config.vocab_size)
    nats = f"loss {loss:.2f} nats a token (knowing nothing: {ignorant:.2f})"
    print(f"ok  forward pass: logits {list(logits.shape)}, {nats}")
    (answer,) = generate(model, [ids[:8]], 8, Sampling(temperature=0), tokenizer=tokenizer)
    print(f"ok  generation: {tokenizer.decode(ids[:8])!r} continues {answer.text!r}")
    print(f"ok  memory: {memory_gb(device):.2f} GB at most")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
