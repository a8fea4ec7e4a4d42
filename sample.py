"""Text from a trained model, to the terminal as it is drawn.

    python sample.py --out_dir=out-quickstart --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --seed=1
    python sample.py --model=Qwen/Qwen3-0.6B --prompt="The capital of France is" --temperature=0
    python sample.py --model=Qwen/Qwen3-0.6B --chat --thinking=off

The fields of SampleConfig are the flags. `--prompt=FILE:path` reads the prompt from a file. `--chat`
without a prompt holds a conversation on the terminal; with one it answers that and ends."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from base.cli import parse_flags
from base.errors import InputError, input_errors
from base.fields import check
from base.text import check_utf8
from hardware.device import compile_problem, select_device, select_dtype
from inference.chat import NOT_THINKING, THINKING, ChatTemplate, decode, load_template, split_thinking
from inference.generate import Completion, generate, stream
from inference.models import find_model
from inference.sampling import Sampling
from model_builder import ConfigurableGPT
from tokenization.tokenizers import find_tokenizer, load_tokenizer
from tokenization.vocabulary import read_vocabulary

DEFAULT_SAMPLING = Sampling(temperature=0.8)


@dataclass(kw_only=True)
class SampleConfig:
    # What speaks: a run folder, or a model of Hugging Face's layout
    out_dir: str = "out"
    step: int | None = None  # None: the newest checkpoint that verifies
    model: str | None = None  # a folder or hub id, instead of out_dir
    tokenizer: str | None = None  # a name, folder or hub id; None: the run's or the model's own
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # weights and cache
    context_length: int | None = None  # None: the model's; a smaller one saves memory
    compile: bool = False  # one graph a token: twice the speed after some seconds of compilation

    # What it is asked
    prompt: str = ""  # empty: the beginning of a document
    chat: bool = False
    system: str = ""  # of a chat; empty: none
    thinking: Literal["auto", "on", "off"] = "auto"  # of a chat; auto: as the template has it
    show_thinking: Literal["dim", "hide"] = "dim"

    # How it answers. None: 0.8 and no filter; in a chat Qwen3's values for the mode
    temperature: float | None = None  # 0: greedy
    top_k: int | None = None  # 0: off
    top_p: float | None = None  # 1: off
    min_p: float | None = None  # 0: off
    repetition_penalty: float = 1.0  # 1: off
    max_new_tokens: int = 200
    num_samples: int = 1
    seed: int = 1337  # sample i draws with seed + i
    stop: str = ""  # ends the text; several are separated by ||, \n is a line break
    vocabulary: str | None = None  # JSON of `python -m tokenization.vocabulary`: only its ids are sampled
    output: Literal["text", "json"] = "text"  # json: one object a sample, with ids and log-probabilities

    def __post_init__(self) -> None:
        check(self)
        self.sampling()
        check_utf8(prompt=self.prompt, system=self.system, stop=self.stop)
        for name in ("max_new_tokens", "num_samples", "context_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**62:
            raise InputError(f"seed={self.seed} must lie in [0, 2^62)")
        if self.chat and self.num_samples > 1:
            raise InputError(f"num_samples={self.num_samples} does not go with --chat: it answers once")
        if self.chat and not self.prompt and self.output == "json":
            raise InputError("output='json' with --chat needs --prompt=...: a conversation is text")
        if not self.chat and (self.thinking != "auto" or self.system):
            raise InputError("--thinking and --system belong to a chat: add --chat")

    def sampling(self, preset: Sampling = DEFAULT_SAMPLING) -> Sampling:
        """The preset with the values that were given."""
        names = ("temperature", "top_k", "top_p", "min_p")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(preset, repetition_penalty=self.repetition_penalty, **given)


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with input_errors():
        words, flags = parse_flags(argv, get_type_hints(SampleConfig))
        if words:
            raise InputError(f"{words[0]!r} is no flag: did you mean --prompt={words[0]!r}?")
        config = SampleConfig(**flags)
        device = select_device(config.device)
        dtype = select_dtype(config.dtype, device)
        text = config.prompt
        if text.startswith("FILE:"):
            text = Path(text.removeprefix("FILE:")).read_text(encoding="utf-8")
        if config.compile and (problem := compile_problem(device)):
            raise InputError(f"--compile is not possible: {problem}")

        # What is wrong with the tokenizer, the template or the vocabulary is said before a model is loaded
        found = find_model(config.out_dir, config.step, config.model, config.tokenizer, config.context_length)
        eot_id = found.eot_id
        tokenizer = load_tokenizer(found.tokenizer)
        template = load_template(found.tokenizer) if config.chat else None
        stop_ids = {eot_id} if eot_id is not None else set()
        if template is not None:
            stop_ids |= set(template.stop_ids)
        allowed = None
        if config.vocabulary is not None:
            vocabulary = read_vocabulary(config.vocabulary, find_tokenizer(found.tokenizer))
            tags = {template.think_id, template.end_think_id} - {None} if template is not None else set()
            allowed = sorted({*vocabulary["ids"], *stop_ids, *tags})  # else nothing could end
        prompt_ids = tokenizer.encode(text, add_special_tokens=found.begins_with_bos).ids
        prompt_ids = prompt_ids or ([] if eot_id is None else [eot_id])
        if not prompt_ids and not config.chat:
            raise InputError(
                "the prompt has no tokens and this run's tokenizer no end-of-text: pass --prompt=..."
            )
        if allowed is not None and allowed[-1] >= found.architecture.vocab_size:
            rows = found.architecture.vocab_size
            raise InputError(f"{config.vocabulary} has ids up to {allowed[-1]}, the model {rows} rows")
        model = found.load(device, dtype)
    options = {
        "stop_ids": stop_ids,
        "stop_strings": [s.replace("\\n", "\n") for s in config.stop.split("||") if s],
        "tokenizer": tokenizer,
        "allowed_ids": allowed,
        "compiled": config.compile,
        "logprobs": config.output == "json",
    }
    if template is not None:
        return chat(model, tokenizer, template, config, text, options)

    sampling = config.sampling()
    if config.num_samples == 1 and config.output == "text":
        print(text, end="", flush=True)
        for (event,) in stream(
            model, [prompt_ids], config.max_new_tokens, sampling, seed=config.seed, **options
        ):
            print(event.text, end="", flush=True)
        print()
        return 0
    prompts = [prompt_ids] * config.num_samples
    for i, answer in enumerate(
        generate(model, prompts, config.max_new_tokens, sampling, seed=config.seed, **options)
    ):
        if config.output == "json":
            print_json(text, answer)
        else:
            print("---\n" * (i > 0) + text + answer.text)
    return 0


def print_json(prompt: str, answer: Completion, **more: object) -> None:
    record = {"prompt": prompt, "text": answer.text, **more, "ids": answer.ids, "logprobs": answer.logprobs}
    print(json.dumps(record | {"finish": answer.finish}, ensure_ascii=False))


def chat(
    model: ConfigurableGPT,
    tokenizer: Any,
    template: ChatTemplate,
    config: SampleConfig,
    text: str,
    options: dict[str, Any],
) -> int:
    """One answer to `text`, or a conversation where it is empty, until the input ends."""
    if config.thinking != "auto" and not template.knows_thinking:
        print(
            f"note: the chat template of {template.where} knows no thinking; --thinking changes nothing",
            file=sys.stderr,
        )
    flag = {"auto": None, "on": True, "off": False}[config.thinking] if template.knows_thinking else None
    thinks = template.knows_thinking and flag is not False
    sampling = config.sampling(THINKING if thinks else NOT_THINKING)
    if thinks and sampling.temperature == 0:
        print(
            "warning: greedy decoding with thinking tends to repeat itself without end; Qwen3 advises against",
            file=sys.stderr,
        )
    messages = [{"role": "system", "content": config.system}] if config.system else []
    for n, question in enumerate([text] if text else read_questions()):
        messages.append({"role": "user", "content": question})
        with input_errors():
            check_utf8(question=question)
            prompt = template.render(messages, flag)
            prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
            if not prompt_ids:
                raise InputError(
                    f"the chat template of {template.where} makes nothing of this: it needs another"
                )
        answer, shown = Completion(), Display(prompt_ids, template, config)
        for (event,) in stream(
            model, [prompt_ids], config.max_new_tokens, sampling, seed=config.seed + n, **options
        ):
            answer.text, answer.finish = answer.text + event.text, event.finish or ""
            answer.ids += [event.id] if event.id is not None else []
            answer.logprobs += [event.logprob] if event.logprob is not None else []
            shown.write(event.id, event.text)
        shown.close()
        split = split_thinking(answer.ids, template.think_id, template.end_think_id)
        content, thinking = decode(tokenizer, split.content), decode(tokenizer, split.thinking)
        unfinished = split.unfinished or (shown.opened_by_prompt and template.end_think_id not in answer.ids)
        if config.output == "json":
            print_json(prompt, answer, thinking=thinking, content=content, unfinished_thinking=unfinished)
        elif config.show_thinking == "hide" and split.thinking:
            print(
                f"({len(split.thinking)} tokens of thinking are hidden; --show_thinking=dim)", file=sys.stderr
            )
        if unfinished:
            print(
                f"warning: thinking did not end within {len(answer.ids)} tokens: raise --max_new_tokens",
                file=sys.stderr,
            )
        messages.append({"role": "assistant", "content": content})
    return 0


def read_questions() -> Iterator[str]:
    """The lines that are typed, or piped in."""
    while True:
        print("> " if sys.stdin.isatty() else "", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


DIM, PLAIN = "\033[2m", "\033[0m"


class Display:
    """An answer on the terminal as it comes, thinking dimmed, or hidden. Where the output is no terminal,
    thinking is marked by its tags alone."""

    def __init__(self, prompt_ids: Sequence[int], template: ChatTemplate, config: SampleConfig) -> None:
        self.template, self.silent, self.hide = (
            template,
            config.output == "json",
            config.show_thinking == "hide",
        )
        self.colour, self.hidden = sys.stdout.isatty(), ""
        ends = [i for i in prompt_ids if i is not None and i in (template.think_id, template.end_think_id)]
        self.thinking = self.opened_by_prompt = bool(ends) and ends[-1] == template.think_id
        if self.thinking and self.colour:
            print(DIM, end="")

    def write(self, token: int | None, text: str) -> None:
        if self.silent:
            return
        if token is not None and token == self.template.think_id:
            self.thinking = True
            text = DIM + text if self.colour else text
        hidden = self.thinking and self.hide
        if token is not None and token == self.template.end_think_id:
            self.thinking = False
            text = text + PLAIN if self.colour else text
        self.hidden = self.hidden + text if self.thinking and hidden else ""
        print("" if hidden else text, end="", flush=True)

    def close(self) -> None:
        """Thinking that never ended is the answer, as split_thinking has it: it is shown after all."""
        if not self.silent:
            print(self.hidden + (PLAIN if self.colour else ""), flush=True)


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except BrokenPipeError:  # whoever reads, as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
