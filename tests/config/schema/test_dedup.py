"""Settings of dedup: a file may say all defaults; contradictions are refused before anything is read."""

import pytest
from pydantic import ValidationError

from automodel_cli.config.schema.dedup import DedupConfig


def config(**values: object) -> DedupConfig:
    return DedupConfig.model_validate({"dataset": "text", **values})


def test_a_file_may_say_what_is_the_default():
    defaults = config().model_dump()
    assert config(**defaults).model_dump() == config().model_dump()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hashes": 256}, "`hashes` is about near-duplicates: give `near` too"),
        ({"verify": "exact"}, "`verify` is about near-duplicates"),
        ({"near": 0.8, "bands": 14}, "`bands` and `rows` go together"),
        ({"near": 0.8, "bands": 1024, "rows": 100}, "`bands` times `rows` is 102,400, expected at most 1,024"),
        ({"near": 0.8, "exact": False}, "`near` finds exact copies too"),
        ({"exact": False}, "`exact: false` leaves nothing to do"),
        ({"cost_per_hour": 1}, "cost_per_hour"),
        ({"near": 0}, "greater than 0"),
        ({"near": 1.5}, "less than or equal to 1"),
        ({"min_words": 5, "max_words": 4}, r"`min_words` \(5\) is more than `max_words` \(4\)"),
        ({"min_language_score": 0.5}, "`min_language_score` is about `languages`"),
        ({"max_top_ngrams": "0.1,0.2"}, "at least 3 items"),
        ({"max_bullet_lines": 2}, "less than or equal to 1"),
        ({"filters": "gofer"}, "gopher-quality"),
        ({"name": "a/b"}, "cannot contain folders"),
        ({"memory": "1M"}, "greater than or equal to 64000000"),
    ],
)
def test_what_does_not_go_together_is_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        config(**values)


def test_amounts_and_lists():
    cfg = config(max_duplicate_ngrams="0.15,0.14,0.13,0.12,0.11,0.1", languages="en, de", chunk_size="1G", output="out")
    assert cfg.max_duplicate_ngrams == (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    assert cfg.languages == ("en", "de") and cfg.output_dir == "out" and cfg.chunk_size == 10**9
