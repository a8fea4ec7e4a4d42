"""Chat templates render as transformers' apply_chat_template renders them, or are refused in one line: those
that TRL publishes, every feature of the environment, several by name. What a template may not do ends within
seconds."""

import functools
import importlib.util
import json
import time
from datetime import datetime
from pathlib import Path

import pytest
from tokenizer_layouts import byte_level, theirs, write_folder

from base.errors import InputError, MissingPackage
from inference import rendering
from inference.chat import has_template, load_template
from inference.rendering import render_template
from tokenization.tokenizers import find_tokenizer

TRL = sorted((Path(importlib.util.find_spec("trl").origin).parent / "chat_templates").glob("*.jinja"))
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "a <town> & more"}},
    "required": ["city"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "the 'weather'", "parameters": SCHEMA},
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich"}},
}
ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSo."}
CHATS = {
    "one": [ASK],
    "system": [{"role": "system", "content": " Be brief. "}, ASK],
    "turns": [ASK, SAY, {"role": "user", "content": "And?\n"}, {"role": "assistant", "content": "Yes."}],
    "reasoning": [ASK, {"role": "assistant", "content": "So.", "reasoning_content": "hm"}, ASK],
    "thinking": [ASK, {"role": "assistant", "content": "So.", "thinking": "hm"}],
    "calls": [
        ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"sun\": true}"}, ASK,
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image"}]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {"tokenizer.json": json.loads(byte_level().to_str()), "tokenizer_config.json": config}
    return write_folder(tmp_path_factory.mktemp("templates") / "t", files)


@pytest.fixture(scope="module")
def auto(folder):
    return theirs(folder)


def outcome(call):
    """The text; an exception where it is refused."""
    try:
        return call()
    except Exception as error:
        return error


def theirs_of(auto, messages, **options):
    options = {"tokenize": False, "add_generation_prompt": True} | options
    return outcome(lambda: auto.apply_chat_template(messages, **options))


def compare(template, auto, source, messages, **options):
    """Ours is theirs: the same text, or neither."""
    expected = theirs_of(auto, messages, chat_template=source, **options)
    got = outcome(lambda: template.render(messages, **options))
    if isinstance(expected, Exception):
        assert isinstance(got, InputError) and "\n" not in str(got), (expected, got)
        return False
    assert got == expected
    return True


def load(folder, source):
    (folder / "chat_template.jinja").write_text(source)
    return load_template(folder)


@pytest.mark.parametrize("path", TRL, ids=[path.stem for path in TRL])
def test_what_trl_publishes(folder, auto, path):
    source = path.read_text()
    template = load(folder, source)
    rendered = [compare(template, auto, source, chat) for chat in CHATS.values()]
    rendered += [
        compare(template, auto, source, CHATS[name], tools=TOOLS) for name in ("one", "system", "calls")
    ]
    for flag in (True, False):
        rendered.append(compare(template, auto, source, CHATS["reasoning"], enable_thinking=flag))
    rendered.append(compare(template, auto, source, CHATS["turns"], add_generation_prompt=False))
    assert any(rendered)


def test_there_are_templates_of_trl():
    assert len(TRL) > 20


@pytest.mark.parametrize("source", [
    "{% for m in messages %}\n    {% if loop.index > 1 %}{% break %}{% endif %}\n  {{ m.role }}\n{% endfor %}\nend\n",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m['content'] }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{%- generation -%} a {%- endgeneration %}",
    "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
    "{{ {'a': 'é'} | tojson(ensure_ascii=True, separators=(',', ':')) }}",
    "{{ dict(a=1) }}{{ dict.fromkeys(['a'], 2) }}",
    "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.self }}",
    "{% set ns = namespace(_x=0) %}", "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x }}",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(bos_token) }}{{ f(eos_token) }}{{ f(pad_token) }}{{ f(unk_token) }}",
    "{{ tools is defined }}{{ tools is none }}{{ documents }}{{ add_generation_prompt }}{{ enable_thinking is defined }}",
    "{% for d in documents or [] %}{{ d.title }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}",
    "{{ raise_exception('roles must alternate') }}", "{{ ''.__class__ }}", "{{ messages.append(1) }}", "{% include 'x' %}",
    "{{ messages[0].content.format(1) }}{{ messages | selectattr('role', 'equalto', 'user') | list | tojson }}",
    "{{ messages[0].reasoning_content is defined }}{{ 'x' if messages[0].nothing }}", "{{ undefined_name.x }}", "{% if %}",
    "{{ '%s' % 'a' }}{{ 'a' ~ 1 }}{{ [1, 2][::-1] }}{{ messages[-1]['role'] | upper }}{{ ' a ' | trim }}{{ '<' | e }}",
    "{# comment #}\n\n  {%- set x = 1 -%}  \n{{ x }}  \n", "{{ cycler('a', 'b').next() }}{{ range(3) | list }}",
    "\ud7ff\U0001f642 {{ messages[0].content }}", "", "{% call(x) f() %}{% endcall %}", "{% do 1 %}",
    "{% raw %}{{ x }}{% endraw %}",
])  # fmt: skip
def test_every_feature_of_the_environment(folder, auto, source):
    template = load(folder, source or " ")
    for name in ("one", "turns", "calls"):
        compare(template, auto, source or " ", CHATS[name])
        compare(
            template, auto, source or " ", CHATS[name], tools=TOOLS, documents=[{"title": "T", "text": "x"}]
        )


