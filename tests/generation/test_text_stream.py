"""Ids to text as they come, and texts that end a continuation."""

from __future__ import annotations

import pytest

from automodel_cli.generation.text_stream import StopTexts, TextStream


class TestTextStream:
    def test_incomplete_characters_wait(self):
        text = "aé漢🎉"
        stream = TextStream(bytes)
        pieces = [stream.feed(byte) for byte in text.encode()]
        assert pieces == ["a", "", "é", "", "", "漢", "", "", "", "🎉"]
        assert stream.finish() == ""

    def test_broken_bytes_become_replacement_characters(self):
        stream = TextStream(bytes)
        pieces = [stream.feed(byte) for byte in b"a\xffb\xe6\xbc"]
        assert "".join(pieces) == "a\ufffdb"
        assert stream.finish() == "\ufffd"

    def test_a_tokenizer_that_drops_the_first_space(self):
        words = ["▁Hello", "▁world", "▁again"]

        def decode(ids):
            return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ").encode()

        stream = TextStream(decode, context=[0])
        assert stream.feed(1) + stream.feed(2) + stream.finish() == " world again"
        fresh = TextStream(decode)
        assert fresh.feed(0) + fresh.feed(1) == "Hello world"


class TestStopTexts:
    @pytest.mark.parametrize("size", [1, 2, 3, 50])
    def test_the_text_before_the_first_stop_however_it_is_cut(self, size):
        text = "one\nQ: two\nQ\nQ:three"
        for stops, expected in (
            (["\nQ:"], "one"),
            (["\nQ\n", "zzz"], "one\nQ: two"),
            (["nothing like it"], text),
            ([], text),
            (["three", "two"], "one\nQ: "),
        ):
            stream = StopTexts(stops)
            pieces = [stream.feed(text[place : place + size]) for place in range(0, len(text), size)]
            assert "".join(pieces) + stream.finish() == expected
            assert stream.met == (expected != text)

    def test_what_may_be_a_beginning_waits(self):
        stream = StopTexts(["abcd"])
        assert [stream.feed(piece) for piece in ("xab", "c", "abc")] == ["x", "", "abc"]
        assert stream.finish() == "abc" and not stream.met
