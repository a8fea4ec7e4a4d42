"""What ends a text: each of the ends that a folder declares, in text and chat mode, of the folder, of the run that is
imported from it and of what is exported from that."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig

import sample
from base.errors import InputError
from inference.ends import Ends, declared_ends, generation_config, template_end
from inference.hf import save_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from scripts import export_hf, import_hf
from tokenization.tokenizers import load_tokenizer

SPECIAL = [
    "<|endoftext|>",
    "<of_generation>",
    "<of_config>",
    "<of_tokenizer>",
    "<of_map>",
    "<of_template>",
    "<other>",
]
WORDS = ["<unk>", "a", "b", "c", "d", "e", "f", "g", "stop", "z"]
VOCABULARY = [*SPECIAL, *WORDS]
# What follows a word: an end, then z for ever
FOLLOWS = dict(zip("abcdef", SPECIAL, strict=False)) | {"g": "stop"}
TEMPLATE = """{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}
<of_template> <other> {% endif %}{% endfor %}"""


def oracle():
    """A model whose next token is a function of the last one: attention and FFN add nothing, embeddings are
    unit vectors, and the head is a table."""
    sizes = dict(n_layer=1, n_embd=32, n_head=2, num_key_value_heads=1, head_dim=16, d_ff=8, block_size=32)
    model = ConfigurableGPT(get_preset_config("qwen3", vocab_size=20, **sizes))
    with torch.no_grad():
        for p in (
            model.blocks[0].attention.out.weight,
            model.blocks[0].ffn.down.weight,
            model.lm_head.weight,
        ):
            p.zero_()
        model.token_embedding.weight.copy_(torch.eye(20, 32))
        for i, token in enumerate(VOCABULARY):
            model.lm_head.weight[VOCABULARY.index(FOLLOWS.get(token, "z")), i] = 1.0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of which every place that may name an end names another."""
    folder = tmp_path_factory.mktemp("ends") / "model"
    save_hf(oracle(), folder)
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<of_tokenizer>",
    )
    edit(folder / "special_tokens_map.json", eos_token={"content": "<of_map>"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    edit(folder / "generation_config.json", eos_token_id=1, stop_strings=["stop"], temperature=0.3)
    edit(folder / "config.json", eos_token_id=[2, 99, -1])  # two of which can never come
    return folder


def edit(file, **fields):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | fields))


def answer(capsys, *flags):
    assert (
        sample.main([*flags, "--temperature=0", "--max_new_tokens=4", "--output=json", "--device=cpu"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    return said["finish"], said["text"].split()


def test_each_of_them_ends_a_text_and_a_turn_through_import_and_export(folder, tmp_path, capsys):
    run, back = tmp_path / "run", tmp_path / "back"
    assert import_hf.main([f"--model={folder}", f"--out_dir={run}"]) == 0
    assert export_hf.main([f"--out_dir={run}", f"--to={back}"]) == 0
    capsys.readouterr()
    for where in (f"--model={folder}", f"--out_dir={run}", f"--model={back}"):
        for mode in ([], ["--chat"]):
            for word in "abcdef":
                assert answer(capsys, where, *mode, f"--prompt={word}") == ("stop_id", []), (where, word)
            assert answer(capsys, where, *mode, "--prompt=g") == ("stop_string", [])
            assert answer(capsys, where, *mode, "--prompt=z") == ("length", ["z"] * 4)
    exported = GenerationConfig.from_pretrained(back)
    assert sorted(exported.eos_token_id) == [0, 1, 2, 3, 4, 5]
    assert (exported.stop_strings, exported.temperature) == (["stop"], 0.3)
    assert sorted(json.loads((back / "config.json").read_text())["eos_token_id"]) == [0, 1, 2, 3, 4, 5]
    assert AutoTokenizer.from_pretrained(back)("a z").input_ids == [8, 16]


def test_the_end_of_a_turn_need_not_be_called_special(folder, tmp_path):
    record = json.loads((folder / "tokenizer.json").read_text())
    for token in record["added_tokens"]:
        token["special"] = token["content"] in ("<|endoftext|>", "<of_tokenizer>")
    shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(record))
    assert template_end(tmp_path / "model", load_tokenizer(tmp_path / "model")) == 5


def test_a_template_that_cannot_be_used_ends_nothing(folder):
    tokenizer = load_tokenizer(folder)
    assert template_end(folder, tokenizer) == 5
    file = folder / "chat_template.jinja"
    try:
        for source in ("{{ raise_exception('no') }}", "{% if", "no messages", "{{ messages[1].content }} z <other>",
                       "{{ messages[1].content | upper }}<other>", ""):  # fmt: skip
            file.write_text(source)
            assert template_end(folder, tokenizer) is None, source
    finally:
        file.write_text(TEMPLATE)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["2", True, 1.5, [1, None], [[1]], {"a": 1}])
def test_what_is_not_an_id_is_refused(file, value, tmp_path):
    edit(tmp_path / file, eos_token_id=value)
    with pytest.raises(InputError, match=f"{file}: eos_token_id is .*, not an id") as caught:
        declared_ends(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id"])
def test_one_id_is_no_list(file, name, tmp_path):
    for value in ("2", True, 1.5, [1], {"a": 1}):
        edit(tmp_path / file, **{name: value})
        with pytest.raises(InputError, match=f"{file}: {name} is .*, not an id"):
            generation_config(tmp_path)


@pytest.mark.parametrize("value", [3, [3], [""], {"a": "b"}])
def test_what_is_not_a_text_is_refused(value, tmp_path):
    edit(tmp_path / "generation_config.json", stop_strings=value)
    with pytest.raises(InputError, match="stop_strings is"):
        declared_ends(tmp_path)


def test_ids_that_are_renumbered_and_a_folder_that_says_nothing(tmp_path):
    assert declared_ends(tmp_path) == Ends() and generation_config(tmp_path) == {}
    edit(
        tmp_path / "generation_config.json", eos_token_id=[7, 5], pad_token_id=7, bad_words_ids=[[7]], top_k=3
    )
    edit(tmp_path / "config.json", eos_token_id=9, bos_token_id=5, stop_strings=["of another file"])
    assert declared_ends(tmp_path) == Ends((7, 5, 9), ())
    kept = generation_config(tmp_path)
    assert kept == dict(eos_token_id=[7, 5, 9], pad_token_id=7, bos_token_id=5, bad_words_ids=[[7]], top_k=3)
    assert generation_config(tmp_path, {5: 0, 9: 1}) == dict(eos_token_id=[0, 1], bos_token_id=0, top_k=3)
