"""A measurement is a function of the data and the sizes alone, and a run knows by which one it was measured."""

import json
import math

import numpy as np
import pytest
from conftest import TINY_FLAGS, read_events, record_tokenizer, write_dataset

from tokenization.from_tiktoken import BYTE_CHARACTERS
from tokenization.text_bytes import text_of_ids
from tokens.loader import evaluated_windows
from tokens.reader import open_tokens
from training import checkpoint
from training.config import load_config
from training.meters import StepTimer
from training.run import build_run

WITHOUT_EVAL = [
    flag for flag in TINY_FLAGS if not flag.startswith(("--eval_tokens", "--batch_size", "--grad"))
]


def losses(folder) -> list[tuple[float, float]]:
    return [(e["train_loss"], e["val_loss"]) for e in read_events(folder, "eval")]


def tokenizer_json(pieces: list[str]) -> str:
    """A byte-level BPE without merges, whose token i is pieces[i]; 0 ends a text."""
    vocab = {
        piece: i
        for i, piece in enumerate([*pieces, *(c for c in BYTE_CHARACTERS.values() if c not in pieces)])
    }
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": 0, "content": pieces[0], "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })  # fmt: skip


def with_tokenizer(folder, letters: str = "a"):
    """A dataset whose token i stands for i % 5 + 1 letters."""
    pieces = ["<end>", *(letters * (i % 5 + 1) + f"{i:02}" for i in range(1, 97))]
    (folder / "tokenizer.json").write_text(tokenizer_json(pieces))
    record_tokenizer(folder)
    return folder


def test_the_windows_do_not_depend_on_how_a_step_is_cut(run, tmp_path):
    """The same eight sequences a step, as 4 x 2 and as 8 x 1: the same training, the same figures."""
    for name, cut in (("a", (4, 2)), ("b", (8, 1))):
        batch = [f"--batch_size={cut[0]}", f"--gradient_accumulation_steps={cut[1]}"]
        assert run(name, *batch, "--eval_tokens=160") == 0
    run("more", "--batch_size=4", "--gradient_accumulation_steps=2", "--eval_tokens=320")
    a, b, more = (losses(tmp_path / name) for name in ("a", "b", "more"))
    assert np.allclose(a, b, rtol=1e-6) and not np.allclose(a, more, rtol=1e-4)


def test_eval_iters_is_a_way_to_say_eval_tokens(dataset, tmp_path):
    flags = [*WITHOUT_EVAL, f"--dataset={dataset}", f"--out_dir={tmp_path}/r", "--eval_iters=1"]
    for batch_size in (1, 5):
        model_config, config = load_config([*flags, f"--batch_size={batch_size}"])
        assert config.evaluated_tokens(model_config.block_size) == 12 * 16
        run = build_run(model_config, config)
        assert run.state.measurement["windows"] == 12
        assert any("means eval_tokens=192: 1 x 12 windows of 16" in note for note in run.notes)
        run.close()


def test_bits_per_byte_are_of_the_windows_that_were_evaluated(run, dataset, tmp_path):
    with_tokenizer(dataset)
    run("a", "--eval_tokens=64")
    tokens = open_tokens(dataset, "val", 97)
    _, windows = evaluated_windows(tokens, 4, 16)
    targets = np.concatenate([tokens.read(w * 16 + 1, 16) for w in windows.tolist()])
    n_bytes = sum(0 if i == 0 else i % 5 + 3 for i in targets.tolist())
    for e in read_events(tmp_path / "a", "eval"):
        assert e["val_bits_per_byte"] == pytest.approx(e["val_loss"] * len(targets) / math.log(2) / n_bytes)
    (start,) = read_events(tmp_path / "a", "run_start")
    assert start["measurement"]["bytes"] == n_bytes and start["measurement"]["tokens"] == 64
    assert start["data"]["bytes_per_token"] == pytest.approx(n_bytes / 64)


