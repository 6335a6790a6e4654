"""What vLLM makes of exported folders; run by an interpreter that has it, with none of this package.

    python vllm_answers.py FOLDER

FOLDER/asked.json: {name: ids of a prompt}, where FOLDER/name is an exported folder. Writes FOLDER/answers.json:
{"version", "answers": {name: {"greedy", "chat_prompt", "chat", "sampled"}}}, ids each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

QUESTION = "What is it?"
MAX_TOKENS = 32


def main(root: Path) -> None:
    from vllm import LLM, SamplingParams

    answers = {}
    for name, ids in json.loads((root / "asked.json").read_bytes()).items():
        llm = LLM(str(root / name), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4)
        greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        hot = SamplingParams(temperature=2, max_tokens=64, n=4, ignore_eos=True, seed=0)
        chat = llm.chat([{"role": "user", "content": QUESTION}], greedy)[0]
        sampled = llm.generate([{"prompt_token_ids": ids}], hot)[0].outputs
        answers[name] = {
            "greedy": list(llm.generate([{"prompt_token_ids": ids}], greedy)[0].outputs[0].token_ids),
            "chat_prompt": list(chat.prompt_token_ids),
            "chat": list(chat.outputs[0].token_ids),
            "sampled": [index for one in sampled for index in one.token_ids],
        }
        del llm
    import vllm

    (root / "answers.json").write_text(json.dumps({"version": vllm.__version__, "answers": answers}))


if __name__ == "__main__":
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    main(Path(sys.argv[1]))
