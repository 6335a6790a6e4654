"""Make gpt2_bpe.json: texts with the ids that tiktoken's GPT-2 encoding gives them.

    TIKTOKEN_CACHE_DIR=... python tests/golden/make_gpt2_bpe.py

So that the check needs no vocabulary file, the part of GPT-2's table that these texts can touch is stored too:
BPE looks up nothing but substrings of the pieces that its pattern cuts a text into, so every entry that is
such a substring, with its true rank, gives the same ids as the whole table. tests/corpus/tokenizers/test_golden_bpe.py
reads the file.
"""

import base64
import json
from pathlib import Path

import regex
import tiktoken

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "It's 1999's best; we'll see what they've done. I'd say you're right, I'm not. DON'T 'S 'LL",
    "<|endoftext|> inside a page stays text<|endoftext|>",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "def fib(n: int) -> int:\n    if n < 2:\n        return n\n\treturn fib(n - 1) + fib(n - 2)  # 1, 1, 2, 3, 5\n",
    "trailing spaces   \n   leading; tabs\t\t, CRLF\r\nform\x0cfeed, NUL\x00, DEL\x7f, NBSP\xa0\u3000.",
    "numbers 0 42 1234567890 3.14159 1,000,000 0x1F ½ ² Ⅷ ٣٤٥ ४५६ 𝟘𝟙",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis Zxqwvkj",
    "naïve café Größe İstanbul ſtraße ǅ Ωmega e\u0301 combining",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย 한국어 日本語のテキスト 汉字，标点。",
    "emoji 👍🏽 family 👨‍👩‍👧‍👦 flag 🇩🇪 \ufe0f \u200b zero width \ufeff bom",
    'punctuation: ... --- === *** ((([[[{{{ }}}]]]))) "quoted" ‘single’ “double” — dash – en … ellipsis',
    "https://example.org/a/b?c=d&e=f#g user@example.com C:\\path\\file.txt #hashtag @name $99.95 100%",
    "aaaaaaaaaaaaaaaaaaaaaaaa                        !!!!!!!!!!!!!!!!!!!!!!!!",
    "private use \ue000 \U000f0000 last \U0010ffff replacement \ufffd",
]


def reachable(encoding: tiktoken.Encoding) -> dict[bytes, int]:
    """The entries of the table that are substrings of a piece of some text; always the 256 bytes."""
    ranks = encoding._mergeable_ranks
    found = {token: rank for token, rank in ranks.items() if len(token) == 1}
    for piece in {p.encode() for text in TEXTS for p in regex.findall(encoding._pat_str, text)}:
        for start in range(len(piece)):
            for stop in range(start + 2, len(piece) + 1):
                if (part := piece[start:stop]) in ranks:
                    found[part] = ranks[part]
    return found


def main() -> None:
    encoding = tiktoken.get_encoding("gpt2")
    table = sorted(reachable(encoding).items(), key=lambda item: item[1])
    golden = {
        "pattern": encoding._pat_str,
        "tiktoken": tiktoken.__version__,
        "cases": [{"text": text, "ids": encoding.encode_ordinary(text)} for text in TEXTS],
        "ranks": {base64.b64encode(token).decode(): rank for token, rank in table},
    }
    path = Path(__file__).with_name("gpt2_bpe.json")
    path.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path}: {len(TEXTS)} texts, {len(table)} of {len(encoding._mergeable_ranks)} entries")


if __name__ == "__main__":
    main()
