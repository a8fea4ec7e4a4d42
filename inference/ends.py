"""What ends a text: the union of what a model's folder, its tokenizer and its chat template say.

    generation_config.json   eos_token_id, stop_strings
    config.json              eos_token_id
    the tokenizer            what goes between documents; eos_token
    the chat template        the token that it puts after an answer

A run folder has a generation_config.json where its model came with ends: of the four, these two travel with the
model, the others with the tokenizer's files."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from base.errors import InputError, writing
from base.files import parse_json, read_json, write_json
from base.text import brief
from inference.chat import load_template, token_text
from tokenization.tokenizers import TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERATION = "generation_config.json"
COPY = "copy it again"
TALK = [
    {"role": "user", "content": "Question?"},
    {"role": "assistant", "content": "Answer."},
    {"role": "user", "content": "Another?"},
]
# Of a generation_config.json: what says nothing of ids
WITHOUT_IDS = (
    "do_sample temperature top_k top_p min_p typical_p repetition_penalty length_penalty num_beams max_length "
    "max_new_tokens stop_strings transformers_version"
).split()


class Ends(NamedTuple):
    ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()


def declared_ends(folder: str | Path) -> Ends:
    """Those of generation_config.json and config.json of a folder, where they are. Raises InputError for what is
    not an id or a string."""
    ids: list[int] = []
    strings: tuple[str, ...] = ()
    for name in (GENERATION, "config.json"):
        file = Path(folder) / name
        if os.path.lexists(file):
            record = read_json(file)
            ids += ids_in(record, file)
            strings += strings_in(record, file) if name == GENERATION else ()
    return Ends(unique(ids), strings)


def ids_in(record: Mapping[str, Any], where: object) -> list[int]:
    """eos_token_id: none, one, or a list of them."""
    value = record.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if type(i) is not int:
            raise InputError(f"{where}: eos_token_id is {brief(value)}, not an id or a list of ids: {COPY}")
    return ids


def id_in(record: Mapping[str, Any], name: str, where: object) -> int | None:
    """One id or none. Raises InputError."""
    value = record.get(name)
    if value is not None and type(value) is not int:
        raise InputError(f"{where}: {name} is {brief(value)}, not an id: {COPY}")
    return value


def strings_in(record: Mapping[str, Any], where: object) -> tuple[str, ...]:
    value = record.get("stop_strings")
    strings = [value] if isinstance(value, str) else value or []
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise InputError(f"{where}: stop_strings is {brief(value)}, not a text or a list of them: {COPY}")
    return tuple(strings)


def tokenizer_ends(
    found: TokenizerFiles, name_or_folder: str | Path, tokenizer: "Tokenizer"
) -> tuple[int, ...]:
    """Ids of a tokenizer and its chat template, that between documents first. The template's is left out where
    the template cannot be used, which a chat says."""
    ids = [found.eot_id]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        where = f"{name} of {found.name!r}"
        record = parse_json(found.companions.get(name, b"{}"), where)
        if isinstance(record, dict) and record.get("eos_token"):
            ids.append(tokenizer.token_to_id(token_text(record["eos_token"], "eos_token", where)))
    return unique([*ids, template_end(name_or_folder, tokenizer)])


def template_end(name_or_folder: str | Path, tokenizer: "Tokenizer") -> int | None:
    """The added token that the chat template puts after an answer, perhaps after white space. Not every
    folder calls it special."""
    try:
        conversation = load_template(name_or_folder).render(TALK)
    except InputError:
        return None
    _, answer, after = conversation.rpartition(TALK[1]["content"])
    added = tokenizer.get_added_tokens_decoder()
    after = after.lstrip()
    begin = {i: t.content for i, t in added.items() if t.content and after.startswith(t.content)}
    return max(begin, key=lambda i: len(begin[i])) if answer and begin else None


def unique(ids: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def generation_config(folder: str | Path, new_ids: Mapping[int, int] | None = None) -> dict[str, Any]:
    """What goes into the generation_config.json of whatever is made of a folder's model: its own, with the ends
    that config.json declares; empty where neither says anything. `new_ids`: by old ones, where they are
    renumbered; fields that may hold other ids are then left out."""
    folder = Path(folder)
    there = [
        read_json(folder / name) if os.path.lexists(folder / name) else {}
        for name in (GENERATION, "config.json")
    ]
    generation, model = there
    special = {
        name: id_in(generation, name, folder / GENERATION)
        if name in generation
        else id_in(model, name, folder / "config.json")
        for name in ("bos_token_id", "pad_token_id")
    }
    ends = list(declared_ends(folder).ids)
    if new_ids is not None:
        generation = {name: generation[name] for name in WITHOUT_IDS if name in generation}
        special = {name: new_ids.get(i) for name, i in special.items()}
        ends = [new_ids[i] for i in ends if i in new_ids]
    said = {name: i for name, i in special.items() if i is not None} | (
        {"eos_token_id": ends} if ends else {}
    )
    return generation | said


def save_generation_config(folder: str | Path, generation: Mapping[str, Any]) -> None:
    """Into a run folder, where its model came with any."""
    if generation:
        with writing(folder):
            write_json(Path(folder) / GENERATION, generation)
