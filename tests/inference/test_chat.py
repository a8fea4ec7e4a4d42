"""Chat templates against transformers' apply_chat_template, the strings of Qwen3's model card, the split of
an answer, and the chat of sample.py from end to end with answers that are given."""

import json
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import sample
from base.errors import InputError, MissingPackage
from inference.chat import NOT_THINKING, THINKING, Answer, load_template, split_thinking
from inference.generate import Event
from inference.hf import save_hf
from inference.sampling import Sampling
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from tokenization.tokenizers import find_tokenizer

# Turns as Qwen3's template has them, without its tools: no default system prompt, the thinking of earlier
# answers left out, an empty thinking block where enable_thinking is false.
QWEN3 = """
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FIRST = [{"role": "user", "content": "Why?"}]
SECOND = [
    *FIRST,
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSo."},
    {"role": "user", "content": "And?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *FIRST]


def chat_folder(folder, template: str, think: bool = True, inline: bool = False):
    """A model of Qwen3's architecture whose tokenizer has bytes, Qwen3's control tokens and a chat
    template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["x"], trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if think:
        tokenizer.add_tokens(
            [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)]
        )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if inline:
        config["chat_template"] = template
    else:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = dict(n_layer=1, n_embd=16, n_head=2, num_key_value_heads=1, head_dim=8, d_ff=32, block_size=256)
    save_hf(ConfigurableGPT(get_preset_config("qwen3", vocab_size=264, **shape)), folder, str(folder))
    return folder


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return chat_folder(tmp_path_factory.mktemp("chat") / "qwen3", QWEN3)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    """As Qwen3-4B-Instruct-2507: a template without a switch, in tokenizer_config.json."""
    without = QWEN3.partition("    {%- if enable_thinking")[0] + "{%- endif %}\n"
    return chat_folder(tmp_path_factory.mktemp("chat") / "instruct", without, inline=True)


USER, ASSISTANT = "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("messages", "thinking", "expected"),
    [
        (FIRST, None, USER.format("Why?") + ASSISTANT),
        (FIRST, True, USER.format("Why?") + ASSISTANT),
        (FIRST, False, USER.format("Why?") + ASSISTANT + EMPTY),
        (SYSTEM, True, "<|im_start|>system\nBe brief.<|im_end|>\n" + USER.format("Why?") + ASSISTANT),
        (SECOND, True, USER.format("Why?") + ASSISTANT + "So.<|im_end|>\n" + USER.format("And?") + ASSISTANT),
        (
            SECOND,
            False,
            USER.format("Why?") + ASSISTANT + "So.<|im_end|>\n" + USER.format("And?") + ASSISTANT + EMPTY,
        ),
    ],
)
def test_the_strings_of_the_model_card_and_of_transformers(qwen3, messages, thinking, expected):
    from transformers import AutoTokenizer

    template = load_template(qwen3)
    assert template.render(messages, thinking) == expected
    flag = {} if thinking is None else {"enable_thinking": thinking}
    theirs = AutoTokenizer.from_pretrained(qwen3)
    assert (
        theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **flag) == expected
    )


def test_what_a_template_needs(qwen3, instruct, tmp_path, monkeypatch):
    template = load_template(qwen3)
    assert template.knows_thinking and not load_template(instruct).knows_thinking
    names = ("<|im_end|>", "<|endoftext|>", "<think>", "</think>")
    ids = [sample.load_tokenizer(qwen3).token_to_id(name) for name in names]
    assert (*template.stop_ids, template.think_id, template.end_think_id) == tuple(ids)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "tokenizer.json").write_bytes((qwen3 / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="has no chat template"):
        load_template(tmp_path / "none")
    for source, words in (
        ("{% if %}", "fails"),
        ("{{ raise_exception('no tools') }}", "no tools"),
        ("{{ x.y.z }}", "fails"),
    ):
        (tmp_path / "none" / "chat_template.jinja").write_text(source)
        with pytest.raises(ValueError, match=words):
            load_template(tmp_path / "none").render(FIRST)
    (tmp_path / "none" / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="fails"):  # the sandbox
        load_template(tmp_path / "none").render(FIRST)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingPackage, match="pip install jinja2"):
        template.render(FIRST)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 6], Answer([], [5, 6], False)),  # none: all of it is content
        ([], Answer([], [], False)),
        ([1, 5, 2, 6], Answer([5], [6], False)),
        ([5, 2, 6], Answer([5], [6], False)),  # the template opened it
        ([1, 5, 2, 7, 2, 6], Answer([5, 2, 7], [6], False)),  # several: the last decides
        ([1, 5, 2, 6, 1, 7, 2], Answer([5, 2, 6, 1, 7], [], False)),
        ([1, 5, 6], Answer([], [1, 5, 6], True)),  # unfinished
        ([1, 5, 2, 6, 1, 7], Answer([5], [6, 1, 7], True)),
        ([2], Answer([], [], False)),
    ],
)
def test_the_split(ids, expected):
    assert split_thinking(ids, think_id=1, end_think_id=2) == expected
    if not {1, 2} & set(ids):
        assert split_thinking(ids, None, None) == expected


def test_the_presets_are_those_of_the_model_card():
    assert Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0) == THINKING
    assert Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0) == NOT_THINKING


