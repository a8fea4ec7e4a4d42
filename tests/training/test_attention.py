"""Which attention kernel a run takes: the timing is done on CPU for real, the choice for a GPU is made on
figures of ours."""

import pytest
import torch
from conftest import read_events

from model_config import get_preset_config
from operators.attention import ATTENTION_BACKENDS
from training import attention
from training.config import TrainConfig
from training.world import World, on_ranks

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = dict(
    n_layer=1, n_embd=32, n_head=4, num_key_value_heads=2, head_dim=8, d_ff=32, block_size=64, vocab_size=31
)
BF16 = torch.bfloat16


def choose(world=World(), saved=None, device=CUDA, train=(), **fields):  # noqa: B008
    return attention.choose_kernel(
        get_preset_config("qwen3", **SMALL | fields),
        TrainConfig(batch_size=3, **dict(train)),
        device,
        BF16,
        world,
        saved,
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
    assert choose(saved="sdpa") == ("sdpa", {})  # a run that resumes
    assert not timed[0]


def test_a_saved_choice_that_cannot_run_here_is_made_anew(timed, monkeypatch):
    monkeypatch.setattr(
        attention, "backend_problem", lambda name, *rest: "gone" if name == "flash_attn_3" else None
    )
    assert choose(saved="flash_attn_3")[0] == choose(saved="auto")[0] == choose(saved="manual")[0] == "cudnn"
    assert choose(saved="efficient") == ("efficient", {})


def measure_on_a_rank(world):
    attention.time_kernels = lambda *a: {"sdpa": 1.0 + world.rank, "cudnn": 1.5} if world.rank == 0 else 1 / 0
    attention.backend_problem = lambda *a: "not on this machine" if world.rank == 1 else None
    return [choose(world), choose(world, saved="flash_attn_3")]


def test_rank_0_measures_and_all_follow():
    """And what was saved has to run on every one of them."""
    assert on_ranks(2, measure_on_a_rank) == [[["sdpa", {"sdpa": 1.0, "cudnn": 1.5}]] * 2] * 2


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return ATTENTION_BACKENDS["sdpa"](q, k, v, 0.0)

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.zeros_like(t) for t in ctx.saved_tensors)


def test_timing_on_this_machine(monkeypatch):
    monkeypatch.setitem(ATTENTION_BACKENDS, "flash_attn_2", lambda *a: 1 / 0)
    monkeypatch.setitem(ATTENTION_BACKENDS, "flash_attn_3", lambda *a: 2 * ATTENTION_BACKENDS["sdpa"](*a))
    monkeypatch.setitem(
        ATTENTION_BACKENDS, "flash_attn_4", lambda q, k, v, dropout: WrongBackward.apply(q, k, v)
    )
    monkeypatch.setattr(
        attention, "backend_problem", lambda name, *rest: "no" if name == "efficient" else None
    )
    candidates = (
        "sdpa",
        "manual",
        "flash",
        "efficient",
        "cudnn",
        "flash_attn_2",
        "flash_attn_3",
        "flash_attn_4",
    )
    results = attention.time_kernels((2, 4, 2, 48, 8), CPU, BF16, candidates=candidates, seconds=0.01)
    assert list(results) == list(candidates)
    assert all(0 < results[name] < 1e4 for name in ("sdpa", "manual", "flash"))  # ms
    assert results["efficient"] == "no" and results["flash_attn_2"].startswith("ZeroDivisionError")
    assert results["cudnn"].startswith("RuntimeError")  # torch would take another kernel in its place
    assert (
        "its output is wrong by 1" in results["flash_attn_3"]
        and "its dq is wrong by 1" in results["flash_attn_4"]
    )


def test_kernels_are_timed_on_as_many_threads_as_the_run_has(monkeypatch):
    threads, seen = torch.get_num_threads(), set()
    sdpa = ATTENTION_BACKENDS["sdpa"]
    monkeypatch.setitem(ATTENTION_BACKENDS, "sdpa", lambda *a: seen.add(torch.get_num_threads()) or sdpa(*a))
    torch.set_num_threads(2)
    try:
        attention.time_kernels((1, 2, 2, 8, 8), CPU, BF16, candidates=["sdpa"], seconds=0.01)
    finally:
        torch.set_num_threads(threads)
    assert seen == {2}


def test_gradients_that_are_not_finite(monkeypatch):
    monkeypatch.setattr(attention, "wrong_results", lambda *a: None)
    monkeypatch.setitem(
        ATTENTION_BACKENDS, "sdpa", lambda q, k, v, dropout: (q * float("nan")) + 0 * (k.sum() + v.sum())
    )
    results = attention.time_kernels((1, 2, 2, 8, 8), CPU, BF16, candidates=["sdpa"], seconds=0.01)
    assert results == {"sdpa": "its gradients are not finite"}


def test_a_run_uses_logs_saves_and_keeps_its_kernel(run, tmp_path, monkeypatch, capsys):

    called, saved = [], []
    monkeypatch.setitem(
        ATTENTION_BACKENDS, "efficient", lambda *a: called.append(1) or ATTENTION_BACKENDS["sdpa"](*a)
    )
    monkeypatch.setattr(
        "training.run.choose_kernel",
        lambda *a: saved.append(a[-1]) or ("efficient", {"efficient": 1.0, "sdpa": 2.0}),
    )
    monkeypatch.setattr("operators.attention.backend_problem", lambda *a: None)
    for steps in (3, 6):
        assert run("a", f"--max_iters={steps}") == 0
    assert saved == [None, "efficient"] and called
    assert (
        run("a", "--max_iters=9", "--attention_backend=manual") == 0
    )  # the user's choice is not a measurement
    assert run("a", "--max_iters=12") == 0 and saved[2:] == ["efficient", None]
    hardware = [e["hardware"] for e in read_events(tmp_path / "a", "run_start")]
    assert [(h["attention_backend"], h["attention_ms"]["sdpa"]) for h in hardware] == [("efficient", 2.0)] * 4
    assert (
        "attention_backend='efficient'; ms a layer: {'efficient': 1.0, 'sdpa': 2.0}"
        in capsys.readouterr().out
    )
