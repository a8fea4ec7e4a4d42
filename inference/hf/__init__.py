"""Weights to and from Hugging Face: GPT-2, LLaMA and Qwen3 checkpoints as a ConfigurableGPT and back.

    model = load_hf("/models/Qwen3-0.6B")    # a folder with config.json and safetensors
    model = load_hf("Qwen/Qwen3-0.6B")       # or a name on the hub
    save_hf(model, "exported", tokenizer="qwen3")    # AutoModelForCausalLM.from_pretrained("exported") reads it

family.py says what a family is, and each has a file of its own; configs.py has the configurations,
reading.py and writing.py the weights."""

from inference.hf.reading import load_hf
from inference.hf.writing import save_hf

__all__ = ["load_hf", "save_hf"]
