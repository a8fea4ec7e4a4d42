"""Twins of Hugging Face for the tests of this room."""

import pytest
from hf_twins import TWINS, build_twin

from inference.hf import load_hf


@pytest.fixture(scope="module", params=TWINS)
def twins(request, tmp_path_factory):
    """(transformers' model, what load_hf made of its folder, the folder), read only."""
    folder = tmp_path_factory.mktemp("twin")
    hf_model = build_twin(request.param)
    hf_model.save_pretrained(folder)
    return hf_model, load_hf(str(folder)), folder


@pytest.fixture
def twin_folder(request, tmp_path):
    """A folder to spoil: the twin that is named by the test's parameter, or an untied llama."""
    build_twin(getattr(request, "param", "llama GQA")).save_pretrained(tmp_path)
    return tmp_path
