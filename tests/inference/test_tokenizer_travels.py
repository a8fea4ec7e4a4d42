"""A tokenizer of any layout through import, a run folder and export: AutoTokenizer gives the ids and the
prompts of the folder that was imported, and so do we."""

import json

import pytest
from tokenizer_layouts import assert_same, byte_level, sentencepiece_style, theirs, write_folder
from tokenizers import Tokenizer

from base.errors import InputError
from inference.chat import load_template
from inference.hf import save_hf
from inference.scoring import score_documents
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from scripts import export_hf, import_hf
from tokenization.tokenizers import find_tokenizer, load_tokenizer

BYTES = json.loads(byte_level().to_str())
SPM = json.loads(sentencepiece_style().to_str())
N = len(BYTES["model"]["vocab"])
MERGES = "".join(f"{a} {b}\n" for a, b in BYTES["model"]["merges"]).encode()
CHAT = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"
PADDING = {
    "strategy": {"Fixed": 10**9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
}
LAYOUTS = {
    "llama 2": {"tokenizer.json": SPM, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "legacy": False}},
    "added": {"tokenizer.json": BYTES, "added_tokens.json": {"<tool>": N}, "special_tokens_map.json": {"bos_token": "<extra>"}},
    "merges": {
        "vocab.json": BYTES["model"]["vocab"], "merges.txt": MERGES,
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "chat_template": CHAT},
    },
    "padded": {"tokenizer.json": BYTES | {"padding": PADDING | {"pad_token": "<pad>"}}},
    "templates": {"tokenizer.json": BYTES, "chat_template.jinja": CHAT.encode()},
    "the model's class": {"tokenizer.json": SPM, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_import_and_export(tmp_path, name):
    shape = dict(n_layer=1, n_embd=16, n_head=2, num_key_value_heads=1, head_dim=8, d_ff=32, block_size=64)
    model = ConfigurableGPT(get_preset_config("qwen3", vocab_size=320, **shape))
    folder = save_hf(model, tmp_path / "model")
    write_folder(folder, LAYOUTS[name])
    if name == "templates":
        write_folder(folder / "additional_chat_templates", {"rag.jinja": CHAT.encode() + b" with documents"})
    auto = theirs(folder)
    run, exported = tmp_path / "run", tmp_path / "exported"
    assert import_hf.main([f"--model={folder}", f"--out_dir={run}"]) == 0
    for _ in range(2):  # and again over what is there
        assert export_hf.main([f"--out_dir={run}", f"--to={exported}"]) == 0
    for place in (run, exported):
        assert_same(load_tokenizer(place), auto)
        assert find_tokenizer(place).json == find_tokenizer(folder).json
    again = theirs(exported)
    assert_same(load_tokenizer(folder), again)
    assert auto.special_tokens_map.items() <= again.special_tokens_map.items()
    if auto.chat_template is not None:
        message = [{"role": "user", "content": "Why?"}]
        for template in {"rag": "rag", None: None} if name == "templates" else [None]:
            expected = auto.apply_chat_template(message, chat_template=template, tokenize=False)
            assert again.apply_chat_template(message, chat_template=template, tokenize=False) == expected
            assert (
                load_template(run).render(message, template=template, add_generation_prompt=False) == expected
            )


def test_state_of_a_tokenizer_is_not_scored(tmp_path):
    """Truncation and padding in a tokenizer.json change no likelihood; an object that has them is refused."""
    shape = dict(n_layer=1, n_embd=16, n_head=2, num_key_value_heads=1, head_dim=8, d_ff=32, block_size=64)
    model = ConfigurableGPT(get_preset_config("qwen3", vocab_size=320, **shape), seed=0)
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = PADDING | {"strategy": {"Fixed": 40}, "pad_token": "<|endoftext|>"}
    texts = ["hello world, hello there", "two spaces and don't"]
    scores = []
    for name, state in (("plain", {}), ("cut", {"truncation": cut}), ("padded", {"padding": padding})):
        folder = write_folder(tmp_path / name, {"tokenizer.json": BYTES | state})
        scores.append(score_documents(model, load_tokenizer(folder), 0, texts))
    assert scores[0] == scores[1] == scores[2] and scores[0]["tokens"] > 6
    with pytest.raises(InputError, match="cuts or pads"):
        score_documents(model, Tokenizer.from_file(str(tmp_path / "cut/tokenizer.json")), 0, texts)
