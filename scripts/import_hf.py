"""A Hugging Face model as a run folder, for sample.py, compare and export.

    python scripts/import_hf.py --model=Qwen/Qwen3-0.6B --out_dir=out-qwen3
    python sample.py --out_dir=out-qwen3 --prompt="The capital of France is"

To train from such weights, `train.py --init_from=hf:DIR_OR_ID`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from base import cli, fields
from base.errors import InputError, writing
from base.fields import knob
from base.files import writable_folder
from inference.ends import generation_config, save_generation_config
from inference.hf import load_hf
from inference.hf.configs import notes_on_config
from inference.hf.reading import find_folder
from inference.text import check_fits
from tokenization.tokenizers import find_tokenizer, has_tokenizer
from training.checkpoint import list_checkpoints
from training.config import TrainConfig
from training.saving import save_checkpoint
from training.state import RunState


@dataclass(kw_only=True)
class ImportConfig:
    model: str = knob("", "a folder of Hugging Face's layout, or a name on its hub")
    out_dir: str = knob("", "the run folder that is made")
    tokenizer: str | None = knob(None, "a name, folder or hub id; none: the model's own, where it has one")

    def __post_init__(self) -> None:
        fields.check(self)
        for name, what in (("model", "DIR_OR_ID"), ("out_dir", "OUT")):
            if not getattr(self, name):
                raise InputError(f"--{name}={what} is missing")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, ImportConfig, import_model)


def import_model(config: ImportConfig) -> None:
    writable_folder(config.out_dir)
    if list_checkpoints(config.out_dir):
        raise InputError(f"{config.out_dir} holds the checkpoints of a run: choose a new --out_dir")
    folder = find_folder(config.model)
    own = folder if has_tokenizer(folder) else None
    tokenizer = find_tokenizer(config.tokenizer or own) if config.tokenizer or own else None
    notes, generation = notes_on_config(folder), generation_config(folder)
    model = load_hf(folder)
    state = RunState(origin="imported")  # it belongs to no dataset: train.py refuses to resume from it
    if tokenizer is not None:
        check_fits(tokenizer, model.config.vocab_size)
        named = {"name": tokenizer.name, "length": tokenizer.length, "sha256": tokenizer.sha256}
        state.data |= {"tokenizer": named, "eot_id": tokenizer.eot_id}
    resolved = {"model": asdict(model.config), "train": asdict(TrainConfig(init_from=f"hf:{config.model}"))}
    with writing(config.out_dir):
        path = save_checkpoint(config.out_dir, dict(model.named_parameters()), state, resolved)
    if tokenizer is not None:
        tokenizer.save(config.out_dir)
    save_generation_config(config.out_dir, generation)
    print(f"{path}\n{model.config.summary()}\n{model.get_num_params():,} parameters")
    for note in notes:
        print(f"note: {note}")
    if tokenizer is None:
        needed = f"sample.py needs one in {config.out_dir}, or --tokenizer=..."
        print(f"note: {folder} has no tokenizer; {needed}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