@pytest.fixture
def talk(monkeypatch, capsys):
    """talk(folder, answers, *flags) -> (stdout, stderr, what the model was asked); the model says `answers`
    one by one."""

    def call(folder, answers, *flags, piped=None):
        tokenizer, asked, left = sample.load_tokenizer(folder), [], list(answers)

        def fake(model, prompts, max_new_tokens, sampling, **options):
            asked.append((tokenizer.decode(prompts[0], skip_special_tokens=False), sampling, options))
            ids = tokenizer.encode(left.pop(0), add_special_tokens=False).ids
            for n, i in enumerate(ids):
                finish = "length" if n == len(ids) - 1 else None
                yield [Event(0, i, tokenizer.decode([i]), -1.0 if options["logprobs"] else None, finish)]

        monkeypatch.setattr(sample, "stream", fake)
        if piped is not None:
            monkeypatch.setattr("sys.stdin", __import__("io").StringIO(piped))
        assert sample.main([f"--model={folder}", "--chat", *flags]) == 0
        return *capsys.readouterr(), asked

    return call


THOUGHT = "<think>\nhm\n</think>\n\nSo."


def test_a_chat_takes_the_sampling_of_its_mode(qwen3, instruct, talk):
    out, err, asked = talk(qwen3, [THOUGHT], "--prompt=Why?")
    assert out == THOUGHT + "\n" and err == "" and asked[0][:2] == (USER.format("Why?") + ASSISTANT, THINKING)
    assert asked[0][2]["stop_ids"] == {0, 2}
    assert talk(qwen3, [THOUGHT], "--prompt=Why?", "--thinking=on")[2][0][1] == THINKING
    out, _, asked = talk(qwen3, ["So."], "--prompt=Why?", "--thinking=off", "--top_k=5", "--min_p=0.1")
    assert out == "So.\n" and asked[0][0].endswith(EMPTY)
    assert asked[0][1] == Sampling(temperature=0.7, top_p=0.8, top_k=5, min_p=0.1)
    _, err, asked = talk(instruct, ["So."], "--prompt=Why?", "--thinking=on")
    assert "has no thinking mode" in err and err.count("\n") == 1 and asked[0][1] == NOT_THINKING
    _, err, _ = talk(qwen3, [THOUGHT], "--prompt=Why?", "--temperature=0")
    assert "greedy decoding with thinking" in err
    assert talk(qwen3, ["So."], "--prompt=Why?", "--temperature=0", "--thinking=off")[1] == ""


def test_hidden_thinking_is_never_lost(qwen3, talk):
    hide = ["--prompt=Why?", "--show_thinking=hide"]
    out, err, _ = talk(qwen3, [THOUGHT], *hide)
    assert out == "\n\nSo.\n" and "3 tokens" not in out and "tokens of thinking are hidden" in err
    out, err, _ = talk(qwen3, ["<think>\nhm hm"], *hide)
    assert out == "<think>\nhm hm\n" and "thinking did not end" in err
    out, err, _ = talk(qwen3, [THOUGHT], "--prompt=Why?", "--output=json")
    record = json.loads(out)
    assert (record["thinking"], record["content"], record["unfinished_thinking"]) == ("hm", "So.", False)
    assert record["text"] == THOUGHT and len(record["ids"]) == len(record["logprobs"])
    out, err, _ = talk(qwen3, ["<think>\nhm"], "--prompt=Why?", "--output=json")
    record = json.loads(out)
    assert (record["thinking"], record["content"], record["unfinished_thinking"]) == ("", "<think>\nhm", True)
    assert "raise --max_new_tokens" in err


def test_a_conversation_remembers_answers_and_forgets_thinking(qwen3, talk):
    out, _, asked = talk(qwen3, [THOUGHT, "Yes."], "--system=Be brief.", piped="Why?\n\nAnd?\n")
    assert out == THOUGHT + "\nYes.\n" and len(asked) == 2
    start = "<|im_start|>system\nBe brief.<|im_end|>\n" + USER.format("Why?") + ASSISTANT
    assert [a[0] for a in asked] == [start, start + "So.<|im_end|>\n" + USER.format("And?") + ASSISTANT]


def test_a_vocabulary_leaves_the_tags_and_the_end(qwen3, talk, tmp_path):
    record = {"ids": [70, 71], "byte_ids": [], "added_ids": []}
    record["tokenizer"] = {"name": "x", "sha256": find_tokenizer(qwen3).sha256}
    (tmp_path / "few.json").write_text(json.dumps(record))
    options = talk(qwen3, ["So."], "--prompt=Why?", f"--vocabulary={tmp_path / 'few.json'}")[2][0][2]
    assert options["allowed_ids"] == [0, 2, 70, 71, 259, 260]


def test_a_chat_with_the_model_itself(qwen3, capsys):
    assert (
        sample.main([f"--model={qwen3}", "--chat", "--prompt=Why?", "--max_new_tokens=5", "--output=json"])
        == 0
    )
    assert 1 <= len(json.loads(capsys.readouterr().out)["ids"]) <= 5


@pytest.mark.parametrize("fields", [
    {"chat_template": 5}, {"chat_template": [5]}, {"chat_template": [{"name": "default"}]}, {"chat_template": {"a": 1}},
    {"chat_template": "x", "eos_token": {"content": 3}}, {"chat_template": "x", "bos_token": [1]},
])  # fmt: skip
def test_a_config_of_a_wrong_shape_is_one_line(toy_folder, tmp_path, fields):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"copy it again") as error:
        load_template(folder)
    assert "\n" not in str(error.value)
