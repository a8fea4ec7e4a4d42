"""Text from a trained model, to the terminal as it is drawn.

    python sample.py --out_dir=out-quickstart --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --seed=1
    python sample.py --model=Qwen/Qwen3-0.6B --prompt="The capital of France is" --temperature=0
    python sample.py --model=Qwen/Qwen3-0.6B --chat --thinking=off

`--prompt=FILE:path` reads the prompt from a file. `--chat` without a prompt holds a conversation on
the terminal; with one it answers that and ends."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from base import cli, fields
from base.errors import InputError
from base.fields import knob
from base.files import read_text
from base.text import check_utf8, printable
from hardware.device import compile_problem, select_device, select_dtype
from inference.chat import NOT_THINKING, THINKING, ChatTemplate, load_template, split_thinking
from inference.generate import Completion, generate, stream
from inference.models import FoundModel, find_model
from inference.sampling import Sampling
from inference.terminal import Display, read_questions
from inference.text import decode, encode
from model_builder import ConfigurableGPT
from tokenization.tokenizers import find_tokenizer, load_tokenizer
from tokenization.vocabulary import read_vocabulary

DEFAULT_SAMPLING = Sampling(temperature=0.8)


@dataclass(kw_only=True)
class SampleConfig:
    # What speaks: a run folder, or a model of Hugging Face's layout
    out_dir: str = knob("out", "the run")
    step: int | None = knob(None, "of the checkpoint; none: the newest that verifies")
    model: str | None = knob(None, "a folder or hub id, instead of out_dir")
    tokenizer: str | None = knob(None, "a name, folder or hub id; none: the run's or the model's own")
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of weights and cache")
    context_length: int | None = knob(
        None, "none: the model's; a smaller one saves memory", bounds="[1, inf)"
    )
    compile: bool = knob(False, "one graph a token: twice the speed after some seconds of compilation")

    # What it is asked
    prompt: str = knob(
        "", "FILE:path reads it from a file; empty: the beginning of a document, or a conversation"
    )
    chat: bool = knob(False, "answer as an assistant, by the tokenizer's chat template")
    system: str = knob("", "system prompt of a chat; empty: none")
    thinking: Literal["auto", "on", "off"] = knob("auto", "of a chat; auto: as the template has it")
    show_thinking: Literal["dim", "hide"] = knob("dim", "how thinking is shown")

    # How it answers
    temperature: float | None = knob(None, "0: greedy; none: 0.8, in a chat Qwen3's value for the mode")
    top_k: int | None = knob(None, "0: off; none: off, in a chat Qwen3's value")
    top_p: float | None = knob(None, "1: off; none: off, in a chat Qwen3's value")
    min_p: float | None = knob(None, "0: off; none: off")
    repetition_penalty: float = knob(1.0, "1: off")
    max_new_tokens: int = knob(200, "most tokens of an answer", bounds="[1, inf)")
    num_samples: int = knob(1, "answers to the one prompt", bounds="[1, inf)")
    seed: int = knob(1337, "sample i draws with seed + i", bounds="[0, 2^62)")
    stop: str = knob("", "ends the text; several are separated by ||, \\n is a line break")
    vocabulary: str | None = knob(
        None, "JSON of `python -m tokenization.vocabulary`: only its ids are sampled"
    )
    output: Literal["text", "json"] = knob(
        "text", "json: one object a sample, with ids and log-probabilities"
    )

    def __post_init__(self) -> None:
        fields.check(self)
        self.sampling()
        check_utf8(prompt=self.prompt, system=self.system, stop=self.stop)
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
    return cli.run(argv, __doc__, SampleConfig, sample)


def sample(config: SampleConfig) -> None:
    device = select_device(config.device)
    dtype = select_dtype(config.dtype, device)
    text = config.prompt
    if text.startswith("FILE:"):
        text = read_text(text.removeprefix("FILE:"))
    if config.compile and (problem := compile_problem(device)):
        raise InputError(f"--compile is not possible: {problem}")

    # What is wrong with the tokenizer, the template or the vocabulary is said before a model is loaded
    found = find_model(config.out_dir, config.step, config.model, config.tokenizer, config.context_length)
    tokenizer = load_tokenizer(found.tokenizer)
    template = load_template(found.tokenizer) if config.chat else None
    options = stream_options(config, found, tokenizer, template)
    if template is not None:
        chat(found.load(device, dtype), template, config, text, options)
        return
    prompt_ids = encode(tokenizer, text, special=found.begins_with_bos)
    prompt_ids = prompt_ids or ([] if found.eot_id is None else [found.eot_id])
    if not prompt_ids:
        raise InputError(
            "the prompt has no tokens and this run's tokenizer no end-of-text: pass --prompt=..."
        )
    complete(found.load(device, dtype), prompt_ids, config, text, options)


def stream_options(
    config: SampleConfig, found: FoundModel, tokenizer: Any, template: ChatTemplate | None
) -> dict[str, Any]:
    """What inference.generate.stream is asked for: ends, allowed ids and so on. Raises InputError."""
    ends = found.ends(tokenizer)
    stop_ids = set(ends.ids)
    if template is not None:
        stop_ids |= set(template.stop_ids)
    allowed = None
    if config.vocabulary is not None:
        vocabulary = read_vocabulary(config.vocabulary, find_tokenizer(found.tokenizer))
        tags = {template.think_id, template.end_think_id} - {None} if template is not None else set()
        allowed = sorted({*vocabulary["ids"], *stop_ids, *tags})  # else nothing could end
        rows = found.architecture.vocab_size
        if allowed[-1] >= rows:
            raise InputError(f"{config.vocabulary} has ids up to {allowed[-1]}, the model {rows} rows")
    return {
        "stop_ids": stop_ids,
        "stop_strings": [*(s.replace("\\n", "\n") for s in config.stop.split("||") if s), *ends.strings],
        "tokenizer": tokenizer,
        "allowed_ids": allowed,
        "compiled": config.compile,
        "logprobs": config.output == "json",
    }


def complete(
    model: ConfigurableGPT, prompt_ids: list[int], config: SampleConfig, text: str, options: dict[str, Any]
) -> None:
    """What follows the prompt, as it comes; several samples one after another."""
    n, sampling, seed = config.max_new_tokens, config.sampling(), config.seed
    if config.num_samples == 1 and config.output == "text":
        print(printable(text), end="", flush=True)
        for (event,) in stream(model, [prompt_ids], n, sampling, seed=seed, **options):
            print(printable(event.text), end="", flush=True)
        print()
        return
    answers = generate(model, [prompt_ids] * config.num_samples, n, sampling, seed=seed, **options)
    for i, answer in enumerate(answers):
        if config.output == "json":
            print_json(text, answer)
        else:
            print("---\n" * (i > 0) + printable(text + answer.text))


def print_json(prompt: str, answer: Completion, **more: object) -> None:
    record = {"prompt": prompt, "text": answer.text, **more, "ids": answer.ids, "logprobs": answer.logprobs}
    line = json.dumps(record | {"finish": answer.finish}, ensure_ascii=False)
    print(re.sub(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", lambda c: f"\\u{ord(c[0]):04x}", line))


def chat(
    model: ConfigurableGPT, template: ChatTemplate, config: SampleConfig, text: str, options: dict[str, Any]
) -> None:
    """One answer to `text`, or a conversation where it is empty, until the input ends."""
    if config.thinking != "auto" and not template.knows_thinking:
        say(f"note: the chat template of {template.where} has no thinking mode; --thinking changes nothing")
    flag = {"auto": None, "on": True, "off": False}[config.thinking] if template.knows_thinking else None
    thinks = template.knows_thinking and flag is not False
    sampling = config.sampling(THINKING if thinks else NOT_THINKING)
    if thinks and sampling.temperature == 0:
        say("warning: greedy decoding with thinking tends to repeat itself without end; Qwen3's card advises "
            "against it")  # fmt: skip
    messages = [{"role": "system", "content": config.system}] if config.system else []
    for n, question in enumerate([text] if text else read_questions()):
        check_utf8(question=question)
        messages.append({"role": "user", "content": question})
        content = answer_to(model, template, config, template.render(messages, flag), sampling, n, options)
        messages.append({"role": "assistant", "content": content})


def answer_to(
    model: ConfigurableGPT,
    template: ChatTemplate,
    config: SampleConfig,
    prompt: str,
    sampling: Sampling,
    turn: int,
    options: dict[str, Any],
) -> str:
    """Shows the answer to a rendered prompt as it comes; returns what it says after thinking."""
    tokenizer = options["tokenizer"]
    prompt_ids = encode(tokenizer, prompt)
    if not prompt_ids:
        raise InputError(f"the chat template of {template.where} makes nothing of this: it needs another")
    answer = Completion()
    shown = Display(prompt_ids, template, config.show_thinking, silent=config.output == "json")
    for (event,) in stream(
        model, [prompt_ids], config.max_new_tokens, sampling, seed=config.seed + turn, **options
    ):
        answer.add(event)
        shown.write(event.id, event.text)
    shown.close()
    split = split_thinking(answer.ids, template.think_id, template.end_think_id)
    content, thinking = decode(tokenizer, split.content), decode(tokenizer, split.thinking)
    unfinished = split.unfinished or (shown.opened_by_prompt and template.end_think_id not in answer.ids)
    if config.output == "json":
        print_json(prompt, answer, thinking=thinking, content=content, unfinished_thinking=unfinished)
    elif config.show_thinking == "hide" and split.thinking:
        say(f"({len(split.thinking)} tokens of thinking are hidden; --show_thinking=dim)")
    if unfinished:
        say(f"warning: thinking did not end within {len(answer.ids)} tokens: raise --max_new_tokens")
    return content


def say(line: str) -> None:
    print(printable(line), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
