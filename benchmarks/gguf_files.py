"""How closely llama.cpp follows a checkpoint that was exported to GGUF, and what the smaller types cost.

    python benchmarks/gguf_files.py CKPT [--texts FILE.parquet] [--number 10000]

Needs llama-cpp-python. For each type: seconds of the export, size, the largest and the mean difference of logits (of
256 tokens, or the context), the share of equal first choices, and how many of 64 greedy tokens are those of the
checkpoint. Then as many texts as asked for are tokenized by both: lines of FILE (its column ``text``), and made-up ones
of odd white space, digits, scripts and spelled special tokens. llama.cpp computes with all of its own in fp32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pyarrow.parquet as parquet
import torch

from automodel_cli.assembly.checkpoint import LoadedModel, load_model
from automodel_cli.batch import Batch
from automodel_cli.config.schema.results import ExportGGUFConfig
from automodel_cli.corpus.tokenizers.engines import probe_texts
from automodel_cli.recipes import export_gguf

F32 = 0  # ggml's number of the type
MOST_TOKENS, GREEDY = 256, 64
"""Tokens of which logits are compared; tokens that both say."""


def opened(file: Path, context: int) -> Any:
    """The file in llama.cpp."""
    return llama_cpp.Llama(
        str(file), n_ctx=context, n_batch=context, n_threads=1, logits_all=True, type_k=F32, type_v=F32, verbose=False
    )


def ours(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """Logits of the checkpoint, ``[T, V]``."""
    with torch.no_grad():
        logits: np.ndarray = loaded.model(Batch(torch.tensor([ids]), None))[0].float().numpy()
    return logits


def theirs(reader: Any, ids: list[int]) -> np.ndarray:
    """The same of llama.cpp."""
    reader.reset()
    reader.eval(ids)
    return np.array(reader.scores[: len(ids)])


def texts(file: Path | None, number: int) -> Iterator[str]:
    """Made-up ones, then lines of the file, ``number`` in all."""
    made = probe_texts(number if file is None else number // 10)
    yield from made
    left = number - len(made)
    for document in [] if file is None else parquet.read_table(file, columns=["text"])["text"].to_pylist():
        lines = document.splitlines(keepends=True)[:left]
        yield from lines
        left -= len(lines)


def compare(loaded: LoadedModel, file: Path, ids: list[int], said: list[int]) -> str:
    """A line of the table."""
    reader, exact = opened(file, len(ids) + GREEDY), ours(loaded, ids)
    found = theirs(reader, ids)
    difference = np.abs(found - exact)
    same = (found.argmax(-1) == exact.argmax(-1)).mean()
    repeated = said[: len(said) - GREEDY]
    while len(repeated) < len(said):
        repeated.append(int(theirs(reader, repeated)[-1].argmax()))
    alike = next((k for k in range(GREEDY) if repeated[k - GREEDY] != said[k - GREEDY]), GREEDY)
    return f"{difference.max():.1e} | {difference.mean():.1e} | {same:.1%} | {alike} of {GREEDY}"


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--texts", type=Path, help="Parquet file with a column text")
    parser.add_argument("--number", type=int, default=10_000)
    options = parser.parse_args(argv)
    loaded = load_model(options.checkpoint)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None, "the checkpoint has no tokenizer"
    wanted = list(texts(options.texts, options.number))
    context = min(MOST_TOKENS, loaded.model.max_seq_len or MOST_TOKENS)
    ids = [i for text in wanted[-400:] for i in tokenizer.encode(text)][:context]
    said = ids[:8]
    for _ in range(GREEDY):
        said.append(int(ours(loaded, said)[-1].argmax()))
    print("type | export s | MB | largest | mean | same first choice | greedy")
    with tempfile.TemporaryDirectory() as place:
        for kind in ("f32", "f16", "q8_0"):
            file, begin = Path(place, f"{kind}.gguf"), time.perf_counter()
            export_gguf.run(
                ExportGGUFConfig(checkpoint=options.checkpoint, output_file=str(file), type=kind), say=print
            )
            seconds, size = time.perf_counter() - begin, file.stat().st_size / 1e6
            print(f"{kind} | {seconds:.1f} | {size:.1f} | {compare(loaded, file, ids, said)}", flush=True)
        reader = opened(file, context)
        begin = time.perf_counter()
        other = [t for t in wanted if reader.tokenize(t.encode(), add_bos=False, special=False) != tokenizer.encode(t)]
        print(
            f"{len(wanted):,} texts, {len(other)} tokenized otherwise, {time.perf_counter() - begin:.0f} s", other[:3]
        )


if __name__ == "__main__":
    main()
