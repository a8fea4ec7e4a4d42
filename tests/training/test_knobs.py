"""Every knob of a run turns something."""

import json

import pytest
import torch
from conftest import read_events

from model_builder import ConfigurableGPT
from model_config import get_preset_config
from tokens.loader import BatchLoader
from training.config import TRAIN_FIELDS, TrainConfig
from training.optim import build_optimizers, learning_rate_at


def model_and(**fields: object) -> tuple[ConfigurableGPT, TrainConfig]:
    config = get_preset_config("gpt2", n_layer=1, n_embd=32, n_head=2, block_size=8, vocab_size=11)
    return ConfigurableGPT(config), TrainConfig(**{"min_lr": 0.0, **fields})


def optimizer_groups(**fields: object) -> list:
    model, config = model_and(**fields)
    keys = ("lr", "betas", "weight_decay", "lr_ratio")
    return [
        [type(o).__name__, {k: g.get(k) for k in keys}]
        for o in build_optimizers(model, config, torch.device("cpu"))
        for g in o.param_groups
    ]


def schedule(**fields: object) -> list[float]:
    return [
        learning_rate_at(step, TrainConfig(**{"max_iters": 20, "warmup_iters": 2, **fields}))
        for step in range(22)
    ]


OPTIMIZER_KNOBS = {"optimizer": "muon", "weight_decay": 0.5, "beta1": 0.5, "beta2": 0.5}

SCHEDULE_KNOBS = {
    "learning_rate": 1e-3,
    "min_lr": 1e-5,
    "lr_schedule": "linear",
    "warmup_iters": 5,
    "lr_decay_iters": 10,
}

# Each of these changes what a tiny run leaves behind; the flags, and a question to its events and printed
# lines
RUN_KNOBS = {
    "batch_size": (["--batch_size=4"], lambda e, out: e[-1]["tokens"] == 6 * 4 * 2 * 16),
    "gradient_accumulation_steps": (["--gradient_accumulation_steps=1"], lambda e, out: e[-1]["tokens"] == 6 * 2 * 16),
    "max_iters": (["--max_iters=4"], lambda e, out: e[-1]["step"] == 4),
    "eval_interval": (["--eval_interval=2"], lambda e, out: [x["step"] for x in e if x["event"] == "eval"] == [0, 2, 4, 6]),
    "log_interval": (["--log_interval=4"], lambda e, out: [x["step"] for x in e if x["event"] == "train"] == [1, 4, 6]),
    "checkpoint_interval": (["--checkpoint_interval=4"],
                            lambda e, out: [x["step"] for x in e if x["event"] == "checkpoint"] == [4, 6]),
    "eval_only": (["--eval_only", "--init_from=scratch"],
                  lambda e, out: [x["event"] for x in e] == ["run_start", "eval", "run_end"]),
    "dtype": (["--dtype=bfloat16"], lambda e, out: e[0]["hardware"]["dtype"] == "bfloat16"),
    "device": (["--device=auto"], lambda e, out: e[0]["hardware"]["device"] in ("cpu", "cuda", "mps")),
    "profile": (["--profile=2"], lambda e, out: out.count("profile of 2 steps, ") == 1),
    "use_zero1": (["--use_zero1"], lambda e, out: out.count("use_zero1=True") == 1),
    "use_fsdp": (["--use_fsdp"], lambda e, out: out.count("use_fsdp=True") == 1),
}  # fmt: skip

