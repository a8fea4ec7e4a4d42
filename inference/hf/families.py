"""The families, by the model_type of config.json."""

from inference.hf.family import Family
from inference.hf.gpt2 import GPT2
from inference.hf.llama import LLAMA
from inference.hf.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3}
