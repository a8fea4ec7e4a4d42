"""scripts/prune_vocabulary.py, check_model.py, score.py and run_lm_eval.py on tiny models of every family."""

import json
import math
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inference.generate import generate
from inference.hf import load_hf, save_hf
from inference.models import FoundModel
from inference.sampling import Sampling
from inference.scoring import Question, log_likelihoods, score_documents, score_questions
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from scripts import check_model, prune_vocabulary, run_lm_eval, score
from tokenization import vocabulary

TEXT = "def café(self): return 'naïve' # 汉字 and the other names of things; the end\n"
MODELS = [("gpt2", True), ("llama2", False), ("llama3", True), ("qwen3", True), ("qwen3", False)]


def tiny(preset, tied, **options):
    shape = dict(
        n_layer=2, n_embd=32, n_head=4, num_key_value_heads=4 if preset == "gpt2" else 2, head_dim=8, d_ff=48
    )
    shape |= dict(block_size=64, vocab_size=360, weight_tying=tied, init_std=0.2)
    return ConfigurableGPT(get_preset_config(preset, **shape | options), seed=0).eval()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A byte-level BPE with merges inside ASCII, outside, and across."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def exported(tokenizer_folder, tmp_path_factory):
    """{(preset, tied): folder of Hugging Face's layout}"""
    root = tmp_path_factory.mktemp("models")
    return {key: save_hf(tiny(*key), root / f"{key[0]}{key[1]}", str(tokenizer_folder)) for key in MODELS}


@pytest.mark.parametrize("key", MODELS, ids=str)
def test_a_pruned_model_gives_the_logits_of_the_full_one(key, exported, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    english, to = tmp_path / "english.json", tmp_path / "pruned"
    assert vocabulary.main(["english", f"--tokenizer={exported[key]}", f"--out={english}"]) == 0
    capsys.readouterr()
    assert prune_vocabulary.main([f"--model={exported[key]}", f"--vocabulary={english}", f"--to={to}"]) == 0
    said = capsys.readouterr().out
    kept = json.loads((to / "kept_ids.json").read_text())
    full, pruned = load_hf(exported[key]), load_hf(to)
    rows = 1 if key[1] else 2
    assert (
        full.get_num_params() - pruned.get_num_params() == rows * (360 - len(kept)) * 32 and len(kept) < 308
    )
    assert f"{pruned.get_num_params():,} of {full.get_num_params():,} parameters" in said
    ids = torch.arange(40)[None] % len(kept)
    with torch.no_grad():
        want, got = full(torch.tensor(kept)[ids])[0][..., kept], pruned(ids)[0]
        theirs = AutoModelForCausalLM.from_pretrained(to)(ids).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs, want, rtol=0, atol=1e-4)
    tokenizer, original = (AutoTokenizer.from_pretrained(folder) for folder in (to, exported[key]))
    assert [kept[i] for i in tokenizer("def self return").input_ids] == original("def self return").input_ids
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert kept[tokenizer.eos_token_id] == original.eos_token_id


def test_a_mask_and_a_pruned_model_say_the_same(exported, tmp_path):
    key = ("qwen3", True)
    english, to = tmp_path / "english.json", tmp_path / "pruned"
    vocabulary.main(["english", f"--tokenizer={exported[key]}", f"--out={english}"])
    prune_vocabulary.main([f"--model={exported[key]}", f"--vocabulary={english}", f"--to={to}"])
    kept = json.loads((to / "kept_ids.json").read_text())
    for sampling in (Sampling(temperature=0), Sampling(temperature=1.0, top_k=5)):
        (masked,) = generate(load_hf(exported[key]), [[kept[5]]], 30, sampling, allowed_ids=kept)
        (small,) = generate(load_hf(to), [[5]], 30, sampling)
        assert masked.ids == [kept[i] for i in small.ids]


