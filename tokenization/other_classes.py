"""Tokenizers of classes that are unknown here: transformers itself puts them together, once, and what it
made is kept as a tokenizer.json that needs none of it."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from base.errors import InputError, MissingPackage, one_line, require, writing
from tokenization.layouts import GENERIC, Layout

CURE = 'set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json to take tokenizer.json as it is'


def read_through_transformers(name: str, files: Mapping[str, bytes]) -> Layout:
    """The tokenizer of these files as AutoTokenizer reads them; no code of theirs is run. Raises InputError
    where it cannot, MissingPackage without transformers 5."""
    transformers = require("transformers", f"tokenizer {name!r}, of a class that is unknown here,")
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise MissingPackage(
            f"tokenizer {name!r} needs transformers 5: pip install -U transformers; or {CURE}"
        )
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            path = Path(folder) / file
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            backend = theirs.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            content = backend.to_str(pretty=True).encode()
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a tokenizer in Python alone has no backend; a Rust panic
            raise InputError(
                f"tokenizer {name!r} is of a class that cannot be read here ({one_line(error)[:200]}): {CURE}"
            ) from None
        finally:
            transformers.logging.set_verbosity(verbosity)
    names = dict(theirs.special_tokens_map)
    config = json.loads(files.get("tokenizer_config.json", b"{}")) | {"tokenizer_class": GENERIC} | names
    return Layout(content, names, json.loads(content), config | {"added_tokens_decoder": {}})
