"""Chat: the tokenizer's own template, Qwen3's thinking modes, and where thinking ends and the answer begins.

    template = load_template("/models/Qwen3-0.6B")      # needs no model
    prompt = template.render([{"role": "user", "content": "Why is the sky blue?"}], thinking=True)
    answer = split_thinking(completion.ids, template.think_id, template.end_think_id)

Source: https://huggingface.co/Qwen/Qwen3-0.6B (README.md, tokenizer_config.json).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from base.errors import InputError, MissingPackage
from base.files import entry, parse_json
from inference.sampling import Sampling
from tokenization.tokenizers import find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Qwen3's model card. With thinking "DO NOT use greedy decoding, as it can lead to [...] endless repetitions".
THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
NOT_THINKING = Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)


COPY = "copy it again"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in Jinja, and the ids that it works with."""

    source: str = field(repr=False)
    where: str
    special_tokens: dict[str, str]  # bos_token, eos_token, pad_token
    stop_ids: tuple[int, ...]  # that end a turn or a document
    think_id: int | None  # <think>
    end_think_id: int | None  # </think>

    @property
    def knows_thinking(self) -> bool:
        """Whether `thinking` changes what it renders: Qwen3-4B-Instruct-2507, for one, has no such mode."""
        return "enable_thinking" in self.source and self.end_think_id is not None

    def render(self, messages: Sequence[Mapping[str, str]], thinking: bool | None = None) -> str:
        """The prompt up to where the assistant speaks. `thinking` None leaves enable_thinking unset, which
        is on for Qwen3. Raises InputError where the template is not Jinja or refuses the messages."""
        try:
            import jinja2
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise MissingPackage("a chat template needs the package jinja2: pip install jinja2") from error

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        # The environment of transformers' apply_chat_template, which templates are written for; the sandbox
        # runs no code
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        environment.globals["raise_exception"] = raise_exception
        flags = {} if thinking is None else {"enable_thinking": thinking}
        try:
            template = environment.from_string(self.source)
            return template.render(
                messages=messages, add_generation_prompt=True, **self.special_tokens, **flags
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise InputError(f"the chat template of {self.where} fails: {error}") from None


def load_template(name_or_folder: str | Path) -> ChatTemplate:
    """From chat_template.jinja or tokenizer_config.json of a tokenizer's name, folder or hub id. Raises
    what find_tokenizer raises, and InputError where there is none."""
    found = find_tokenizer(name_or_folder)
    where = f"tokenizer_config.json of {name_or_folder}"
    config = parse_json(found.companions.get("tokenizer_config.json", b"{}"), where)
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name
        by_name = {entry(e, "name", str, where, COPY): entry(e, "template", str, where, COPY) for e in source}
        source = by_name.get("default")
    if "chat_template.jinja" in found.companions:
        try:
            source = found.companions["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"chat_template.jinja of {name_or_folder} is not UTF-8 ({error}): {COPY}"
            ) from None
    if not source:
        raise InputError(
            f"{name_or_folder} has no chat template: put the chat_template.jinja of its model beside tokenizer.json; a "
            "model that was trained on documents alone does not chat"
        )
    if not isinstance(source, str):
        raise InputError(f"{where}: 'chat_template' is {type(source).__name__}, expected text: {COPY}")
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if token := config.get(name):
            tokens[name] = entry(
                token if isinstance(token, dict) else {"content": token}, "content", str, where, COPY
            )
    tokenizer = load_tokenizer(name_or_folder)
    eos_id = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    stop_ids = tuple(dict.fromkeys(i for i in (eos_id, found.eot_id) if i is not None))
    think_id, end_think_id = tokenizer.token_to_id("<think>"), tokenizer.token_to_id("</think>")
    return ChatTemplate(source, str(name_or_folder), tokens, stop_ids, think_id, end_think_id)


class Answer(NamedTuple):
    """The ids of an answer in two parts; the tags belong to neither."""

    thinking: list[int]
    content: list[int]
    unfinished: bool  # thinking began and did not end: what there is of it stands in content


def split_thinking(ids: Sequence[int], think_id: int | None, end_think_id: int | None) -> Answer:
    """Splits at the last </think>; without one all is content."""
    ids = list(ids)
    end = len(ids) - 1 - ids[::-1].index(end_think_id) if end_think_id in ids else None
    thinking, content = ([], ids) if end is None else (ids[:end], ids[end + 1 :])
    if thinking[:1] == [think_id]:
        thinking = thinking[1:]
    return Answer(thinking, content, think_id is not None and think_id in content)


def decode(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True).strip("\n")
