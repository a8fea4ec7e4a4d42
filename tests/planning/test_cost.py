"""The MFU of a run that was measured, and what a budget is."""

import json

import pytest

import plan
from base.errors import InputError
from hardware.gpus import GPUS
from planning.cost import budget_flops, measured_mfu
from planning.fit import largest_divisor
from planning.options import PlanOptions

HARDWARE = {"world_size": 1, "device_name": "X1", "peak_flops_per_s": 100.0}
MODEL = {"architecture_name": "x", "params": 1, "params_non_embedding": 1, "flops_per_token": 10}
START = {
    "event": "run_start", "config": {"train": {}, "model": {}}, "hardware": HARDWARE, "model": MODEL
}  # fmt: skip
STEPS = [{"event": "train", "step": i, "loss": 2.0, "tokens": i, "tokens_per_s": 5.0} for i in range(1, 5)]


def mfu(peak=None, steps=STEPS, **start):
    return measured_mfu(START | start, steps, "--measured=x", peak)[0]


def test_a_measured_run():
    assert mfu() == pytest.approx(0.5)
    assert mfu(100.0, hardware=HARDWARE | {"peak_flops_per_s": None}) == pytest.approx(0.5)
    full = {"train": {"activation_checkpointing": "full"}, "model": {}}
    assert mfu(config=full) == pytest.approx(0.5 * 4 / 3)  # as if nothing were recomputed


@pytest.mark.parametrize(
    "start, said",
    [
        ({"hardware": {}}, "on how many GPUs"),
        ({"hardware": []}, "on how many GPUs"),
        ({"hardware": HARDWARE | {"world_size": "2"}}, "on how many GPUs"),
        ({"hardware": HARDWARE | {"world_size": True}}, "on how many GPUs"),
        ({"hardware": HARDWARE | {"peak_flops_per_s": None}}, "the peak of X1 is unknown"),
        ({"hardware": HARDWARE | {"peak_flops_per_s": "fast"}}, "the peak of X1 is unknown"),
        ({"hardware": HARDWARE | {"peak_flops_per_s": -1}}, "the peak of X1 is unknown"),
        ({"model": MODEL | {"flops_per_token": 0}}, "flops_per_token"),
        ({"model": None}, "flops_per_token"),
    ],
)
def test_a_run_that_does_not_say_enough(start, said):
    with pytest.raises(InputError, match=f"^--measured=x.*{said}"):
        mfu(**start)


@pytest.mark.parametrize("mode", [None, [], {"a": 1}, "half", 3])
def test_recomputation_that_is_none(mode):
    assert mfu(config={"train": {"activation_checkpointing": mode}}) == mfu(config=[]) == pytest.approx(0.5)


def test_steps_without_a_rate_do_not_count():
    odd = [{"tokens_per_s": rate} for rate in (None, 0, "5", True, -3.0)]
    assert mfu(steps=odd + STEPS) == pytest.approx(0.5)
    with pytest.raises(InputError, match="2 steps were logged"):
        mfu(steps=odd + STEPS[:2])


def test_the_log_of_a_folder(tmp_path):
    write = lambda start: (tmp_path / "run_x.jsonl").write_text(  # noqa: E731
        "".join(json.dumps(e) + "\n" for e in (start, *STEPS))
    )
    write(START | {"hardware": {}})
    with pytest.raises(InputError, match="on how many GPUs"):
        plan.mfu_of(PlanOptions(measured=str(tmp_path), peak_tflops=1.0))
    write(START | {"hardware": HARDWARE | {"peak_flops_per_s": None}})
    with pytest.raises(InputError, match="the peak of X1 is unknown"):
        plan.mfu_of(PlanOptions(measured=str(tmp_path)))
    assert plan.mfu_of(PlanOptions(measured=str(tmp_path), peak_tflops=1e-10))[0] == pytest.approx(0.5)
    write(START)
    assert plan.mfu_of(PlanOptions(measured=str(tmp_path))) == (
        pytest.approx(0.5),
        "the median of 4 logged steps on 1 x X1",
    )


def test_a_budget():
    gpu = GPUS["H100"]
    assert budget_flops("1e21", gpu, None) == 1e21
    assert budget_flops("500gpu-hours", gpu, 0.5) == pytest.approx(500 * 3600 * 989e12 * 0.5)


@pytest.mark.parametrize(
    "budget",
    ["lots", "", "nan", "inf", "-1", "0", "1e400", "1e300", "1e-300", "gpu-hours", "5gpu-hours!", "1_0gpu-hoursgpu-hours"]
    + ["1e300gpu-hours"],
)  # fmt: skip
def test_what_is_not_a_budget(budget):
    with pytest.raises(InputError, match=r"^--budget="):
        budget_flops(budget, GPUS["H100"], 0.5)


def test_the_largest_divisor():
    for n in (1, 12, 97, 360):
        for most in range(0, n + 2):
            divisors = [d for d in range(1, min(n, most) + 1) if n % d == 0]
            assert largest_divisor(n, most) == (divisors[-1] if divisors else None)
