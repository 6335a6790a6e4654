"""The harness' (context, continuation) pairs as token ids, split as lm-evaluation-harness' own ``hf`` model splits.

The whole text is encoded and split where the context's own encoding ends; white space at the end of the context goes
to the continuation. Where a tokenizer joins the context's end with all of the continuation, nothing is left behind
that place (``hf`` stops there); a span without tokens would be certain and always chosen, so the split moves back to
where the two encodings part, and the result counts such pairs. A text that has no context follows the first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from automodel_cli.errors import DataError
from automodel_cli.evaluation.icl.rows import common_prefix

Encoded = tuple[tuple[str, str], list[int], list[int]]
Encode = Callable[..., list[int]]


@dataclass
class RequestEncoder:
    """Pairs of texts to pairs of ids, and what was met on the way.

    Attributes:
        encode: a text to ids, with what the tokenizer adds; ``add_special_tokens=False``: without.
        first_id: what stands before a text that has no context; called where it is needed.
        max_length: ids that the model takes at most.
        counts: by task: pairs, those whose split moved back, and contexts that were cut to the model's.
    """

    encode: Encode
    first_id: Callable[[], int]
    max_length: int
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def pair(self, context: str, continuation: str, *, task: str = "") -> Encoded:
        """One request's ids: (texts, of the context, of the continuation); neither is empty.

        Raises:
            DataError: an empty continuation, or one that is longer than the model's context.
        """
        if not continuation and context == context.rstrip():
            raise DataError(
                f"task {task or '?'}: an empty choice behind {context[-40:]!r} cannot be scored",
                "every choice needs a text: correct the task's data or its doc_to_choice",
            )
        before, scored, moved = self._split(context, continuation)
        if len(scored) > self.max_length:
            raise DataError(
                f"task {task or '?'}: a continuation has {len(scored):,} tokens, the model's context "
                f"{self.max_length:,}: {continuation[:40]!r}",
                "leave that document out (--max-per-task), or take a model with a longer context",
            )
        self.note(task, moved=moved, cut=len(before) + len(scored) > self.max_length + 1)
        return (context, continuation), before, scored

    def note(self, task: str, *, moved: bool = False, cut: bool = False) -> None:
        """Count one request."""
        counts = self.counts.setdefault(task, Counter(count=0, split_moved_back=0, context_cut=0))
        counts["count"] += 1
        counts["split_moved_back"] += moved
        counts["context_cut"] += cut

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int], bool]:
        if not context:
            ids = self.encode(continuation, add_special_tokens=False)
            if len(ids) > 1 and ids[0] == self.first_id():
                return ids[:1], ids[1:], False
            return [self.first_id()], self._some(ids, continuation), False
        kept = context.rstrip()
        ids = self._some(self.encode(context + continuation), context + continuation)
        end = len(before := self.encode(kept))
        if end < len(ids):
            return before or [self.first_id()], ids[end:], False
        end = min(common_prefix([tuple(ids), tuple(before)]), len(ids) - 1)
        return ids[:end] or [self.first_id()], ids[end:], True

    def _some(self, ids: Sequence[int], text: str) -> list[int]:
        if not ids:
            raise DataError(
                f"the tokenizer makes no token of {text[:40]!r}, so it cannot be scored",
                "correct the task's data, or take the tokenizer that the model was trained with",
            )
        return list(ids)
