"""Which device a process takes."""

import pytest
import torch

from base.errors import InputError
from hardware.device import select_device
from training.world import World


@pytest.fixture
def two_gpus(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


def test_each_process_takes_its_own_gpu(two_gpus):
    worlds = [World(rank=rank, local_rank=rank, size=2, local_size=2) for rank in (0, 1)]
    assert (
        [select_device("cuda", world.local_rank, world.local_size).index for world in worlds]
        == two_gpus
        == [0, 1]
    )
    assert select_device("cuda:1") == torch.device("cuda", 1)


def test_the_users_mistake_is_never_taken_for_a_lost_rank(monkeypatch):
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *args, **more: iter([(None, 0, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **more: None)
    mistake = InputError("out_dir='/scratch/nccl' cannot be written to: timed out")
    with pytest.raises(InputError) as raised, World(size=2).connected(torch.device("cpu"), 1.0):
        raise mistake
    assert raised.value is mistake


def test_one_gpu_is_not_shared_by_processes(two_gpus):
    with pytest.raises(ValueError, match="'cuda:0' is one GPU, and here are 2 processes: pass --device=cuda"):
        select_device("cuda:0", 0, 2)
    assert select_device("cuda:0", 0, 1).index == 0  # one on each of two machines
    assert two_gpus == [0]


def test_local_size_is_that_of_torchrun(monkeypatch):
    for name, value in {
        "RANK": 3,
        "LOCAL_RANK": 1,
        "WORLD_SIZE": 4,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "a",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    assert World.from_environment() == World(rank=3, local_rank=1, size=4, local_size=2)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_an_environment_that_is_not_torchruns_is_one_line(monkeypatch, name):
    monkeypatch.setenv(name, "two")
    with pytest.raises(InputError, match=f"{name}='two' in the environment is not a number"):
        World.from_environment()
