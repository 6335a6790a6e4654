"""The validation of a run: every set is scored on the weights as they are, and on their average, and logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from automodel_cli.data.interface import source_of
from automodel_cli.data.objective import WEIGHTED, weighted_loss
from automodel_cli.evaluation.likelihood import Likelihood
from automodel_cli.evaluation.likelihood import evaluate as evaluate_likelihood
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.recipes.pretraining.run import Run


def averaged(name: str) -> str:
    """What the losses of the averaged weights on a validation set are called."""
    return f"{name} (ema)"


@dataclass(frozen=True)
class Validation:
    """Scores the validation sets of a run."""

    run: Run
    metrics: MetricsLog

    def losses(self) -> dict[str, float]:
        """Loss in nats per token by the name of the set, as logged; of the averaged weights by names of their own.

        Raises:
            Stopped: a signal ended it.
        """
        return self._losses() | self._losses_of_average()

    def _losses(self, named: Callable[[str], str] = str) -> dict[str, float]:
        """Score every validation set and log it as ``named``: losses by those names."""
        losses: dict[str, float] = {}
        by_source: dict[str, float] = {}  # a set of its own for a source, or a part of a mixture
        for name, (dataset, loader) in self.run.val_sets.items():
            scores = self._score(loader, source_of(dataset).source_names)
            losses[named(name)] = scores.loss
            by_source = {**scores.loss_by_source, **by_source, name: scores.loss}
            self._log(named(name), scores.as_dict())
        weighted = weighted_loss(self.objective, by_source, all_of_them=True)
        if weighted is not None:
            losses[named(WEIGHTED)] = weighted
            self._log(named(WEIGHTED), {"loss": weighted})
        return losses

    def _losses_of_average(self) -> dict[str, float]:
        """The same for the average of the weights, as soon as there is one."""
        average = self.run.average
        if average is None or not average.count:
            return {}
        with average.swapped_in():
            return self._losses(averaged)

    @property
    def objective(self) -> Mapping[str, float] | None:
        """How much the loss on each source counts, where the data set says so."""
        return source_of(self.run.dataset).objective

    def _score(self, loader: Any, sources: Sequence[str]) -> Likelihood:
        run = self.run
        return evaluate_likelihood(
            run.model,
            map(run.parallel.shard_batch, run.stop.until(loader, run.world.any)),
            head_loss=run.head_loss,
            token_bytes=run.tokenizer.token_bytes() if run.tokenizer else None,
            device=run.device,
            autocast_dtype=run.fast_path.autocast_dtype,
            sum_over_ranks=run.world.sum,
            sources=sources,
        )

    def _log(self, name: str, scores: Mapping[str, Any]) -> None:
        state = self.run.state
        best = name == self.best_key and state.step > 0 and scores["loss"] < state.best_val_loss
        place = {"step": state.step, "epoch": state.epoch, "name": name, "best": best}
        self.metrics.validation({**place, **scores})

    @property
    def best_key(self) -> str:
        """The validation set that decides which checkpoint is best; of the average if it says so."""
        run, wanted = self.run, self.run.cfg.checkpoint.best_metric_key
        sets = [*run.val_sets, *([WEIGHTED] if self.objective is not None else [])]
        known = [*sets, *(map(averaged, sets) if run.average is not None else ())]
        return wanted if wanted in known else next(iter(sets), wanted)
