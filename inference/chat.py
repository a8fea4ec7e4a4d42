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
from typing import Any, NamedTuple

from base.errors import InputError, one_line, require
from base.files import entry, parse_json
from base.text import brief
from inference.sampling import Sampling
from tokenization.tokenizers import find_tokenizer, load_tokenizer

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
        environment = jinja_environment()
        flags = {} if thinking is None else {"enable_thinking": thinking}
        try:
            template = environment.from_string(self.source)
            prompt = template.render(
                messages=messages, add_generation_prompt=True, **self.special_tokens, **flags
            )
            prompt.encode()  # a template may hold half a surrogate pair, which no tokenizer takes
        except Exception as error:  # a template is a program, and may fail in any way
            raise InputError(f"the chat template of {self.where} fails: {one_line(error)}") from None
        return prompt


def jinja_environment() -> Any:
    """That of transformers' apply_chat_template, which templates are written for; the sandbox runs no code.
    Raises MissingPackage without jinja2."""
    jinja2 = require("jinja2", "a chat template")
    sandbox, ext = (require(f"jinja2.{part}", "a chat template") for part in ("sandbox", "ext"))

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    return environment


def load_template(name_or_folder: str | Path) -> ChatTemplate:
    """From chat_template.jinja or tokenizer_config.json of a tokenizer's name, folder or hub id. Raises
    what find_tokenizer raises, and InputError where there is no template."""
    found = find_tokenizer(name_or_folder)
    where = f"tokenizer_config.json of {found.name!r}"
    config = parse_json(found.companions.get("tokenizer_config.json", b"{}"), where)
    if not isinstance(config, dict):
        raise InputError(f"{where} holds {type(config).__name__}, not a JSON object: {COPY}")
    source = template_source(config, where)
    if "chat_template.jinja" in found.companions:
        try:
            source = found.companions["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"chat_template.jinja of {found.name!r} is not UTF-8 at byte {error.start}: {COPY}"
            ) from None
    if not source:
        raise InputError(
            f"{name_or_folder} has no chat template: put the chat_template.jinja of its model beside "
            "tokenizer.json; a model that was trained on documents alone does not chat"
        )
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens = {name: token_text(config[name], name, where) for name in names if config.get(name)}
    tokenizer = load_tokenizer(name_or_folder)
    eos_id = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    stop_ids = tuple(dict.fromkeys(i for i in (eos_id, found.eot_id) if i is not None))
    think_id, end_think_id = tokenizer.token_to_id("<think>"), tokenizer.token_to_id("</think>")
    return ChatTemplate(source, str(name_or_folder), tokens, stop_ids, think_id, end_think_id)


def template_source(config: Mapping[str, Any], where: str) -> str | None:
    """The chat_template of a tokenizer_config.json: one, or the default of several by name. Raises
    InputError."""
    source = config.get("chat_template")
    if isinstance(source, list):
        several = [[entry(e, key, str, where, COPY) for key in ("name", "template")] for e in source]
        source = dict(several).get("default")
    if source is not None and not isinstance(source, str):
        raise InputError(f"{where}: chat_template is {brief(source)}, not a template: {COPY}")
    return source


def token_text(token: Any, name: str, where: str) -> str:
    """A special token as a tokenizer_config.json writes it: a string, or an object with its content. Raises
    InputError."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"{where}: {name} is {brief(token)}, not a token: {COPY}")
    return text


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