def test_a_pruned_model_keeps_its_ends_under_their_new_ids(exported, tmp_path):
    english, to = tmp_path / "english.json", tmp_path / "pruned"
    folder = shutil.copytree(exported["qwen3", True], tmp_path / "model")
    vocabulary.main(["english", f"--tokenizer={folder}", f"--out={english}"])
    kept = vocabulary.kept_ids(json.loads(english.read_text()))
    dropped = next(i for i in range(360) if i not in kept)
    generation = {
        "eos_token_id": [kept[9], dropped],
        "pad_token_id": kept[4],
        "suppress_tokens": [dropped],
        "top_k": 7,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert prune_vocabulary.main([f"--model={folder}", f"--vocabulary={english}", f"--to={to}"]) == 0
    pruned = json.loads((to / "generation_config.json").read_text())
    assert pruned == {"eos_token_id": [kept.index(0), 9], "pad_token_id": 4, "bos_token_id": None, "top_k": 7}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["english.json", "model", "pruned"]


@pytest.mark.parametrize("fault", ["tempfile.TemporaryDirectory", "scripts.prune_vocabulary.write_json"])
def test_a_full_disk_is_one_line(fault, exported, tmp_path, capsys, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    folder, english, to = exported["qwen3", True], tmp_path / "english.json", tmp_path / "pruned"
    vocabulary.main(["english", f"--tokenizer={folder}", f"--out={english}"])
    monkeypatch.setattr(fault, full)
    with pytest.raises(SystemExit) as stopped:
        prune_vocabulary.main([f"--model={folder}", f"--vocabulary={english}", f"--to={to}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "No space left" in error
    assert not list(to.glob("*"))


def test_check_model_says_what_passed(exported, tokenizer_folder, tmp_path, capsys, monkeypatch):
    folder = exported["qwen3", True]
    assert check_model.main([f"--model={folder}", "--dtype=float32", "--context_length=32"]) == 0
    said = capsys.readouterr().out
    params = f"parameters: {tiny('qwen3', True).get_num_params():,}"
    for words in (
        "tokenizer: 308 tokens",
        "round trip",
        "no chat template",
        params,
        "[1, 32, 360]",
        "memory",
        "all checks passed",
    ):
        assert words in said
    with monkeypatch.context() as patch:
        patch.setattr(FoundModel, "load", None)  # tokenizer work loads no model
        assert check_model.main([f"--model={tokenizer_folder}", "--tokenizer_only"]) == 0
    model = tiny("qwen3", True)
    with torch.no_grad():
        model.final_norm.weight.fill_(math.inf)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        check_model.main([f"--model={save_hf(model, tmp_path / 'inf', str(tokenizer_folder))}"])
    assert stopped.value.code == 2 and "not finite" in capsys.readouterr().err


def test_log_likelihoods_are_sums_of_the_models_own():
    model = tiny("qwen3", True, block_size=16)
    pairs = [([3, 1, 4], [1, 5]), ([9], [2, 6, 5]), (list(range(30)), [40, 41, 42]), ([7], list(range(16)))]
    for batch_size in (1, 3):
        for (context, continuation), got in zip(
            pairs, log_likelihoods(model, pairs, batch_size), strict=True
        ):
            ids = torch.tensor([*context, *continuation])[-17:]
            with torch.no_grad():
                table = model(ids[None, :-1])[0][0].log_softmax(-1)
            n = len(continuation)
            want = table[-n:].gather(1, ids[-n:, None]).sum()
            assert got == pytest.approx(float(want), abs=1e-3)
    for bad in (([], [1]), ([1], []), ([1], [2] * 17)):
        with pytest.raises(ValueError, match=r"empty|exceeds"):
            log_likelihoods(model, [bad])


def test_every_token_of_a_document_counts_once(tokenizer_folder):
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    model = tiny("qwen3", True, block_size=16)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # knows nothing: every token costs ln V
    long = TEXT * 5
    scores = score_documents(model, tokenizer, 0, [long, "", TEXT])
    n = len(tokenizer.encode(long).ids) + len(tokenizer.encode(TEXT).ids)
    assert (scores["tokens"], scores["bytes"], scores["documents"]) == (n, 6 * len(TEXT.encode()), 3)
    assert scores["nats_per_token"] == pytest.approx(math.log(360))
    assert scores["bits_per_byte"] == pytest.approx(n * math.log2(360) / scores["bytes"])
    fits = tiny("qwen3", True, block_size=512)
    ids = [0, *tokenizer.encode(long).ids]
    with torch.no_grad():
        loss = float(fits(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))[1])
    assert score_documents(fits, tokenizer, 0, [long])["nats_per_token"] == pytest.approx(loss, rel=1e-4)


def test_the_likeliest_choice_is_the_answer(tokenizer_folder):
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    model = tiny("qwen3", True)
    choices = ("the end", "names of the other things", "self")

    def likelihood(choice):
        stem = tokenizer.encode("def").ids
        ids = tokenizer.encode("def " + choice).ids
        return log_likelihoods(model, [(stem, ids[len(stem) :])])[0]

    sums = [likelihood(c) for c in choices]
    per_byte = [s / len(c) for s, c in zip(sums, choices, strict=True)]
    best, best_per_byte = sums.index(max(sums)), per_byte.index(max(per_byte))
    assert best != best_per_byte
    scores = score_questions(
        model, tokenizer, [Question("def", choices, i) for i in range(3)] + [Question("def", choices, best)]
    )
    assert (scores["questions"], scores["accuracy"], scores["accuracy_per_byte"]) == (4, 0.5, 0.25)
    assert scores["chance"] == pytest.approx(1 / 3) and scores["standard_error"] == 0.25


def test_score_on_a_file(exported, tmp_path, capsys):
    file = tmp_path / "held_out.jsonl"
    lines = [{"text": TEXT}, {"question": "def", "choices": ["self", "return"], "answer": 1}, {"text": TEXT}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    flags = [f"--model={exported['llama3', True]}", f"--file={file}", "--dtype=float32"]
    assert score.main(flags) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["held_out"]["documents"] == 2 and record["multiple_choice"]["questions"] == 1
    assert score.main([*flags, "--limit=1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["held_out"]["documents"] == 1 and "multiple_choice" not in record


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (prune_vocabulary, [], "--model=... is missing"),
        (
            prune_vocabulary,
            ["--model={m}", "--vocabulary={tmp}/good.jsonl", "--to={tmp}/x"],
            "is not a vocabulary",
        ),
        (prune_vocabulary, ["--model={m}", "--vocabulary={tmp}/none", "--to={tmp}/x"], "none"),
        (
            prune_vocabulary,
            ["--model={m}", "--vocabulary={tmp}/other.json", "--to={tmp}/x"],
            "made from another tokenizer",
        ),
        (prune_vocabulary, ["--model={m}", "--vocabulary={tmp}/other.json", "--to={tmp}"], "is not empty"),
        (check_model, [], "--model=DIR_OR_ID is missing"),
        (check_model, ["--model=/no/such"], "/no/such is not a folder"),
        (check_model, ["--model={tmp}"], "config.json is missing"),
        (check_model, ["--model={m}", "--context_length=65"], "exceeds the model's block_size=64"),
        (check_model, ["--model={m}", "--dtype=int4"], "dtype='int4'"),
        (score, ["--model={m}"], "--file=FILE.jsonl is missing"),
        (score, ["--model={m}", "--file={tmp}/none"], "none"),
        (score, ["--model={m}", "--file={tmp}/bad.jsonl"], "bad.jsonl, line 2: answer=2 is not an index"),
        (score, ["--model={m}", "--file={tmp}/worse.jsonl"], "worse.jsonl, line 1"),
        (score, ["--model={m}", "--file={tmp}/empty.jsonl"], "is empty"),
        (score, ["--out_dir={tmp}/none", "--file={tmp}/good.jsonl"], "no checkpoint"),
        (run_lm_eval, ["--model={m}"], 'pip install "lm_eval[hf]"'),
        (run_lm_eval, [], "--model=DIR_OR_ID is missing"),
        (run_lm_eval, ["--model={m}", "--limit=0"], "limit=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(script, flags, words, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)  # not installed
    question = {"question": "q", "choices": ["a", "b"]}
    (tmp_path / "bad.jsonl").write_text(
        json.dumps(question | {"answer": 1}) + "\n" + json.dumps(question | {"answer": 2})
    )
    (tmp_path / "worse.jsonl").write_text("{")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    other = {"ids": [1], "byte_ids": [], "added_ids": [], "tokenizer": {"name": "other", "sha256": "0" * 64}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        script.main([flag.format(m=exported["qwen3", True], tmp=tmp_path) for flag in flags])
    error = capsys.readouterr().err
    assert (
        stopped.value.code == 2
        and error.count("\n") == 1
        and words in error
        and sorted(tmp_path.iterdir()) == before
    )
