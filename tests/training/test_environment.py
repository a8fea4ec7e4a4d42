"""What the environment, the machine and absurd sizes do to a run: one line, before any work."""

import errno
import re
import socket
from datetime import timedelta

import pytest
import torch
from conftest import TINY_FLAGS, read_events

from training import saving
from training.config import load_config
from training.meters import StepTimer
from training.sizes import check_memory, model_on_meta
from training.world import World, rendezvous

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29500"}  # fmt: skip


@pytest.fixture
def env(monkeypatch):
    def set_to(**values: str | None) -> None:
        for name, value in {**dict.fromkeys(TORCHRUN), **values}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize("values, said", [
    ({"RANK": "1"}, "RANK=1 in the environment, but no WORLD_SIZE"), ({"RANK": "0"}, "no WORLD_SIZE"),
    (TORCHRUN | {"RANK": 5000 * "9"}, "is not a number"), (TORCHRUN | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 in the environment"),
    (TORCHRUN | {"RANK": "2"}, "RANK=2"), (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4"), (TORCHRUN | {"RANK": "x"}, "RANK='x'"),
    (TORCHRUN | {"RANK": "-1"}, "RANK='-1'"), (TORCHRUN | {"MASTER_PORT": "abc"}, "MASTER_PORT='abc'"),
    (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT='0'"), (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT='65536'"),
    (TORCHRUN | {"MASTER_ADDR": None}, "MASTER_ADDR is not set"), ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT"),
])  # fmt: skip
def test_half_of_what_torchrun_sets_is_refused(env, values, said):
    env(**values)
    with pytest.raises(ValueError, match=re.escape(said)):
        World.from_environment()


@pytest.mark.parametrize(
    "values, world",
    [
        ({}, World()),
        (TORCHRUN, World(1, 1, 2, 2)),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": None}, World(1, 1, 2, 1)),
    ],
)
def test_what_torchrun_sets_is_taken(env, values, world):
    env(**values)
    assert World.from_environment() == world


def test_a_port_that_is_taken_and_an_address_that_is_none(env):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env(**TORCHRUN | {"RANK": "0", "MASTER_PORT": port})
        with pytest.raises(
            ValueError, match=rf"cannot meet at MASTER_ADDR=localhost MASTER_PORT={port} \("
        ) as said:
            rendezvous(timedelta(seconds=2))
        assert "\n" not in str(said.value)
    env(**TORCHRUN | {"MASTER_ADDR": "no-such-host.invalid"})
    with pytest.raises(ValueError, match="must be that of rank 0's machine"):
        rendezvous(timedelta(seconds=1))


@pytest.mark.parametrize("flags, said", [
    (["--n_layer=1e7"], "n_layer=10000000 is more than the 1024 blocks"), (["--n_layer=1025"], "n_layer=1025 is more than"),
    (["--gradient_accumulation_steps=1e30"], "beyond 64 bits"), (["--n_embd=" + 400 * "9"], "beyond 64 bits"),
    (["--batch_size=1e400"], "is not a whole number"), (["--max_iters=" + 5000 * "9"], "is not a whole number"),
    (["--batch_size=9000000000000000000"], "the tokens of a step are beyond 64 bits"),
    (["--gradient_accumulation_steps=1e18"], "the tokens of a step are beyond 64 bits"),
    (["--batch_size=1e12"], r"the ids of batch_size=1000000000000 alone need 128,000 GB"),
    (["--vocab_size=1e12"], "the weights alone need"), (["--d_ff=1e13"], "the weights alone need"),
    (["--block_size=1e13"], "the weights alone need"),
])  # fmt: skip
def test_absurd_sizes_are_one_line_before_anything_is_allocated(flags, said):
    with pytest.raises(ValueError, match=said) as error:
        model_config, config = load_config([*TINY_FLAGS, *flags])
        check_memory(model_on_meta(model_config), config, World(), torch.device("cpu"))
    assert len(str(error.value)) < 700


def test_shards_count_as_shards():
    """What is too much for one process is not for enough of them."""
    model_config, config = load_config([*TINY_FLAGS, "--d_ff=1e9", "--use_fsdp"])
    model = model_on_meta(model_config)
    with pytest.raises(ValueError, match="--use_fsdp over more processes"):
        check_memory(model, config, World(), torch.device("cpu"))
    check_memory(model, config, World(0, 0, 4096, 1), torch.device("cpu"))


def test_a_step_that_waits_for_a_processor_is_noticed():
    timer = StepTimer()
    timer.start()
    timer._started -= 6.0  # six seconds, in which this process did next to nothing
    timer.stop(1)
    timer.lap_ms()  # whatever the lines of the log
    assert timer.waited(enough_s=60.0) == 1.0 and timer.waited() > 10
    assert timer.waited() == 1.0


def test_a_full_disk_at_the_last_save_is_one_line(run, tmp_path, monkeypatch, capsys):
    """The run has trained for nothing, but says so, and what was saved before is there."""
    plain = saving.write_durably

    def full_from_step_6(file, *parts):
        if "00000006" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return plain(file, *parts)

    monkeypatch.setattr(saving, "write_durably", full_from_step_6)
    with pytest.raises(SystemExit) as end:
        run("a")
    err = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and "No space left on device" in err[-1] and "Traceback" not in "".join(err)
    assert (tmp_path / "a" / "checkpoints" / "step_00000003").is_dir()
    (ended,) = read_events(tmp_path / "a", "run_end")
    assert ended["reason"].startswith("error: SaveFailed")
