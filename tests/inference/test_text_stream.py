"""The text of a stream is that of all its tokens together, for every kind of decoder; none ends it with an
exception."""

import pytest
import tokenizers as tk
from tokenizer_layouts import byte_level, sentencepiece_style, unigram

from inference.text import TextStream

TEXTS = [
    "hello there",
    "  two  spaces",
    "é \U0001f642\U0001f468‍\U0001f469‍\U0001f467 你好 \ufb01",
    "x\n\n y",
    "<s>hello</s> hello",
    "",
]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style, unigram])
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_whole_text(make, text):
    tokenizer = make()
    prompt = tokenizer.encode("hello ").ids
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = TextStream(tokenizer, prompt)
    whole = tokenizer.decode(prompt + ids, skip_special_tokens=True)
    expected = whole.removeprefix(tokenizer.decode(prompt, skip_special_tokens=True))
    assert "".join(stream.feed(i) for i in ids) == expected


def test_a_decoder_that_changes_the_text_before():
    """The package's own stream of decoded text raises a bare exception here."""
    tokenizer = tk.Tokenizer(tk.models.BPE({"a": 0, "b": 1, "x": 2}, []))
    tokenizer.decoder = tk.decoders.Sequence([tk.decoders.Fuse(), tk.decoders.Replace("ab", "c")])
    theirs = tk.decoders.DecodeStream(skip_special_tokens=True)
    with pytest.raises(Exception, match="prefix"):
        for i in (0, 1, 2, 0, 1, 2):
            theirs.step(tokenizer, i)
    stream = TextStream(tokenizer, [])
    assert "".join(stream.feed(i) for i in (0, 1, 2, 2)).startswith("a") and stream.feed(2) == "x"
    for i in (7, 2**31, 0):  # ids that it does not have
        stream.feed(i)
