"""Settings of `automodel preprocess dedup`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from automodel_cli.config.schema.base import (
    Amount,
    Count,
    LocalFolder,
    NotNegative,
    Shares,
    TypeName,
    Whole,
    Words,
    not_a_bool,
)
from automodel_cli.config.schema.preprocess import MAX_DOCUMENT_BYTES, TextInput
from automodel_cli.config.schema.runners import RUNNER_PANELS, RunnerOptions
from automodel_cli.config.schema.shuffle import Names

Similarity = Annotated[float, Field(gt=0, le=1), TypeName("a number above 0, up to 1")]
Share = Annotated[float, not_a_bool, Field(ge=0, le=1), TypeName("a number from 0 to 1")]
_LEAST_MEMORY = 64_000_000
_OF_NEAR = ("hashes", "recall", "bands", "rows", "shingle", "shingle_size", "verify")


class DedupConfig(TextInput, RunnerOptions):
    """Documents without those that repeat others, in the order of the source."""

    panels: ClassVar = {
        "Input": "dataset text_key document input_format max_document_bytes keep_columns strict",
        "Duplicates": "exact near shingle shingle_size hashes recall bands rows verify",
        "Filters": "filters min_characters max_characters min_words max_words min_word_length max_word_length "
        "max_symbol_ratio max_bullet_lines max_ellipsis_lines min_alphabetic_words min_stop_words max_duplicate_lines "
        "max_duplicate_line_characters max_duplicate_paragraphs max_duplicate_paragraph_characters max_top_ngrams "
        "max_duplicate_ngrams languages min_language_score",
        "Output": "output_dir name chunk_size temp_dir overwrite dry_run",
        "Speed and memory": "memory num_workers",
        **RUNNER_PANELS,
    }

    dataset: str = Field(validation_alias=AliasChoices("dataset", "input"))
    """File, folder or glob (.jsonl .parquet .txt ..., also .gz .bz2 .xz .zst), read in order of file name."""
    output_dir: str | None = Field(default=None, validation_alias=AliasChoices("output_dir", "output"))
    """Folder or URL to write to; null: `{dataset}_dedup` in the current folder."""
    name: str | None = None
    """Prefix of the file names, `NAME.chunk.00000.jsonl`; null: the dataset's name."""
    text_key: str = "text"
    """Field or column that holds the text; also its key in the output."""
    max_document_bytes: Amount = MAX_DOCUMENT_BYTES
    """Longer documents (bytes in their file) are skipped as bad rows; reading takes several times this much memory."""
    keep_columns: Names | None = None
    """Columns of parquet files to keep besides the text, or `all`; rows of .jsonl files are always kept whole; null:
    none."""
    exact: bool = True
    """Leave out documents whose text has already occurred."""
    near: Similarity | None = None
    """Also leave out near-duplicates: documents whose shingles have at least this Jaccard similarity (0.8) with those
    of an earlier one, found by MinHash; null: only exact copies."""
    shingle: Literal["words", "characters"] = "words"
    """What is compared: runs of words, or of characters (for text without spaces, such as Chinese)."""
    shingle_size: Annotated[Count, Field(le=100)] = 5
    """Words or characters in a run."""
    hashes: Annotated[Count, Field(le=1024)] = 128
    """Most MinHash values of a document; more estimate similarities better (standard error about 0.4 / sqrt(hashes))
    and take more time and disk."""
    recall: Annotated[float, Field(gt=0, lt=1), TypeName("a number between 0 and 1")] = 0.95
    """Share of the pairs just at the threshold that must at least become candidates; decides bands and rows."""
    bands: Annotated[Count, Field(le=1024)] | None = None
    """Number of bands, with `rows` (FineWeb has 14 of 8 rows); null: the most selective ones that
    reach `recall`."""
    rows: Annotated[Count, Field(le=128)] | None = None
    """MinHash values of a band, with `bands`; null: chosen with them."""
    verify: Literal["signature", "exact"] = "signature"
    """What decides whether a candidate pair is alike: the similarity that its signatures estimate, or the exact one of
    its shingles (which are then kept on disk, about 1.5 times the text)."""
    filters: Literal["gopher", "gopher-quality", "gopher-repetition"] | None = None
    """Rules of Gopher's filters (Rae et al. 2021) with their limits: quality (length, words, symbols), repetition,
    or both; single limits below take the place of theirs; null: none."""
    min_characters: Whole | None = None
    """Leave out shorter texts; null: no limit."""
    max_characters: Amount | None = None
    """Leave out longer texts; null: no limit."""
    min_words: Whole | None = None
    """Leave out texts with fewer words (with a letter or digit, parted by white space); null: the preset's, if any."""
    max_words: Amount | None = None
    """Leave out texts with more words; null: the preset's, if any."""
    min_word_length: NotNegative | None = None
    """Least mean length of these words, in characters; null: the preset's, if any."""
    max_word_length: NotNegative | None = None
    """Most mean length of these words; null: the preset's, if any."""
    max_symbol_ratio: NotNegative | None = None
    """Most hash signs, or ellipses, for each word; null: the preset's, if any."""
    max_bullet_lines: Share | None = None
    """Largest share of lines that begin with a bullet; null: the preset's, if any."""
    max_ellipsis_lines: Share | None = None
    """Largest share of lines that end with an ellipsis; null: the preset's, if any."""
    min_alphabetic_words: Share | None = None
    """Least share of words with a letter; null: the preset's, if any."""
    min_stop_words: Annotated[Whole, Field(le=8)] | None = None
    """How many of the, be, to, of, and, that, have, with must occur; for English; null: the preset's, if any."""
    max_duplicate_lines: Share | None = None
    """Largest share of lines that came before in the text; null: the preset's, if any."""
    max_duplicate_line_characters: Share | None = None
    """Largest share of characters in such lines; null: the preset's, if any."""
    max_duplicate_paragraphs: Share | None = None
    """Largest share of paragraphs that came before in the text; null: the preset's, if any."""
    max_duplicate_paragraph_characters: Share | None = None
    """Largest share of characters in such paragraphs; null: the preset's, if any."""
    max_top_ngrams: Annotated[Shares, Field(min_length=3, max_length=3)] | None = None
    """Largest share of characters in the most common run of 2, 3 and 4 words: three numbers; null: the
    preset's, if any."""
    max_duplicate_ngrams: Annotated[Shares, Field(min_length=6, max_length=6)] | None = None
    """Largest share of characters in repeated runs of 5, 6, 7, 8, 9 and 10 words: six numbers; null: the
    preset's, if any."""
    languages: Words | None = None
    """Codes (en,de) of the languages to keep, as py3langid finds them in the beginning of a text; null: all."""
    min_language_score: Share = 0.0
    """Least probability of the language that was found."""
    chunk_size: Amount = 256_000_000
    """Maximum bytes per file."""
    strict: bool = False
    """Stop at the first bad row instead of skipping it."""
    memory: Annotated[Amount, Field(ge=_LEAST_MEMORY), TypeName("a number from 64M up")] = 500_000_000
    """Memory of each process, in bytes, besides the longest document; less takes more turns for the same result."""
    temp_dir: LocalFolder | None = None
    """Folder for files on their way to a URL; null: in the user's cache. Not used for an output on a disk."""
    overwrite: bool = False
    """Replace the documents of an earlier run in the folder."""
    num_workers: Whole | None = None
    """Processes; 0 or 1: only this one; null: as many as pay off, up to one per core."""
    dry_run: bool = False
    """Show what would be done, with the disk and memory it takes, and exit."""

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].default)

    @model_validator(mode="after")
    def _name_is_a_prefix(self) -> DedupConfig:
        if self.name is not None and ("/" in self.name or not self.name.strip(".")):
            raise ValueError("`name` is a prefix of file names and cannot contain folders")
        return self

    @model_validator(mode="after")
    def _near_goes_together(self) -> DedupConfig:
        if self.near is None and (alone := next((name for name in _OF_NEAR if not self._is_default(name)), None)):
            raise ValueError(f"`{alone}` is about near-duplicates: give `near` too, such as 0.8")
        if (self.bands is None) != (self.rows is None):
            raise ValueError("`bands` and `rows` go together; give both or none")
        if self.bands is not None and self.rows is not None and self.bands * self.rows > 1024:
            raise ValueError(f"`bands` times `rows` is {self.bands * self.rows:,}, expected at most 1,024")
        if self.near is not None and not self.exact:
            raise ValueError("`near` finds exact copies too; leave out `exact: false`")
        return self

    @model_validator(mode="after")
    def _filters_go_together(self) -> DedupConfig:
        if not self.exact and all(map(self._is_default, self.panels["Filters"].split())):
            raise ValueError("`exact: false` leaves nothing to do: ask for filters, or leave it out")
        for what in ("characters", "words", "word_length"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"`min_{what}` ({least:,}) is more than `max_{what}` ({most:,})")
        if self.min_language_score and self.languages is None:
            raise ValueError("`min_language_score` is about `languages`: say which ones to keep")
        return self
