"""A checkpoint whose files are whole and do not belong together is passed over, as a damaged one is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import read_events
from safetensors.torch import load_file, save_file

from base.files import describe
from training import checkpoint


def sign(path: Path) -> None:
    """The manifest of what is there."""
    files = {f.name: describe(f) for f in sorted(path.iterdir()) if f.name != "manifest.json"}
    (path / "manifest.json").write_text(json.dumps(files))


def edit(path: Path, name: str, change: Callable[[dict], None]) -> None:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def tensors(path: Path, name: str, change: Callable[[dict], object]) -> None:
    content = load_file(path / name)
    change(content)
    save_file(content, path / name, {"format": "pt"})


WEIGHT, MOMENT = "blocks.1.ffn.up.weight", "blocks.1.ffn.up.weight/exp_avg"
LIES = {
    "step": (lambda p: edit(p, "state.json", lambda s: s.update(step=3)), "is that of step 3"),
    "half": (lambda p: tensors(p, "model.safetensors", lambda t: t.update({WEIGHT: t[WEIGHT].half()})), "float16"),
    "bf16 moment": (
        lambda p: tensors(p, "optimizer.safetensors", lambda t: t.update({MOMENT: t[MOMENT].bfloat16()})),
        "bfloat16",
    ),
    "no optimizer": (lambda p: (p / "optimizer.safetensors").unlink(), "lacks optimizer state"),
    "a part of it": (
        lambda p: tensors(
            p, "optimizer.safetensors", lambda t: [t.pop(n) for n in list(t) if n.startswith(WEIGHT)]
        ),
        "lacks optimizer state",
    ),
    "transposed": (
        lambda p: tensors(p, "model.safetensors", lambda t: t.update({WEIGHT: t[WEIGHT].T.contiguous()})),
        rf"the shape of {WEIGHT} is \[32, 64\], its configuration says \[64, 32\]",
    ),
    "a weight too few": (lambda p: tensors(p, "model.safetensors", lambda t: t.pop(WEIGHT)), "is missing, its"),
    "a weight too many": (
        lambda p: tensors(p, "model.safetensors", lambda t: t.update(extra=torch.ones(2))),
        "shape of extra is",
    ),
    "shape of a moment": (
        lambda p: tensors(p, "optimizer.safetensors", lambda t: t.update({MOMENT: torch.zeros(3)})),
        r"has shape \[3\], which is not that of its weight",
    ),
    "another model": (lambda p: edit(p, "config.json", lambda c: c["model"].update(n_layer=3)), "is missing, its"),
    "no such model": (lambda p: edit(p, "config.json", lambda c: c["model"].update(n_head=5)), "n_head"),
    "no tensors": (lambda p: (p / "model.safetensors").write_bytes(b"\xff" * 64), "of another format"),
    "wrong sharding": (
        lambda p: save_file(
            load_file(p / "model.safetensors"), p / "model.safetensors", {"DCP_SHARDING_INFO": "[]"}
        ),
        "of another format",
    ),
    "a piece elsewhere": (
        lambda p: save_file(
            load_file(p / "model.safetensors"),
            p / "model.safetensors",
            {"DCP_SHARDING_INFO": json.dumps(
                {n: {"saved_offsets": [9] * t.dim()} for n, t in load_file(p / "model.safetensors").items()}
            )},
        ),
        "is there in part",
    ),
}  # fmt: skip


@pytest.fixture
def two(run, tmp_path) -> Path:
    """A run with checkpoints of steps 3 and 6."""
    run("a")
    return tmp_path / "a"


def test_files_that_do_not_belong_together(two, caplog):
    """One run for all: each lie is told and taken back."""
    older, newest = (checkpoint.checkpoint_path(two, step) for step in (3, 6))
    good = {f.name: f.read_bytes() for f in newest.iterdir()}
    for name, (tell, said) in LIES.items():
        tell(newest)
        sign(newest)
        assert checkpoint.find_damage(newest) is None, name
        caplog.clear()
        assert checkpoint.find_checkpoint(two) == older, name
        assert "passing over the damaged checkpoint" in caplog.text and str(newest) in caplog.text
        with pytest.raises(ValueError, match=said):
            checkpoint.find_checkpoint(two, 6)
        for file, content in good.items():
            (newest / file).write_bytes(content)
    assert checkpoint.find_checkpoint(two) == newest


def test_a_run_resumes_from_the_one_before_and_keeps_the_lie_aside(run, two):
    newest = checkpoint.checkpoint_path(two, 6)
    LIES["step"][0](newest)
    sign(newest)
    assert run("a") == 0
    assert read_events(two, "run_start")[-1]["start_step"] == 3
    assert newest.with_name("damaged_step_00000006").is_dir()
    assert checkpoint.find_checkpoint(two) == newest


def test_a_model_of_a_later_version_is_not_a_lie(two):
    newest = checkpoint.checkpoint_path(two, 6)
    edit(newest, "config.json", lambda c: c["model"].update(colour="red"))
    sign(newest)
    assert checkpoint.find_checkpoint(two) == newest


@pytest.mark.timeout(60)  # a pipe would block whoever opens it
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_what_is_not_a_file_is_damage_and_not_opened(two, name, put):
    newest = checkpoint.checkpoint_path(two, 6)
    (newest / name).unlink()
    put(newest / name)
    assert checkpoint.find_checkpoint(two) == checkpoint.checkpoint_path(two, 3)


@pytest.mark.parametrize(
    "name", ["step_٣٣٣٣٣٣٣٣", "step_²²²²²²²²", "step_7", "step_000000009", "step_00000007x", "step_"]
)
def test_names_that_only_look_like_steps(two, name):
    newest = checkpoint.checkpoint_path(two, 6)
    newest.with_name(name).mkdir()
    assert [step for step, _ in checkpoint.list_checkpoints(two)] == [3, 6]
    assert checkpoint.find_checkpoint(two) == newest


@pytest.mark.parametrize("flags", [
    ["--optimizer=muon"],
    ["--arch_preset=qwen3", "--head_dim=8", "--num_key_value_heads=2", "--weight_tying=False"],
    ["--arch_preset=llama2", "--attention_backend=auto", "--ffn_type=standard"],
    ["--position_encoding=learned", "--bias=False", "--document_masking"],
])  # fmt: skip
def test_the_truth_has_no_contradiction(run, tmp_path, flags):
    run("a", *flags, "--max_iters=1")
    assert checkpoint.find_contradiction(checkpoint.checkpoint_path(tmp_path / "a", 1)) is None
