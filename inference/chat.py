"""Chat: the tokenizer's own template, Qwen3's thinking modes, and where thinking ends and the answer begins.

    template = load_template("/models/Qwen3-0.6B")      # needs no model
    prompt = template.render([{"role": "user", "content": "Why is the sky blue?"}], thinking=True)
    answer = split_thinking(completion.ids, template.think_id, template.end_think_id)

Source: https://huggingface.co/Qwen/Qwen3-0.6B (README.md, tokenizer_config.json).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import InputError
from base.files import entry, parse_json
from base.text import brief, printable
from inference.rendering import render_template
from inference.sampling import Sampling
from tokenization.tokenizer_files import TokenizerFiles, loaded
from tokenization.tokenizers import MORE_TEMPLATES, find_tokenizer

# Qwen3's model card. With thinking "DO NOT use greedy decoding, as it can lead to [...] endless repetitions".
THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
NOT_THINKING = Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)
COPY = "copy it again"
NEWLINES = re.compile("\r\n?")  # a text file's, whatever system wrote it


@dataclass(frozen=True)
class ChatTemplate:
    """The chat templates of a tokenizer, in Jinja, and the ids that they work with."""

    sources: Mapping[str, str] = field(repr=False)  # by name; most have `default` alone
    where: str
    special_tokens: dict[str, str]  # bos_token, eos_token, pad_token
    stop_ids: tuple[int, ...]  # that end a turn or a document
    think_id: int | None  # <think>
    end_think_id: int | None  # </think>

    @property
    def source(self) -> str:
        return self.named()

    @property
    def knows_thinking(self) -> bool:
        """Whether `thinking` changes what it renders: Qwen3-4B-Instruct-2507, for one, has no such mode."""
        return "enable_thinking" in self.source and self.end_think_id is not None

    def named(self, name: str | None = None, tools: bool = False) -> str:
        """The template of that name; without one, `tool_use` for tools, where there is one, else the default.
        Raises InputError."""
        chosen = name or ("tool_use" if tools and "tool_use" in self.sources else "default")
        if chosen not in self.sources:
            known = ", ".join(brief(name) for name in self.sources)
            raise InputError(f"{self.where} has no chat template {brief(chosen)}: choose one of {known}")
        return self.sources[chosen]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        add_generation_prompt: bool = True,
        **more: Any,
    ) -> str:
        """The prompt up to where the assistant speaks. `thinking` None leaves enable_thinking unset, which
        is on for Qwen3; `tools` are JSON schemas, `documents` have a title and a text, `more` is what this
        template knows besides. Raises InputError where the template is not Jinja, refuses the messages, or
        needs more time or room than a template may have."""
        source = self.named(template, tools is not None)
        if not messages:
            raise InputError("a conversation without messages cannot be rendered: pass one at least")
        flags = {} if thinking is None else {"enable_thinking": thinking}
        variables = {
            **self.special_tokens,
            **flags,
            **more,
            "messages": [_message(message) for message in messages],
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        return render_template(source, variables, self.where)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As a template sees it: what is None is absent, and reasoning goes by each of its names."""
    message = {key: value for key, value in message.items() if value is not None}
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def load_template(name_or_folder: str | Path) -> ChatTemplate:
    """From chat_template.jinja, additional_chat_templates/ or tokenizer_config.json of a tokenizer's name,
    folder or hub id. Raises what find_tokenizer raises, and InputError where there is no template."""
    found = find_tokenizer(name_or_folder)
    where = f"tokenizer_config.json of {found.name!r}"
    config = parse_json(found.companions.get("tokenizer_config.json", b"{}"), where)
    if not isinstance(config, dict):
        raise InputError(f"{where} holds {type(config).__name__}, not a JSON object: {COPY}")
    sources = _template_files(found) or template_sources(config, where)
    if not any(sources.values()):
        raise InputError(
            f"{printable(str(name_or_folder))} has no chat template: put the chat_template.jinja of its model beside "
            "tokenizer.json; a model that was trained on documents alone does not chat"
        )
    tokenizer = loaded(found.json, f"tokenizer.json of {found.name!r}", "a chat template")
    eos_id = tokenizer.token_to_id(found.names["eos_token"]) if "eos_token" in found.names else None
    stop_ids = tuple(dict.fromkeys(i for i in (eos_id, found.eot_id) if i is not None))
    think_id, end_think_id = tokenizer.token_to_id("<think>"), tokenizer.token_to_id("</think>")
    where = printable(str(name_or_folder))
    return ChatTemplate(sources, where, found.names, stop_ids, think_id, end_think_id)


def has_template(found: TokenizerFiles) -> bool:
    config = found.companions.get("tokenizer_config.json", b"")
    return b'"chat_template"' in config or bool(_template_files(found))


def _template_files(found: TokenizerFiles) -> dict[str, str]:
    """The templates in files of their own, by name. Where there is one, those of tokenizer_config.json do
    not count."""
    sources = {}
    for file, content in found.companions.items():
        folder, _, name = file.rpartition("/")
        if file == "chat_template.jinja" or folder == MORE_TEMPLATES:
            try:
                sources["default" if not folder else name.removesuffix(".jinja")] = content.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{file} of {found.name!r} is not UTF-8 at byte {error.start}: {COPY}"
                ) from None
    return {name: NEWLINES.sub("\n", source) for name, source in sources.items()}


def template_sources(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """The chat_template of a tokenizer_config.json by name: one, which is the default, or several. Raises
    InputError."""
    source = config.get("chat_template")
    if isinstance(source, list):
        several = [[entry(e, key, str, where, COPY) for key in ("name", "template")] for e in source]
        return dict(several)
    sources = source if isinstance(source, dict) else {} if source is None else {"default": source}
    for template in sources.values():
        if not isinstance(template, str):
            raise InputError(f"{where}: chat_template is {brief(template)}, not a template: {COPY}")
    return sources


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