# Shown by the test named, here or in another file
ELSEWHERE = {
    "arch_preset": "test_flags_over_file_over_preset_over_defaults",
    "dataset": "test_resume: test_resume_refuses_another_model_or_another_order",
    "document_masking": "test_train: test_document_masking_changes_the_loss_and_resumes",
    "data_dtype": "test_a_nanogpt_folder_needs_its_dtype",
    "seed": "test_the_seed_moves_weights_and_data",
    "sample_prompt": "inference/test_samples: test_a_run_samples_at_its_evaluations",
    "sample_tokens": "inference/test_samples: test_a_run_samples_at_its_evaluations",
    "eval_tokens": "test_measure: test_the_windows_do_not_depend_on_how_a_step_is_cut",
    "eval_iters": "test_measure: test_eval_iters_is_a_way_to_say_eval_tokens",
    "compile": "test_compile_and_grad_clip",
    "grad_clip": "test_compile_and_grad_clip",
    "muon_learning_rate": "test_muons_own_learning_rate_and_wsd",
    "wsd_decay_fraction": "test_muons_own_learning_rate_and_wsd",
    "out_dir": "test_train: every test",
    "init_from": "test_what_is_kept: test_finished_scratch_and_kept_checkpoints",
    "resize_vocabulary": "inference/test_hf_vocabularies: test_a_run_from_a_model_of_another_vocabulary",
    "keep_last": "test_what_is_kept: test_finished_scratch_and_kept_checkpoints",
    "always_save_checkpoint": "test_what_is_kept: test_finished_scratch_and_kept_checkpoints",
    "async_checkpoint": "test_resume: test_an_asynchronous_checkpoint_is_written_while_steps_continue",
    "fp8": "test_fp8: test_a_run_in_fp8",
    "hybrid_shard_size": "test_parallel: test_what_a_rank_holds",
    "reduce_dtype": "test_parallel: test_gradients_may_travel_in_bf16",
    "activation_checkpointing": "test_parallel: test_recomputation_saves_memory",
    "dist_timeout_s": "faults/test_torchrun: test_a_hung_rank_ends_the_job_and_is_named",
    "max_bad_steps": "test_faults: test_too_many_of_them_end_the_run",
    "spike_factor": "test_faults: test_spikes_are_skipped_when_asked_for",
    "dashboard": "test_dashboard: test_on_a_terminal",
    "wandb_log": "test_metrics: test_a_backend_never_stops_a_run",
    "tensorboard_log": "test_metrics: test_tensorboard",
    "trackio_log": "test_metrics: test_a_backend_never_stops_a_run",
    "wandb_project": "test_wandb_names",
    "wandb_run_name": "test_wandb_names",
}


def test_the_tables_have_every_knob():
    tables = [OPTIMIZER_KNOBS, SCHEDULE_KNOBS, RUN_KNOBS, ELSEWHERE]
    assert sorted(name for table in tables for name in table) == sorted(TRAIN_FIELDS)


@pytest.mark.parametrize("field", OPTIMIZER_KNOBS)
def test_optimizer_knobs_turn(field):
    assert optimizer_groups() != optimizer_groups(**{field: OPTIMIZER_KNOBS[field]})


@pytest.mark.parametrize("field", SCHEDULE_KNOBS)
def test_schedule_knobs_turn(field):
    assert schedule() != schedule(**{field: SCHEDULE_KNOBS[field]})


@pytest.mark.parametrize("field", RUN_KNOBS)
def test_run_knobs_turn(run, tmp_path, capsys, field):
    flags, holds = RUN_KNOBS[field]
    assert run("plain") == 0
    plain = read_events(tmp_path / "plain"), capsys.readouterr().out
    assert run("turned", *flags) == 0
    assert holds(read_events(tmp_path / "turned"), capsys.readouterr().out)
    assert field == "device" or not holds(*plain)


def test_muons_own_learning_rate_and_wsd():
    assert optimizer_groups(optimizer="muon") != optimizer_groups(optimizer="muon", muon_learning_rate=0.02)
    assert optimizer_groups(optimizer="muon", muon_learning_rate=0.02)[-1][1]["lr_ratio"] == pytest.approx(
        0.02 / 6e-4
    )
    assert schedule(lr_schedule="wsd") != schedule(lr_schedule="wsd", wsd_decay_fraction=0.5)


def test_the_seed_moves_weights_and_data(dataset):
    from tokens.reader import open_tokens

    tokens = open_tokens(dataset, "train", 97)
    (a, _), (b, _) = (BatchLoader(tokens, 8, 4, 1, seed).micro_batch(0, 0) for seed in (1, 2))
    assert not torch.equal(a, b)


def test_compile_and_grad_clip(run, tmp_path, monkeypatch, capsys):
    run("plain")
    run("clipped", "--grad_clip=0.01")
    run("unclipped", "--grad_clip=0")
    plain, clipped, unclipped = (read_events(tmp_path / n) for n in ("plain", "clipped", "unclipped"))
    assert (
        plain[2]["grad_norm"] == clipped[2]["grad_norm"] == unclipped[2]["grad_norm"] > 0.01
    )  # logged before clipping
    assert (
        len(
            {json.dumps([e["loss"] for e in r if e["event"] == "train"]) for r in (plain, clipped, unclipped)}
        )
        == 3
    )
    capsys.readouterr()
    monkeypatch.setenv("CXX", "no-such-compiler")
    run("compiled", "--compile")
    assert (
        "compile=True is switched off: on CPU it needs a C++ compiler, and no-such-compiler is not"
        in capsys.readouterr().out
    )
    compiled = []
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(ConfigurableGPT, "compile", lambda self, **how: compiled.append(how))
    run("compiled2", "--compile")
    assert compiled == [{"dynamic": False}]
