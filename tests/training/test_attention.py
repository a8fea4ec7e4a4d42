"""Which attention kernel a run takes: the timing is done on CPU for real, the choice for a GPU is made on figures of ours."""

import pytest
import torch
from conftest import read_events

from model_components import ATTENTION_BACKENDS
from model_config import get_preset_config
from training import attention
from training.config import TrainConfig
from training.dist import World, on_ranks

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = dict(n_layer=1, n_embd=32, n_head=4, num_key_value_heads=2, head_dim=8, d_ff=32, block_size=64, vocab_size=31)
BF16 = torch.bfloat16


def choose(world=World(), saved=None, device=CUDA, train=(), **fields):  # noqa: B008
    return attention.choose_kernel(
        get_preset_config("qwen3", **SMALL | fields), TrainConfig(batch_size=3, **dict(train)), device, BF16, world, saved
    )


@pytest.fixture
def timed(monkeypatch):
    """What is asked of time_kernels; it answers with made-up figures."""
    asked = []
    answer = {"sdpa": 2.0, "cudnn": 1.0, "efficient": 4.0, "flash_attn_3": "not there"}
    monkeypatch.setattr(attention, "time_kernels", lambda *a: asked.append(a) or answer)
    return asked, answer


def test_the_fastest_on_the_runs_own_shape(timed):
    asked, answer = timed
    assert choose() == ("cudnn", answer)
    assert asked == [((3, 4, 2, 64, 8), CUDA, BF16, 0.0)]
    answer.clear()
    assert choose(dropout=0.1) == ("sdpa", {}) and asked[1][3] == 0.1  # nothing could be timed


def test_what_is_not_measured(timed):
    assert choose(device=CPU) == ("auto", {})  # a table
    assert choose(attention_backend="efficient") == ("efficient", {})
    assert choose(train={"document_masking": True}) == ("auto", {})  # flex attention
    assert choose(saved="sdpa") == ("sdpa", {})  # a run that goes on
    assert not timed[0]


def test_a_saved_choice_that_cannot_run_here_is_made_anew(timed, monkeypatch):
    monkeypatch.setattr(attention, "backend_problem", lambda name, *rest: "gone" if name == "flash_attn_3" else None)
    assert choose(saved="flash_attn_3")[0] == choose(saved="auto")[0] == "cudnn"


def measure_on_a_rank(world):
    attention.time_kernels = lambda *a: {"sdpa": 1.0 + world.rank, "cudnn": 1.5} if world.rank == 0 else 1 / 0
    return choose(world)


def test_rank_0_measures_and_all_follow():
    assert on_ranks(2, measure_on_a_rank) == [["sdpa", {"sdpa": 1.0, "cudnn": 1.5}]] * 2


def test_timing_on_this_machine(monkeypatch):
    monkeypatch.setitem(
        ATTENTION_BACKENDS, "efficient", lambda q, k, v, dropout: 2 * ATTENTION_BACKENDS["sdpa"](q, k, v, dropout)
    )
    monkeypatch.setitem(ATTENTION_BACKENDS, "cudnn", lambda *a: 1 / 0)
    monkeypatch.setattr(attention, "backend_problem", lambda name, *rest: "no" if name == "flash_attn_2" else None)
    candidates = ("sdpa", "manual", "cudnn", "efficient", "flash_attn_2")
    results = attention.time_kernels((2, 4, 2, 48, 8), CPU, BF16, candidates=candidates, seconds=0.01)
    assert list(results) == list(candidates)
    assert 0 < results["sdpa"] < 1e4 and 0 < results["manual"] < 1e4  # ms
    assert results["cudnn"].startswith("ZeroDivisionError") and results["flash_attn_2"] == "no"
    assert "wrong" in results["efficient"]


def test_a_run_uses_logs_saves_and_keeps_its_kernel(run, tmp_path, monkeypatch, capsys):
    import train

    called, saved = [], []
    monkeypatch.setitem(ATTENTION_BACKENDS, "efficient", lambda *a: called.append(1) or ATTENTION_BACKENDS["sdpa"](*a))
    monkeypatch.setattr(
        train, "choose_kernel", lambda *a: saved.append(a[-1]) or ("efficient", {"efficient": 1.0, "sdpa": 2.0})
    )
    monkeypatch.setattr("model_components.backend_problem", lambda *a: None)
    for steps in (3, 6):
        assert run("a", f"--max_iters={steps}") == 0
    assert saved == [None, "efficient"] and called
    hardware = [e["hardware"] for e in read_events(tmp_path / "a", "run_start")]
    assert [(h["attention_backend"], h["attention_ms"]["sdpa"]) for h in hardware] == [("efficient", 2.0)] * 2
    assert "attention_backend='efficient'; ms a layer: {'efficient': 1.0, 'sdpa': 2.0}" in capsys.readouterr().out
