"""Peers of muxrec on a prepared dataset: LightGBM, CatBoost and Vowpal Wabbit, each stopped early on the valid split.

Each reads what muxrec reads: the tokens of the categories and the numbers as the registry transforms them. Settings are
those that a careful first user would take: the peer's own treatment of categories, a small rate and many rounds for
the boosted trees, all pairs of features for Vowpal Wabbit.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import EncodedBatch
from recsys.dataset import Split
from recsys.evaluation.metrics import auc
from recsys.evaluation.predictions import Predictions

Floats = npt.NDArray[np.float64]
MAX_ROUNDS, PATIENCE = 3_000, 100
"""Trees at most, and trees without a better validation AUC before the boosting stops."""
LEARNING_RATE = 0.05
MAX_PASSES = 10
"""Passes of Vowpal Wabbit at most; one without a better validation AUC ends it."""
NUM_FLAGS = 50
"""Values of a list feature that get a column of zeros and ones for the trees: the most frequent."""


class Rows(NamedTuple):
    """A split, encoded."""

    encoded: EncodedBatch
    labels: npt.NDArray[np.float32]

    @classmethod
    def of(cls, split: Split) -> "Rows":
        """All rows of a split that fits in one window of memory."""
        ((encoded, labels, _),) = split.labelled_tokens()
        return cls(encoded, labels)


class Table(NamedTuple):
    """The features as columns for trees: codes of categories, then flags of lists, then numbers."""

    codes: dict[str, npt.NDArray[np.int32]]
    """Code of each value, the most frequent of train first; -1 for a value that train lacks."""
    numbers: dict[str, npt.NDArray[np.float32]]

    def frame(self) -> Any:
        """As pandas, the codes as integers."""
        return pl.DataFrame({**self.codes, **self.numbers}).to_pandas()


def tables(train: Rows, others: list[Rows], dense: tuple[str, ...]) -> list[Table]:
    """Train and the others as tables, coded by train's values."""
    made = [Table({}, {}) for _ in (train, *others)]
    for name, tokens in train.encoded.tokens.items():
        distinct, counts = np.unique(tokens, return_counts=True)
        by_count = np.argsort(-counts, kind="stable")
        for table, rows in zip(made, (train, *others), strict=True):
            if name in rows.encoded.lengths:
                table.numbers.update(_flags(name, rows.encoded, distinct[by_count[:NUM_FLAGS]]))
            else:
                table.codes[name] = _codes(rows.encoded.tokens[name], distinct, by_count)
    for table, rows in zip(made, (train, *others), strict=True):
        table.numbers.update({name: rows.encoded.dense[:, k] for k, name in enumerate(dense)})
    return made


def _codes(tokens: Any, distinct: Any, by_count: Any) -> npt.NDArray[np.int32]:
    rank = np.empty(len(distinct), np.int32)
    rank[by_count] = np.arange(len(distinct), dtype=np.int32)
    place = np.minimum(np.searchsorted(distinct, tokens), len(distinct) - 1)
    return np.where(distinct[place] == tokens, rank[place], -1).astype(np.int32)


def _flags(name: str, encoded: EncodedBatch, values: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    row_of = np.repeat(np.arange(encoded.num_examples), encoded.lengths[name])
    for number, value in enumerate(values):
        flag = np.zeros(encoded.num_examples, np.float32)
        flag[row_of[encoded.tokens[name] == value]] = 1
        yield f"{name}_{number}", flag


def lightgbm(train: Rows, valid: Rows, test: Rows, dense: tuple[str, ...], seed: int) -> Floats:
    """Probabilities of test by LightGBM, its own splits of categories."""
    lgb: Any = import_module("lightgbm")
    first, second, third = (table.frame() for table in tables(train, [valid, test], dense))
    categories = list(tables(train, [], dense)[0].codes)
    settings = {"objective": "binary", "metric": "auc", "learning_rate": LEARNING_RATE, "num_leaves": 63}
    settings |= {"verbose": -1, "seed": seed, "deterministic": True}
    data = lgb.Dataset(first, train.labels, categorical_feature=categories)
    held = lgb.Dataset(second, valid.labels, reference=data)
    stop = lgb.early_stopping(PATIENCE, verbose=False)
    return np.asarray(lgb.train(settings, data, MAX_ROUNDS, valid_sets=[held], callbacks=[stop]).predict(third))


def catboost(train: Rows, valid: Rows, test: Rows, dense: tuple[str, ...], seed: int) -> Floats:
    """Probabilities of test by CatBoost, with its ordered target statistics of categories."""
    cat: Any = import_module("catboost")
    made = tables(train, [valid, test], dense)
    pools = [
        cat.Pool(table.frame(), rows.labels, cat_features=list(table.codes))
        for table, rows in zip(made, (train, valid, test), strict=True)
    ]
    model = cat.CatBoostClassifier(
        iterations=MAX_ROUNDS,
        eval_metric="AUC",
        od_type="Iter",
        od_wait=PATIENCE,
        random_seed=seed,
        allow_writing_files=False,
        verbose=False,
    )
    model.fit(pools[0], eval_set=pools[1])
    return model.predict_proba(pools[2])[:, 1]


def vowpal_wabbit(train: Rows, valid: Rows, test: Rows, dense: tuple[str, ...], seed: int) -> Floats:
    """Probabilities of test by Vowpal Wabbit: logistic loss, all pairs of features (`-q ::`), its adaptive rates."""
    vw: Any = import_module("vowpalwabbit")
    workspace = vw.Workspace(f"-q :: -b 24 --loss_function logistic --link logistic --quiet --random_seed {seed}")
    examples = [[workspace.parse(line) for line in lines_of(rows, dense)] for rows in (train, valid, test)]
    best, answer = -1.0, np.zeros(0)
    for number in range(MAX_PASSES):
        for position in np.random.default_rng([seed, number]).permutation(len(train.labels)):
            workspace.learn(examples[0][position])
        score = auc(Predictions.of(valid.labels, [workspace.predict(example) for example in examples[1]]))
        if score <= best:
            break
        best, answer = score, np.array([workspace.predict(example) for example in examples[2]])
    return answer


def lines_of(rows: Rows, dense: tuple[str, ...]) -> Iterator[str]:
    """Rows in Vowpal Wabbit's text format: a namespace per feature, named by a letter of its own."""
    names = [*rows.encoded.tokens, *dense]
    letters = {name: chr(ord("A") + number) for number, name in enumerate(names)}
    ends = {name: np.cumsum(lengths) for name, lengths in rows.encoded.lengths.items()}
    for row, label in enumerate(rows.labels):
        parts = ["1" if label else "-1"]
        for name, tokens in rows.encoded.tokens.items():
            own = (
                tokens[ends[name][row] - rows.encoded.lengths[name][row] : ends[name][row]]
                if name in ends
                else tokens[row : row + 1]
            )
            parts.append(f"{letters[name]} " + " ".join(f"t{token:x}" for token in own.tolist()))
        parts += [f"{letters[name]} x:{rows.encoded.dense[row, k]:.6g}" for k, name in enumerate(dense)]
        yield " |".join(parts)


PEERS: dict[str, Callable[[Rows, Rows, Rows, tuple[str, ...], int], Floats]] = {
    "lightgbm": lightgbm,
    "catboost": catboost,
    "vowpal_wabbit": vowpal_wabbit,
}
"""Name of a peer to the function from train, valid, test, names of the numbers and seed to test's probabilities."""
