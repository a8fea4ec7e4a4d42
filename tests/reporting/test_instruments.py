"""The profile's table accounts for the step, a profile changes no result, and the matmul rate is one."""

import json

import pytest
import torch
from conftest import read_events

from reporting.instruments import StepProfile, category, time_table


@pytest.mark.parametrize("name, kind", [
    ("aten::mm", "matmul"),
    ("mkldnn::_linear_pointwise", "matmul"),
    ("sm90_xmma_gemm_bf16bf16_bf16f32", "matmul"),
    ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NTT", "matmul"),
    ("aten::bmm", "attention"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma", "attention"),
    ("triton_tem_fused_flex_attention_3", "attention"),
    ("triton_poi_fused_mul_silu_4", "fused by the compiler"),
    ("graph_0_cpp_fused_mul_rms_norm_2", "fused by the compiler"),
    ("aten::_fused_adamw_", "optimizer"),
    ("ncclDevKernel_AllReduce_Sum_bf16", "communication"),
    ("aten::_log_softmax", "loss"),
    ("aten::mul", "elementwise"),
    ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
    ("something_new", "other"),
])  # fmt: skip
def test_categories(name, kind):
    assert category(name) == kind


def test_the_table_adds_up():
    table = time_table(
        {"aten::mm": 60.0, "aten::bmm": 10.0, "aten::mul": 1.9, "aten::add": 1.0}, wall_ms=100.0, steps=3
    )
    shares = {
        line[:22].strip(): line.split()[-1] for line in table.splitlines()[1:] if not line.startswith(" ")
    }
    assert shares == {
        "matmul": "60.0%",
        "attention": "10.0%",
        "elementwise": "2.9%",
        "outside operators": "27.1%",
    }
    assert "aten::bmm" in table and "aten::mul" not in table  # 2 % of the step


def test_a_profile_changes_no_result(run, tmp_path, capsys):
    run("plain", "--optimizer=muon")
    capsys.readouterr()
    run("profiled", "--optimizer=muon", "--profile=2")
    out = capsys.readouterr().out
    table = (tmp_path / "profiled" / "profile" / "table.txt").read_text()
    assert table.strip() in out and "matmul" in table
    other = [line for line in table.splitlines() if line.startswith("other")]
    assert not other or float(other[0].split()[-1].rstrip("%")) < 2  # nothing above 2 % is unexplained
    trace = json.loads((tmp_path / "profiled" / "profile" / "trace.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    plain, profiled = ([e["loss"] for e in read_events(tmp_path / n, "train")] for n in ("plain", "profiled"))
    assert plain == profiled
    assert not (tmp_path / "plain" / "profile").exists()


def test_too_few_steps_for_a_profile(run, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run("short", "--profile=4")
    assert stopped.value.code == 2 and "profile=4 needs 7 steps, this run makes 6" in capsys.readouterr().err
    assert not (tmp_path / "short").exists()


def test_only_the_steps_asked_for(tmp_path):
    profile = StepProfile(2, tmp_path, torch.device("cpu"))
    answers = []
    for _ in range(9):
        torch.ones(64, 64) @ torch.ones(64, 64)
        answers.append(profile.step())
    assert [a is not None for a in answers] == [False] * 4 + [True] + [False] * 4
