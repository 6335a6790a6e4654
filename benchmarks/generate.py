"""Tokens generated per second: with a key-value cache, against a full forward per token and against transformers.

Greedy, one row, the same weights, a prompt of 8 tokens; every variant in turn, medians over rounds of the ratio to
the reference in the same round, ids compared.

    python benchmarks/generate.py [--tokens 512] [--rounds 5] [--layers 4] [--width 256]

* GPT-2 (ours) against ``FullForward`` (every token computes everything anew, as nanoGPT's sampling does)
* GPT-2 (ours) against ``transformers.generate`` on the same weights
* a Llama-like model of transformers in our engine against ``transformers.generate``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import transformers

from automodel_cli.checkpoint.hf.export import save_hf
from automodel_cli.generation.decoders import FullForward
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config

VOCAB = 50257
PROMPT = [464, 2068, 7586, 21831, 18045, 625, 262, 16931]


def with_transformers(model: transformers.PreTrainedModel, tokens: int) -> list[int]:
    """What ``transformers.generate`` makes."""
    ids = torch.tensor([PROMPT])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return found[0, len(PROMPT) :].tolist()


def compare(title: str, ours: Callable[[], list[int]], other: Callable[[], list[int]], rounds: int) -> None:
    """Print tokens/s of both and the median ratio."""
    times: dict[str, list[float]] = {"ours": [], "other": []}
    answers = {}
    for number in range(rounds + 1):
        for name, work in (("other", other), ("ours", ours)):
            started = time.perf_counter()
            answers[name] = work()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    same = sum(a == b for a, b in zip(answers["ours"], answers["other"], strict=True))
    ratio = statistics.median(o / m for o, m in zip(times["other"], times["ours"], strict=True))
    speeds = {name: len(answers[name]) / statistics.median(found) for name, found in times.items()}
    print(
        f"{title:44} {speeds['ours']:8.1f} tokens/s, reference {speeds['other']:8.1f}  {ratio:6.2f}x"
        f"  ({same} of {len(answers['ours'])} ids equal)"
    )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    tokens, rounds, layers, width = arguments.tokens, arguments.rounds, arguments.layers, arguments.width
    settings = SamplingSettings(tokens, temperature=0)
    gpt2 = build_gpt2_model(vocab_size=VOCAB, n_positions=1024, n_embd=width, n_layer=layers, n_head=width // 64)
    gpt2.materialize("cpu", seed=0)
    gpt2.eval()

    def cached() -> list[int]:
        return generate(gpt2, [PROMPT], settings)[0][0].ids

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {tokens} tokens, {rounds} rounds")
    compare(
        "GPT-2, against a full forward a token",
        cached,
        lambda: generate(gpt2, [PROMPT], settings, decoder=FullForward(gpt2))[0][0].ids,
        rounds,
    )
    with tempfile.TemporaryDirectory(prefix="automodel-bench-") as folder:
        hf = save_hf(gpt2, f"{folder}/hf")
        twin = transformers.GPT2LMHeadModel.from_pretrained(hf).eval()
    compare("GPT-2, against transformers.generate", cached, lambda: with_transformers(twin, tokens), rounds)
    llama = from_config(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=max(1, width // 128),
        )
    )
    llama.materialize("cpu", seed=0)
    llama.eval()
    compare(
        "Llama of transformers, in our engine",
        lambda: generate(llama, [PROMPT], settings)[0][0].ids,
        lambda: with_transformers(llama.hf, tokens),
        rounds,
    )


if __name__ == "__main__":
    main()
