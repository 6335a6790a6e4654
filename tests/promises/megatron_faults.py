"""``preprocess_faults.py`` for ``preprocess megatron``: the same points, in the functions that write its files.

| point    | what is under way                                                                          |
|----------|--------------------------------------------------------------------------------------------|
| write    | half of a chunk's tokens are in a pair's temporary                                         |
| unlink   | something is about to be removed: temporaries, an index that is taken back, the spool       |
| divide   | part of a shard is copied from the spool                                                   |
| manifest | a pair is being hashed for the manifest                                                    |
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import preprocess_faults as faults  # a sibling script, not a package

from automodel_cli.corpus.build import megatron_output, pipeline
from automodel_cli.corpus.documents import source as documents
from automodel_cli.corpus.formats import megatron_divide
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.corpus.shuffle import shuffled_source


def half_a_write(original: Any, writer: MegatronWriter, tokens: Any, *rest: Any) -> None:
    writer._put(tokens[: len(tokens) // 2])
    faults.hand_to_the_kernel(writer._bin)


if __name__ == "__main__":
    faults.POINTS |= {
        "write": (MegatronWriter, "write"),
        "unlink": (Path, "unlink"),
        "divide": (megatron_divide, "_append"),
        "manifest": (megatron_output, "describe_pair"),
    }
    faults.half_a_write = half_a_write
    documents.BYTES_PER_DOCUMENT = shuffled_source.BYTES_PER_DOCUMENT = 64
    pipeline.EVERY_TOKENS = 500  # positions inside a pair, too
    megatron_divide._BLOCK_TOKENS = 400
    megatron_divide._BLOCK_DOCUMENTS = 3
    if sys.argv[1] == "count":
        faults.count_all()
    elif sys.argv[1] != "none":
        faults.arm(sys.argv[1], int(sys.argv[2]))
    from automodel_cli.cli.app import main

    sys.argv = ["automodel", *sys.argv[3:]]
    main()
