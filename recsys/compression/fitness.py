"""Validation AUC of a trained ranker under a mask, before or after it has got used to it: what a search maximises."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from recsys.batch import Batch
from recsys.compression.base import PruningContext
from recsys.embedding.mask import Mask, MaskGate
from recsys.embedding.optimizers import AdamTable
from recsys.evaluation.metrics import auc
from recsys.evaluation.predict import predict
from recsys.ranker import Ranker
from recsys.trainer import EVALUATION_BATCH_SIZE, Trainer

TUNING_SHARE = 0.3
"""Of the run's learning rates, for the few steps that a candidate is trained."""
NUM_RECALIBRATION_BATCHES = 8
MAX_VALID_EXAMPLES = 200_000
"""Examples that a candidate is judged by: the first ones of the split. The AUC of so many is known to about .0005."""


class Fitness:
    """A function of a mask; the ranker is left as it was.

    Each candidate is trained for `num_steps`, and judged by the better of before and after. A feature that says what
    another one says as well looks indispensable to a network that was trained with both; only after some steps does it
    show that it is not. And where a mask takes little, steps may do more harm than the mask. Batch norm has seen
    the supernet's random prefixes: its statistics are taken anew for each candidate, from training batches, where the
    reference code keeps the supernet's.
    """

    def __init__(self, evidence: PruningContext, num_steps: int = 0) -> None:
        self.ranker, self.evidence, self.num_steps = evidence.ranker, evidence, num_steps
        batches = evidence.valid.batches(EVALUATION_BATCH_SIZE)
        self.valid = list(islice(batches, -(-MAX_VALID_EXAMPLES // EVALUATION_BATCH_SIZE)))
        shuffled = evidence.train.batches(4096, shuffle=True, seed=evidence.seed)
        self.train = list(islice(shuffled, NUM_RECALIBRATION_BATCHES)) if _batch_norms(self.ranker) else []

    def __call__(self, mask: Mask) -> float:
        """AUC of the first validation examples."""
        with held_to(self.ranker, mask):
            before = self._auc()
            if self.num_steps == 0:
                return before
            with tuned(self.evidence, self.num_steps):
                return max(before, self._auc())

    def _auc(self) -> float:
        with recalibrated(self.ranker, self.train):
            return auc(predict(self.ranker, self.valid))


@contextmanager
def held_to(ranker: Ranker, mask: Mask) -> Iterator[None]:
    """The ranker under a mask inside the block; its table and its gate come back as they were."""
    gate = ranker.embedding.gate
    ranker.embedding.gate = MaskGate(mask)
    try:
        yield
    finally:
        ranker.embedding.gate = gate


@contextmanager
def tuned(evidence: PruningContext, num_steps: int) -> Iterator[None]:
    """The ranker after some steps of training under its gate inside the block; after it as it was."""
    ranker, seed = evidence.ranker, evidence.seed
    before = {name: tensor.clone() for name, tensor in ranker.state_dict().items()}
    rate = TUNING_SHARE * evidence.trainer.learning_rate
    config = evidence.trainer.model_copy(update={"learning_rate": rate})
    own_rate = evidence.embedding.learning_rate
    table = AdamTable(
        ranker.embedding.table.detach(), TUNING_SHARE * own_rate if own_rate else rate, evidence.embedding.l2
    )
    gather_fn, ranker.embedding.gather_fn = ranker.embedding.gather_fn, table.gather
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trainer = Trainer(ranker, table, config, evidence.directory, seed=seed, l2=evidence.embedding.l2)
            ranker.train()
            size = config.resolve_batch_size(evidence.train.num_rows)
            for batch in islice(evidence.train.batches(size, shuffle=True, seed=seed), num_steps):
                trainer.step(batch)
            table.flush()
            ranker.eval()
        yield
    finally:
        ranker.load_state_dict(before)
        ranker.embedding.gather_fn = gather_fn
        ranker.eval()


@contextmanager
def recalibrated(ranker: nn.Module, batches: Iterable[Batch]) -> Iterator[None]:
    """Batch norm with the mean statistics of these batches inside the block; before and after as it was."""
    norms = _batch_norms(ranker)
    states = [copy.deepcopy(norm.state_dict()) for norm in norms]
    modes = [(norm.training, norm.momentum) for norm in norms]
    try:
        if norms:
            ranker.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # a plain mean
            with torch.no_grad():
                for batch in batches:
                    ranker(batch)
        yield
    finally:
        for norm, state, (training, momentum) in zip(norms, states, modes, strict=True):
            norm.load_state_dict(state)
            norm.train(training)
            norm.momentum = momentum


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm1d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