def test_the_text_of_a_split_has_a_digest_that_every_tokenizer_gives(tmp_path):
    """One text as letters, and as pairs of them: the bytes are the same, and are those that were put in."""
    words = ["abab", "ba", "", "aab"]
    folders = {}
    for name, pieces in (("letters", ["<end>", "a", "b"]), ("pairs", ["<end>", "a", "b", "ab", "ba"])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").write_text(tokenizer_json(pieces))
        text, ids = text_of_ids(folder, 0), []
        for word in words:
            while word:
                piece = max((p for p in pieces[1:] if word.startswith(p)), key=len)
                ids.append(pieces.index(piece))
                word = word[len(piece) :]
            ids.append(0)
        ids = np.array(ids)
        assert text.count(np.concatenate([[0], ids[:-1]]), ids) == 9
        folders[name] = {text.digest(np.array_split(ids, n)) for n in (1, 3)}
    assert folders["letters"] == folders["pairs"] and len(folders["pairs"]) == 1
    assert text.digest([np.array([1, 0])]) not in folders["pairs"]


def test_a_space_that_the_tokenizer_adds_is_no_text(tmp_path):
    record = json.loads(tokenizer_json(["<end>"]))
    vocab = {"<end>": 0, "\u2581a": 1, "b": 2, "<0x0A>": 3}
    others = (f"<0x{i:02X}>" for i in range(256) if i != 0x0A)
    vocab |= {piece: i for i, piece in enumerate(others, 4)}
    record["model"] |= {"vocab": vocab, "byte_fallback": True}
    record["pre_tokenizer"] = None
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = [{"type": "Prepend", "prepend": "\u2581"}, spaces]
    record["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    text, ids = text_of_ids(tmp_path, 0), np.array([1, 1, 2, 3, 0, 1, 0])
    assert text.count(np.array([0, 1, 1, 2, 3, 0, 1]), ids) == len("a ab\n") + len("a")


def test_a_space_that_may_be_the_texts_own_gives_no_digest(tmp_path):
    record = json.loads(tokenizer_json(["<end>", "a"]))
    record["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    text = text_of_ids(tmp_path, 0)
    assert text.prefixed and not text.exact


@pytest.mark.parametrize("spoil", [
    lambda record: record.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Removed"}),
    lambda record: record["model"]["vocab"].pop("b"), lambda record: record["model"].update(type="WordPiece"),
])  # fmt: skip
def test_a_tokenizer_that_drops_text_does_not_count_bytes(tmp_path, spoil):
    record = json.loads(tokenizer_json(["<end>", "a"]))
    spoil(record)
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    assert text_of_ids(tmp_path, 0) is None


@pytest.mark.parametrize("normalizer", ["Lowercase", "NFKC", "StripAccents"])
def test_a_tokenizer_that_loses_text_does_not_count_bytes(tmp_path, normalizer):
    record = json.loads(tokenizer_json(["<end>", "a"]))
    record["normalizer"] = {"type": normalizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    assert text_of_ids(tmp_path, 0) is None


def test_best_starts_anew_where_the_measurement_is_another(run, tmp_path, capsys):
    run("a", "--max_iters=3", "--lr_decay_iters=6")
    best = checkpoint.load_state(checkpoint.checkpoint_path(tmp_path / "a", 3))[0].best
    assert best["step"] in (0, 3)
    capsys.readouterr()
    run("a", "--max_iters=6", "--lr_decay_iters=6", "--eval_tokens=96", "--eval_interval=6")
    assert (
        "evaluations differ from the checkpoint's in evaluated windows: the best so far ("
        in capsys.readouterr().out
    )
    state = checkpoint.load_state(checkpoint.checkpoint_path(tmp_path / "a", 6))[0]
    assert state.measurement["windows"] == 6
    run("a", "--max_iters=7", "--lr_decay_iters=6", "--eval_tokens=96")
    assert "evaluations differ" not in capsys.readouterr().out


def test_the_logged_loss_is_the_cross_entropy(run, tmp_path):
    """Its first step, before any update, is the same with and without z_loss; what that adds stands beside it."""
    for name, z_loss in (("plain", "0"), ("z", "0.01")):
        run(name, f"--z_loss={z_loss}", "--max_iters=2")
    plain, z = (read_events(tmp_path / name, "train")[0] for name in ("plain", "z"))
    assert plain["loss"] == pytest.approx(z["loss"], rel=1e-6) and "z_loss" not in plain
    assert z["z_loss"] == pytest.approx(0.01 * math.log(97) ** 2, rel=0.05)


def test_waiting_for_the_device_is_part_of_the_steps():
    """A device with a queue: steps return at once, and whoever reads next waits for all of them."""
    queue = []

    def wait() -> None:
        queue.clear()
        timer._started -= 0.1  # what the queue held took a tenth of a second

    timer = StepTimer(wait=wait)
    for _ in range(10):
        timer.start()
        queue.append("a step")
        timer.stop(1)
    timer.settle()
    assert not queue and 10 <= timer.lap_ms() < 20 and timer.trained_s > 0.1
    timer.settle()
    assert timer.trained_s < 0.2  # nothing is owed after a lap


def test_evaluating_saving_and_looking_at_bad_steps_wait_first(dataset, tmp_path):
    run = build_run(*load_config([*TINY_FLAGS, f"--dataset={dataset}", f"--out_dir={tmp_path}/r"]))
    waits = []
    run.timer.wait = lambda: waits.append(run.state.step)
    for look in (run.evaluate, run.bad_steps, run.save):
        run.step(read=False)
        look()
    run.close()
    assert waits == [1, 2, 3]


def test_whole_splits_of_one_text_are_known_as_such(dataset, tmp_path):
    """By two tokenizers whose tokens stand for the same bytes; by another text they are not."""
    texts = {}
    for name, letters in (("a", "a"), ("b", "a"), ("c", "c")):
        folder = with_tokenizer(write_dataset(tmp_path / name, val_tokens=3000), letters)
        flags = [*TINY_FLAGS, f"--dataset={folder}", f"--out_dir={tmp_path}/r"]
        for tokens in (64, 10_000):
            run = build_run(*load_config([*flags, f"--eval_tokens={tokens}"]))
            texts[name, tokens] = run.state.measurement["text"]
            run.close()
    assert texts["a", 64] is None and texts["a", 10_000] == texts["b", 10_000] != texts["c", 10_000]
