"""A run that begins with a model of Hugging Face: the model's vocabulary is the data's, or the run is refused, or rows
move to where the data has their tokens."""

import json
import shutil

import pytest
import torch
from conftest import TINY_FLAGS, read_events, record_tokenizer, write_dataset
from run_folders import exit_code
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inference.hf import save_hf
from inference.hf.reading import Rows
from inference.hf.vocabularies import meanings, start_from_hf, steps_of
from model_builder import ConfigurableGPT, initial_matrix
from tokenization.tokenizers import find_tokenizer
from training.checkpoint import checkpoint_path
from training.config import load_config

EOT = "<|endoftext|>"
OF_MODEL = [EOT, *(f"word{i}" for i in range(90))]  # 91 tokens in 97 rows
OF_DATA = [EOT, *(f"word{i}" for i in range(50, 94))]  # 44 words, 40 of them the model's
LEARN_NOTHING = ["--max_iters=1", "--learning_rate=0", "--min_lr=0", "--weight_decay=0"]


def write_tokenizer(folder, tokens):
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=EOT))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([EOT])
    folder.mkdir(exist_ok=True, parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def data_of(folder, tokens):
    write_dataset(folder, vocab_size=len(tokens))
    write_tokenizer(folder, tokens)
    record_tokenizer(folder)
    return folder


def described(*flags):
    return ConfigurableGPT(load_config([*TINY_FLAGS, "--dataset=x", *flags])[0], seed=5)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pretrained(request, tmp_path_factory):
    """(folder, model) of Hugging Face's layout with a tokenizer of its own."""
    model = described(f"--weight_tying={request.param}")
    root = tmp_path_factory.mktemp("pretrained")
    folder = save_hf(model, root / "model", str(write_tokenizer(root / "tokenizer", OF_MODEL)))
    generation = {"eos_token_id": [0, 51, 3], "top_k": 5}  # word50 and word2, which the data does not have
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder, model


def flags_of(folder, model, data, *more):
    tied = f"--weight_tying={model.config.weight_tying}"
    return [f"--init_from=hf:{folder}", tied, f"--dataset={data}", *LEARN_NOTHING, *more]


def test_a_run_from_a_model_of_another_vocabulary(pretrained, run, tmp_path, capsys):
    folder, model = pretrained
    data = data_of(tmp_path / "data", OF_DATA)
    assert exit_code(run, "a", *flags_of(folder, model, data)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not (tmp_path / "a").exists()
    for words in (str(folder), str(data), "44 of its 45 ids", "'word50', which has id 51 there and 1 here",
                  f"--tokenizer={folder}", "--resize_vocabulary=True", "41 tokens that both have"):  # fmt: skip
        assert words in said

    flags = flags_of(folder, model, data, "--resize_vocabulary=True", "--vocab_size=64")
    assert run("a", *flags) == 0
    note = "resize_vocabulary=True: 41 rows are those of the same tokens"
    assert note in (out := capsys.readouterr().out) and "the other 23 of 64 are initial weights" in out
    trained = load_file(checkpoint_path(tmp_path / "a", 1) / "model.safetensors")
    before = model.state_dict()
    for name, weight in trained.items():
        if name not in ("token_embedding.weight", "lm_head.weight"):
            assert torch.equal(weight, before[name]), name
            continue
        initial = initial_matrix(
            model.config, name, weight.shape, load_config(TINY_FLAGS + ["--dataset=x"])[1].seed
        )
        for i, row in enumerate(weight):
            token = OF_DATA[i] if i < len(OF_DATA) else None
            want = before[name][OF_MODEL.index(token)] if token in OF_MODEL else initial[i]
            assert torch.equal(row, want), (name, i, token)
    assert ("lm_head.weight" in trained) != model.config.weight_tying
    kept = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert kept == {"eos_token_id": [0, 1], "pad_token_id": 0, "top_k": 5}
    assert run("a", *flags, "--max_iters=2") == 0  # resumes, and moves nothing again
    assert read_events(tmp_path / "a", "checkpoint")[-1]["step"] == 2


def test_the_same_vocabulary_is_trained_on(pretrained, run, tmp_path, capsys):
    folder, model = pretrained
    for name, tokens in (("same", OF_MODEL), ("part", OF_MODEL[:60])):
        data = data_of(tmp_path / name, tokens)
        assert run(f"run-{name}", *flags_of(folder, model, data)) == 0
        said = capsys.readouterr().out
        assert "resize" not in said and ("31 tokens of" in said) == (name == "part")
        weight = load_file(checkpoint_path(tmp_path / f"run-{name}", 1) / "model.safetensors")[
            "token_embedding.weight"
        ]
        assert torch.equal(weight, model.token_embedding.weight)
        kept = json.loads((tmp_path / f"run-{name}" / "generation_config.json").read_text())
        assert kept == {"eos_token_id": [0, 51, 3], "pad_token_id": 0, "top_k": 5}
    assert exit_code(run, "b", *flags_of(folder, model, data, "--vocab_size=80")) == 2
    assert "vocab_size=97 there, 80 here" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said(pretrained, run, tmp_path, capsys):
    folder, model = pretrained
    data = data_of(tmp_path / "data", OF_DATA)
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    assert run("a", *flags_of(bare, model, data)) == 0
    assert (
        f"{bare} has no tokenizer: whether its ids are those of {data} is not checked"
        in capsys.readouterr().out
    )
    assert exit_code(run, "b", *flags_of(bare, model, data, "--resize_vocabulary")) == 2
    assert f"needs both tokenizers, and {bare} has none" in capsys.readouterr().err
    (bare / "tokenizer.json").write_text("{")
    assert exit_code(run, "b", *flags_of(bare, model, data)) == 2
    assert "tokenizer.json" in capsys.readouterr().err
    assert run("c", "--resize_vocabulary", "--max_iters=1") == 0
    assert "resize_vocabulary=True has no effect with init_from='auto'" in capsys.readouterr().out


def test_tokens_are_the_same_by_their_bytes(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "Ġthe", "Ã©"])}, []))
    level.pre_tokenizer, level.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    pieces = ["<unk>", "<0x41>", "\u2581the", "\u2581", "A", "é", "Ġ", "<0xC3>", "<0xZZ>", "the"]
    spaced = Tokenizer(
        models.BPE({t: i for i, t in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    for name, tokenizer in (("level", level), ("spaced", spaced)):
        tokenizer.add_special_tokens([EOT])
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    by_level, by_space = (meanings(find_tokenizer(tmp_path / name)) for name in ("level", "spaced"))
    shared = {
        meaning: (by_level[meaning], by_space[meaning]) for meaning in by_level.keys() & by_space.keys()
    }
    assert shared == {
        ("added", EOT): (258, 10),
        ("bytes", b" the"): (256, 2),
        ("bytes", b" "): (alphabet.index("Ġ"), 3),
        ("bytes", b"A"): (alphabet.index("A"), 4),
        ("bytes", "é".encode()): (257, 5),
        ("bytes", b"\xc3"): (alphabet.index("Ã"), 7),
    }


def nested(depth):
    step = {"type": "ByteLevel"}
    for _ in range(depth):
        step = {"type": "Sequence", "pretokenizers": [step]}
    return step


@pytest.mark.parametrize(
    "part", [None, 3, [], {}, {"type": []}, {"pretokenizers": 3}, {"decoders": [3, None, [[]]]}]
)
def test_steps_of_any_shape_have_types(part):
    assert "ByteLevel" not in steps_of(part)
    assert "ByteLevel" in steps_of({"pretokenizers": [part, nested(900)]})


def test_rows_beyond_either_end_stay_out(pretrained, tmp_path):
    rows = Rows(torch.tensor([0, 9, 1]), torch.tensor([1, 0, 9]), seed=0)
    old, initial = torch.arange(6.0).view(3, 2), torch.full((2, 2), -1.0)
    assert rows.moved(old, initial).tolist() == [[-1.0, -1.0], [0.0, 1.0]]


def test_shards_are_filled_from_whole_matrices(pretrained, tmp_path):
    """As FSDP and ZeRO have them: assign gets each matrix of the new size, once."""
    folder, model = pretrained
    wanted = described(f"--weight_tying={model.config.weight_tying}", "--vocab_size=50").config
    with torch.device("meta"):
        into = ConfigurableGPT(wanted)
    data, seen = data_of(tmp_path / "data", OF_DATA), []
    start = start_from_hf(
        str(folder), into, wanted, data, True, 3, lambda p, values: seen.append((p, values))
    )
    assert [id(p) for p, _ in seen] == [id(p) for p in into.parameters()]
    assert all(values.shape == p.shape for p, values in seen)
    assert "41 rows" in start.notes[0] and start.generation == {
        "eos_token_id": [0, 1],
        "pad_token_id": 0,
        "top_k": 5,
    }
