"""Nothing is lost: damage is recognised in every file, older checkpoints stand in, the best one stays."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training import checkpoint, keeping, saving
from training.config import TrainConfig
from training.optim import build_optimizers, optimizer_tensors
from training.state import RunState
from training.world import World

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.json", "manifest.json")


def trained(seed: int = 0, optimizer: str = "muon", n_embd: int = 16) -> tuple:
    model = ConfigurableGPT(
        get_preset_config("gpt2", n_layer=1, n_embd=n_embd, n_head=2, block_size=8, vocab_size=11), seed
    )
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer), torch.device("cpu"))
    x = torch.arange(8)[None]
    model(x, x)[1].backward()
    for o in optimizers:
        o.step()
    return model, optimizers


def save(out_dir, step, model, optimizers):
    tensors = dict(model.named_parameters()) | optimizer_tensors(model, optimizers)
    return saving.save_checkpoint(out_dir, tensors, RunState(step=step), {"model": {}, "train": {}})


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "nanofoundry"]


def test_round_trip(tmp_path):
    model, optimizers = trained()
    path = save(tmp_path, 5, model, optimizers)
    assert path == tmp_path / "checkpoints" / "step_00000005" and {f.name for f in path.iterdir()} == set(
        FILES
    )
    other, others = trained(seed=1)
    checkpoint.load_weights(path, other)
    checkpoint.load_optimizers(path, other, others)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    ours, theirs = (optimizer_tensors(m, o) for m, o in ((model, optimizers), (other, others)))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (
        "blocks.0.attention.qkv.weight/momentum_buffer" in ours and "token_embedding.weight/exp_avg" in ours
    )
    assert checkpoint.load_state(path) == (RunState(step=5, origin="imported"), {"model": {}, "train": {}})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["bit flip", "truncation", "removal"])
def test_damage_to_any_file_is_passed_over(tmp_path, caplog, name, damage):
    model, optimizers = trained()
    older, newest = save(tmp_path, 1, model, optimizers), save(tmp_path, 2, model, optimizers)
    assert checkpoint.find_checkpoint(tmp_path) == newest
    file = newest / name
    content = bytearray(file.read_bytes())
    if damage == "bit flip":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "truncation":
        file.write_bytes(content[:-3])
    else:
        file.unlink()
    assert checkpoint.find_checkpoint(tmp_path) == older
    assert len(said(caplog)) == 1 and "step_00000002" in said(caplog)[0] and name in said(caplog)[0]
    with pytest.raises(ValueError, match="no intact checkpoint"):
        checkpoint.find_checkpoint(tmp_path, step=2)


def test_all_damaged_is_an_error_and_none_is_none(tmp_path):
    assert checkpoint.find_checkpoint(tmp_path) is None
    (save(tmp_path, 1, *trained()) / "state.json").unlink()
    with pytest.raises(ValueError, match=r"no intact checkpoint.*state\.json"):
        checkpoint.find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint of step 7 .*there: 1"):
        checkpoint.find_checkpoint(tmp_path, step=7)


def test_what_a_crash_leaves_behind_is_no_checkpoint(tmp_path, monkeypatch):
    model, optimizers = trained()
    first = save(tmp_path, 1, model, optimizers)

    def crash(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for stage in ("json_bytes", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(saving, stage, crash)
            with pytest.raises(OSError):
                save(tmp_path, 2, model, optimizers)
        assert checkpoint.list_checkpoints(tmp_path) == [(1, first)]
    assert save(tmp_path, 2, model, optimizers) == checkpoint.find_checkpoint(tmp_path)


def test_what_does_not_fit_is_named(tmp_path):
    path = save(tmp_path, 1, *trained())
    wider, optimizers = trained(n_embd=32)
    with pytest.raises(ValueError, match=r"has shape \[.*16\], the model \[.*32\]"):
        checkpoint.load_weights(path, wider)
    deeper = ConfigurableGPT(
        get_preset_config("gpt2", n_layer=2, n_embd=16, n_head=2, block_size=8, vocab_size=11)
    )
    with pytest.raises(ValueError, match=r"other parameters than this model's: blocks\.1"):
        checkpoint.load_weights(path, deeper)
    model, adamw = trained(optimizer="adamw")
    with pytest.raises(ValueError, match="the state of another optimizer"):
        checkpoint.load_optimizers(save(tmp_path, 2, *trained()), model, adamw)


def test_pruning_keeps_the_last_and_the_named(tmp_path):
    model, optimizers = trained()
    for step in range(1, 7):
        save(tmp_path, step, model, optimizers)
    keeping.prune_checkpoints(tmp_path, 2, {3})
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path)] == [3, 5, 6]
    assert not list((tmp_path / "checkpoints").glob("partial*"))


@pytest.mark.parametrize("prune", [True, False])
def test_what_was_just_written_is_never_removed(tmp_path, prune):
    """Not even where there are later ones."""
    model, optimizers = trained()
    for step in (7, 8, 9):
        save(tmp_path, step, model, optimizers)
    checkpoints = keeping.Checkpoints(tmp_path, World(), TrainConfig(keep_last=2), None)
    state = RunState(step=5)
    checkpoints.save(dict(model.named_parameters()), state, {}, wait=True, prune=prune)
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path)] == ([5, 8, 9] if prune else [5, 7, 8, 9])


def test_what_is_damaged_goes_aside_and_nothing_else(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, *trained())
    for step in (1, 3):
        (checkpoint.checkpoint_path(tmp_path, step) / "state.json").unlink()
    aside = checkpoint.checkpoint_path(tmp_path, 3).with_name("damaged_step_00000003")
    assert keeping.set_aside_damaged(tmp_path, 2) == [aside]  # the first one is older, the fourth can be read
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path)] == [1, 2, 4] and (
        aside / "config.json"
    ).is_file()
    save(tmp_path, 3, *trained())
    (checkpoint.checkpoint_path(tmp_path, 3) / "state.json").unlink()
    (again,) = keeping.set_aside_damaged(tmp_path, 2)
    assert again != aside and aside.is_dir() and again.name.startswith("damaged_step_00000003_")


def test_setting_aside_loses_nothing(tmp_path):
    assert keeping.set_aside_run(tmp_path) is None
    for n in (1, 2):
        save(tmp_path, n, *trained())
        assert keeping.set_aside_run(tmp_path) == tmp_path / f"checkpoints_before_{n}"
    assert (tmp_path / "checkpoints_before_2" / "step_00000002" / "manifest.json").is_file()


def test_a_checkpoint_holds_json_and_safetensors_only(tmp_path):
    path = save(tmp_path, 1, *trained())
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == set(FILES) - {"manifest.json"} and {f.suffix for f in path.iterdir()} == {
        ".json",
        ".safetensors",
    }


def test_every_byte_of_a_manifest_counts(tmp_path):
    path = save(tmp_path, 1, *trained())
    file = path / "manifest.json"
    good = file.read_bytes()
    for at in range(len(good)):
        for bit in (1, 4):
            flipped = bytes([*good[:at], good[at] ^ bit, *good[at + 1 :]])
            file.write_bytes(flipped)
            try:
                harmless = json.loads(flipped) == json.loads(good)  # white space
            except ValueError:
                harmless = False
            assert harmless == (checkpoint.find_damage(path) is None), (
                at,
                flipped[max(0, at - 20) : at + 20],
            )


def test_a_flip_anywhere_in_the_weights_is_seen(tmp_path):
    path = save(tmp_path, 1, *trained())
    for name in ("model.safetensors", "optimizer.safetensors"):
        good = (path / name).read_bytes()
        for at in [0, 7, 8, 9, *range(10, len(good), len(good) // 40), len(good) - 1]:
            (path / name).write_bytes(bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]))
            assert name in checkpoint.find_damage(path), at
        (path / name).write_bytes(good + b"\0")
        assert name in checkpoint.find_damage(path)
        (path / name).write_bytes(good)
    assert checkpoint.find_damage(path) is None


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", "null", "7", '{"model.safetensors": 3}', "\ufeff{", "[" * 200]
)
def test_a_manifest_of_something_else_is_damage(tmp_path, manifest):
    older, newest = save(tmp_path, 1, *trained()), save(tmp_path, 2, *trained())
    (newest / "manifest.json").write_text(manifest)
    assert checkpoint.find_checkpoint(tmp_path) == older


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "..", ""])
def test_a_manifest_that_lists_what_no_file_is_called_is_damage(tmp_path, name):
    older, newest = save(tmp_path, 1, *trained()), save(tmp_path, 2, *trained())
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({name: manifest["state.json"], **manifest}))
    assert checkpoint.find_checkpoint(tmp_path) == older


def test_other_folders_are_no_checkpoints(tmp_path, caplog):
    path = save(tmp_path, 1, *trained())
    path.with_name("step_00000009").write_text("a file")
    for name in ("partial_step_00000002", "step_best", "step_", "step_-0000003"):
        save(tmp_path, 2, *trained()).rename(path.with_name(name))
    assert (
        checkpoint.list_checkpoints(tmp_path) == [(1, path)] and checkpoint.find_checkpoint(tmp_path) == path
    )
    assert not said(caplog)


def test_steps_beyond_eight_digits_keep_their_order(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        save(tmp_path, step, *trained())
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path)] == [5, 99_999_999, 100_000_000]


def test_an_optimizer_continues_as_if_it_had_never_stopped(tmp_path):
    for optimizer in ("adamw", "muon"):
        model, optimizers = trained(optimizer=optimizer)
        path = save(tmp_path / optimizer, 1, model, optimizers)
        other, others = trained(seed=1, optimizer=optimizer)
        checkpoint.load_weights(path, other)
        checkpoint.load_optimizers(path, other, others)
        for m, opts in ((model, optimizers), (other, others)):
            for p in m.parameters():
                p.grad = torch.full_like(p, 0.01)
            for o in opts:
                o.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_of_step_zero_has_no_optimizer_state(tmp_path):
    model = ConfigurableGPT(
        get_preset_config("gpt2", n_layer=1, n_embd=16, n_head=2, block_size=8, vocab_size=11)
    )
    fresh = build_optimizers(model, TrainConfig(), torch.device("cpu"))
    path = save(tmp_path, 0, model, fresh)
    checkpoint.load_optimizers(path, model, fresh)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    fresh[0].step()
    assert all(state["step"] == 1 for state in fresh[0].state.values())


def test_what_cannot_be_removed_costs_a_warning(tmp_path, monkeypatch, caplog):
    """As over NFS while sample.py reads the folder: a run of weeks does not end for it."""
    model, optimizers = trained()
    tensors = dict(model.named_parameters()) | optimizer_tensors(model, optimizers)
    checkpoints = keeping.Checkpoints(tmp_path, World(), TrainConfig(keep_last=1), None)
    plain = shutil.rmtree

    def busy(path, *args, **kwargs):
        if Path(path).name == "partial_step_00000001":
            if kwargs.get("ignore_errors"):
                return
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        plain(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", busy)
    for step in (1, 2):
        checkpoints.save(tensors, RunState(step=step, val_loss=None), {}, wait=True)
    assert (
        len(said(caplog)) == 1
        and "step_00000001" in said(caplog)[0]
        and "could not be removed" in said(caplog)[0]
    )
    monkeypatch.undo()
    checkpoints.save(tensors, RunState(step=3, val_loss=None), {}, wait=True)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_saves_that_were_cut_off_do_not_fill_the_disk(tmp_path, monkeypatch):
    model, optimizers = trained()
    path = save(tmp_path, 1, model, optimizers)
    left = path.with_name("partial_step_00000007")
    path.rename(left)
    size = sum(f.stat().st_size for f in left.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    keeping.check_space(tmp_path, size, keep_last=1)
    with pytest.raises(ValueError, match="make room"):
        keeping.check_space(tmp_path, size + 1, keep_last=1)
    save(tmp_path, 2, model, optimizers)
    assert not left.exists()


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    model, optimizers = trained()
    tensors = dict(model.named_parameters()) | optimizer_tensors(model, optimizers)
    checkpoints = keeping.Checkpoints(tmp_path, World(), TrainConfig(keep_last=1), None)
    for step, loss in ((1, float("nan")), (2, 3.0), (3, 4.0), (4, float("nan"))):
        checkpoints.save(tensors, RunState(step=step, val_loss=loss), {}, wait=True)
    assert checkpoints.best == {"step": 2, "val_loss": 3.0}
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path)] == [2, 4]


def test_ranks_resume_from_what_rank_0_sees(tmp_path):
    """A network file system may show one node an older list of folders than another."""
    model, optimizers = trained()
    for step in (1, 2):
        save(tmp_path, step, model, optimizers)
    seen, answers = (
        [],
        iter(['[[1, "step_00000001"]]', None]),
    )  # of rank 0: its list, and that it found no damage

    class SecondRank(World):
        def first(self, value: str | None) -> str | None:
            seen.append(value)
            return next(answers)

    assert checkpoint.find_checkpoint(tmp_path, world=SecondRank(1, 1, 2)) == checkpoint.checkpoint_path(
        tmp_path, 1
    )
    assert "step_00000002" in seen[0] and seen[1:] == [None]


def test_ranks_divide_what_each_has_whole():
    """Every tensor is saved by one rank, and no rank has much more to copy than another."""
    tensors = {str(n): torch.zeros(n) for n in (400, 3, 300, 1, 300, 200, 100, 90)}
    shares = [saving.own_share(tensors, World(rank=rank, size=3)) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(t.nbytes for t in share.values()) for share in shares]
    assert max(loads) - min(loads) <= 4 * 100
    assert list(saving.own_share(tensors, World())) == list(tensors)