def test_the_time_and_arguments_of_its_own(folder):
    template = load(folder, "{{ strftime_now('%Y-%m-%d') }} {{ custom }}")
    assert template.render([ASK], custom="c") in (f"{datetime.now():%Y-%m-%d} c",)


@pytest.mark.parametrize("source, words", [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within 0.5 seconds"),
    ("{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}", "renders more than|does not end"),
    ("{{ 10**(10**8) }}", "does not end|integer string conversion"),
    ("{{ 'a' * 10**10 }}", "GiB of memory"), ("{{ ('%9999999999d' % 1)|length }}", "GiB of memory|too"),
    ("{{ 'a'.ljust(10**10) }}", "GiB of memory"), ("{{ [0] * 10**10 }}", "GiB of memory"),
    ("{{ 'ab' * 9000000 }}", "renders more than|GiB of memory"),
    ("{{ range(10**9) | list }}", "Range too big"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion|nested|too many"),
    ("a" * 2_000_000, "at most 1,048,576"),
    ("{{ raise_exception('\x1b[2J\nred') }}", r"fails: \\x1b\[2J red"),
])  # fmt: skip
def test_limits(folder, monkeypatch, source, words):
    """One line, within seconds, and the next template is rendered as if nothing had been."""
    monkeypatch.setattr(rendering, "CPU_S", 0.5)
    monkeypatch.setattr(rendering, "MAX_CHARACTERS", 1 << 24)
    began = time.monotonic()
    with pytest.raises(InputError, match=words) as error:
        render_template(source, {"messages": []}, "it")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 700
    assert time.monotonic() - began < 20
    assert render_template("{{ a }}", {"a": "b"}, "it") == "b"


def test_a_worker_that_is_gone_is_started_again():
    assert render_template("{{ 1 }}", {}, "it") == "1"
    rendering.WORKERS.process.kill()
    rendering.WORKERS.process.wait()
    assert render_template("{{ 2 }}", {}, "it") == "2"
    worker = rendering.WORKERS.process
    worker.stdin.close()  # as when the parent dies
    assert worker.wait(10) == 0


def test_what_is_given_must_be_plain():
    with pytest.raises(InputError, match="not plain JSON"):
        render_template("{{ a }}", {"a": object()}, "it")
    with pytest.raises(InputError, match="surrogates not allowed"):
        render_template("{{ a }}", {"a": "\ud800"}, "it")


def test_an_old_jinja_is_refused(monkeypatch):
    import jinja2

    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(MissingPackage, match=r"jinja2 3\.1\.6"):
        render_template("x", {}, "it")


NAMED = [
    {"name": name, "template": name + " {{ messages[0].content }}"} for name in ("default", "tool_use", "rag")
]


@pytest.mark.parametrize("files, config", [
    ({}, "{{ 1 }}"), ({}, NAMED), ({}, {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}), ({}, NAMED[1:]),
    ({"chat_template.jinja": "file\r\n{{ 1 }}\r\n"}, NAMED),
    ({"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "tools"}, "config"),
    ({"additional_chat_templates/rag.jinja": "rag"}, "config"),
])  # fmt: skip
def test_several_templates_by_name(tmp_path, files, config):
    """From files, which outrank tokenizer_config.json, or from there; tool_use is for tools."""
    record = {
        "tokenizer.json": json.loads(byte_level().to_str()),
        "tokenizer_config.json": {"chat_template": config},
    }
    folder = write_folder(tmp_path / "t", record)
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(source.encode())
    assert has_template(find_tokenizer(folder))
    saved = find_tokenizer(folder).save(tmp_path / "saved")
    for place in (folder, saved):
        ours, auto = load_template(place), theirs(place)
        for tools in (None, TOOLS):
            expected = theirs_of(auto, [ASK], tools=tools)
            got = outcome(functools.partial(ours.render, [ASK], tools=tools))
            assert got == expected or (isinstance(got, InputError) and isinstance(expected, ValueError))
        if "rag" in ours.sources:
            assert ours.render([ASK], template="rag") == auto.apply_chat_template(
                [ASK], chat_template="rag", tokenize=False
            )
    with pytest.raises(InputError, match="has no chat template 'none'"):
        ours.render([ASK], template="none")
    with pytest.raises(InputError, match="without messages"):
        ours.render([], template=next(iter(ours.sources)))
