"""An entry of a registry, or a preset, is added in one place: then it is a flag's value, is trained, described,
compared, and exported or refused by name."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import read_events
from torch import nn

import compare_architectures
import model_components
import model_config
import train
from scripts import export_hf


class Sinusoids(model_components.NoPositions):
    """Vaswani et al. 2017: fixed waves, added to the stream."""

    def __init__(self, config: model_config.ModelArchitectureConfig) -> None:
        super().__init__()
        self.n_embd = config.n_embd

    def add(self, x, positions):
        at = (
            torch.arange(positions.start, positions.stop, device=x.device)
            if isinstance(positions, slice)
            else positions
        )
        angles = at.unsqueeze(-1) / 1e4 ** (torch.arange(0, self.n_embd, 2, device=x.device) / self.n_embd)
        return x + torch.cat((angles.sin(), angles.cos()), dim=-1)


class ReGLU(nn.Module):
    """Shazeer 2020, with a bilinear gate of its own shape."""

    def __init__(self, config: model_config.ModelArchitectureConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.d_ff, bias=False)
        self.up = nn.Linear(config.n_embd, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.n_embd, bias=False)

    def forward(self, x):
        return self.down(self.gate(x).relu() * self.up(x))


def plain_attention(q, k, v, dropout):
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.size(2) == k.size(2), enable_gqa=True)


NEW = {
    "activation": (model_components.ACTIVATIONS, "relu2", lambda x: x.relu().square()),
    "normalization": (model_components.NORMS, "scalenorm", lambda dim, config: nn.RMSNorm(dim, eps=1e-3)),
    "ffn_type": (model_components.FFNS, "reglu", ReGLU),
    "position_encoding": (model_components.POSITION_ENCODINGS, "sinusoids", Sinusoids),
    "attention_backend": (model_components.ATTENTION_BACKENDS, "mine", plain_attention),
}


@pytest.mark.parametrize("field", NEW)
def test_an_entry_is_added_in_one_place(run, tmp_path, monkeypatch, capsys, field):
    registry, name, entry = NEW[field]
    flag = f"--{field}={name}"
    with pytest.raises(SystemExit):
        run("before", flag)
    assert f"{field}='{name}' is not known" in capsys.readouterr().err
    monkeypatch.setitem(registry, name, entry)

    assert train.main(["--help"]) == 0 and name in capsys.readouterr().out
    assert run("new", flag) == 0
    printed = capsys.readouterr().out
    if field != "attention_backend":  # who computes it is not part of what it is
        assert name in printed.splitlines()[0]
    losses = [e["loss"] for e in read_events(tmp_path / "new", "train")]
    assert losses[-1] < losses[0]
    assert run("old") == 0
    compare_architectures.main(
        [str(tmp_path / "new"), str(tmp_path / "old"), f"--out={tmp_path / 'comparison'}"]
    )
    compared = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert list(compared["config_diff"]["fields"]) == ([] if field == "attention_backend" else [field])

    capsys.readouterr()
    export = [f"--out_dir={tmp_path / 'new'}", f"--to={tmp_path / 'exported'}"]
    if field == "attention_backend":
        assert export_hf.main(export) == 0
        return
    with pytest.raises(SystemExit) as ended:
        export_hf.main(export)
    assert ended.value.code == 2 and f"{field}='{name}'" in capsys.readouterr().err


def test_a_preset_is_added_in_one_place(run, tmp_path, monkeypatch, capsys):
    fields = dict(normalization="rmsnorm", position_encoding="rope", activation="relu", bias=False, n_embd=48)
    monkeypatch.setitem(model_config.PRESET_CONFIGS, "tinylm", fields)
    assert run("a", "--arch_preset=tinylm") == 0
    assert capsys.readouterr().out.startswith("tinylm (pre-RMSNorm, RoPE 1e4, MHA 4, ReLU, tied)")
