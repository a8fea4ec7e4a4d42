"""The template that comes with the tokenizer "qwen3" renders as that of Qwen3's models, which TRL publishes
too: thinking on, off and unset, several turns, tools and their responses, a system prompt. It needs no hub."""

import importlib.util
import random
from pathlib import Path

import pytest

from inference.chat import load_template
from inference.rendering import render_template

OURS = (Path(__file__).parents[2] / "tokenization/qwen3.jinja").read_text()
THEIRS = (Path(importlib.util.find_spec("trl").origin).parent / "chat_templates/qwen3.jinja").read_text()
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "é <b> 'x'", "parameters": {"type": "object"}},
}
TEXTS = [
    "Why?", "", "\n\n two\nlines \n", "<think>\nhm\n</think>\n\nSo.", "<think>\n\n</think>\n\nSo.", "a</think>b</think>c",
    "<think> open", "<tool_response>\nx\n</tool_response>", "é \U0001f642 <|im_end|>", "{{ 7 }} {% raw %}",
]  # fmt: skip


def random_chat(rng):
    messages = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 7)):
        role = rng.choice(["user", "user", "assistant", "assistant", "tool", "system", "other"])
        message = {"role": role, "content": rng.choice(TEXTS)}
        if role == "user" and rng.random() < 0.1:
            message["content"] = [{"type": "text", "text": "x"}]
        if role == "assistant":
            if rng.random() < 0.4:
                message["reasoning_content"] = rng.choice(["hm", "\nhm\n\n", "", 5])
            if rng.random() < 0.4:
                call = {"name": "f", "arguments": rng.choice([{"a": "é"}, '{"a": 1}', {}])}
                message["tool_calls"] = [call if rng.random() < 0.3 else {"function": call}] * rng.randint(
                    0, 3
                )
            if rng.random() < 0.1:
                del message["content"]
        messages.append(message)
    return messages


def test_any_conversation():
    rng = random.Random(0)
    for _ in range(400):
        variables = {"messages": random_chat(rng), "add_generation_prompt": rng.random() < 0.7}
        variables["tools"] = rng.choice([None, [], [TOOL], [TOOL, TOOL]])
        if rng.random() < 0.6:
            variables["enable_thinking"] = rng.random() < 0.5
        assert render_template(OURS, variables, "ours") == render_template(THEIRS, variables, "theirs"), (
            variables
        )


USER, ASSISTANT = "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n"


@pytest.mark.parametrize("thinking, end", [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")])
def test_the_strings_of_the_model_card(thinking, end):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSo."},
        {"role": "user", "content": "And?"},
    ]
    variables = {"messages": messages, "add_generation_prompt": True}
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n" + USER.format("Why?") + ASSISTANT + "So.<|im_end|>\n"
    )
    variables |= {} if thinking is None else {"enable_thinking": thinking}
    assert render_template(OURS, variables, "it") == expected + USER.format("And?") + ASSISTANT + end


def test_it_is_installed_with_the_tokenizer(qwen3, qwen3_folder, monkeypatch):
    """Chat works with the name alone, with what is saved, and in transformers."""
    from transformers import AutoTokenizer

    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert (qwen3_folder / "chat_template.jinja").read_text() == OURS
    template = load_template(qwen3_folder)
    assert template.knows_thinking and template.stop_ids == (151_645, 151_643)
    assert (template.think_id, template.end_think_id) == (151_667, 151_668)
    monkeypatch.undo()
    question = [{"role": "user", "content": "Why?"}]
    auto = AutoTokenizer.from_pretrained(qwen3_folder)
    assert auto.apply_chat_template(question, add_generation_prompt=True, tokenize=False) == template.render(
        question
    )
