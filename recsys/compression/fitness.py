"""Validation AUC of a trained ranker under a mask, with or without a few steps of tuning: what a search maximises."""

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
"""Factor of the run's learning rates for the few steps that a candidate is trained."""
NUM_RECALIBRATION_BATCHES = 8
MAX_VALID_EXAMPLES = 200_000
"""Examples that a candidate is evaluated on, the first of the split. Their AUC is known to about .0005."""


class Fitness:
    """A function of a mask; the ranker is left as it was.

    Each candidate is trained for `num_steps` and scored by the better AUC of before and after. To a network trained
    with two redundant features either looks indispensable; a few steps show that it is not. Where a mask removes
    little, those steps may do more harm than the mask. Batch norm has seen the supernet's random prefixes, so its
    statistics are computed anew for each candidate from training batches; the reference code keeps the supernet's.
    """

    def __init__(self, context: PruningContext, num_steps: int = 0) -> None:
        self.ranker, self.context, self.num_steps = context.ranker, context, num_steps
        batches = context.valid.batches(EVALUATION_BATCH_SIZE)
        self.valid = list(islice(batches, -(-MAX_VALID_EXAMPLES // EVALUATION_BATCH_SIZE)))
        shuffled = context.train.batches(4096, shuffle=True, seed=context.seed)
        self.train = list(islice(shuffled, NUM_RECALIBRATION_BATCHES)) if _batch_norms(self.ranker) else []

    def __call__(self, mask: Mask) -> float:
        """AUC of the first validation examples."""
        with masked_by(self.ranker, mask):
            before = self._auc()
            if self.num_steps == 0:
                return before
            with tuned(self.context, self.num_steps):
                return max(before, self._auc())

    def _auc(self) -> float:
        with recalibrated(self.ranker, self.train):
            return auc(predict(self.ranker, self.valid))


@contextmanager
def masked_by(ranker: Ranker, mask: Mask) -> Iterator[None]:
    """The ranker under a mask inside the block; its table and its masking are restored after it."""
    before = ranker.embedding.gate
    ranker.embedding.gate = MaskGate(mask)
    try:
        yield
    finally:
        ranker.embedding.gate = before


@contextmanager
def tuned(context: PruningContext, num_steps: int) -> Iterator[None]:
    """The ranker after some steps of training under its mask inside the block; restored after it."""
    ranker, seed = context.ranker, context.seed
    before = {name: tensor.clone() for name, tensor in ranker.state_dict().items()}
    rate = TUNING_SHARE * context.trainer.learning_rate
    config = context.trainer.model_copy(update={"learning_rate": rate})
    own_rate = context.embedding.learning_rate
    table = AdamTable(
        ranker.embedding.table.detach(),
        learning_rate=TUNING_SHARE * own_rate if own_rate else rate,
        weight_decay=context.embedding.l2,
    )
    gather_fn, ranker.embedding.gather_fn = ranker.embedding.gather_fn, table.gather
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trainer = Trainer(ranker, table, config, context.directory, seed=seed, l2=context.embedding.l2)
            ranker.train()
            size = config.resolve_batch_size(context.train.num_rows)
            for batch in islice(context.train.batches(size, shuffle=True, seed=seed), num_steps):
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
    """Batch norm with the mean statistics of these batches inside the block; restored after it."""
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
