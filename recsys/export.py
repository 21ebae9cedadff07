"""Trained ranker to bundle: batch norm folded, the network as ONNX, the table's rows, golden rows, the profile.

B examples, M table rows, w row width, W embedding columns, N float columns.
"""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn

from features.dataset_info import DatasetInfo
from features.encode import encode
from features.errors import InputError
from features.golden import golden_frame
from features.registry import FeatureRegistry
from recsys.batch import evaluating
from recsys.dataset import batch_of
from recsys.embedding import UnifiedEmbedding
from recsys.layers import fold_batch_norm
from recsys.ranker import Ranker
from serving.bundle import Bundle, PriorCorrection, TableDtype, dequantize, quantize_rows, write_bundle


def export_bundle(
    ranker: Ranker,
    registry: FeatureRegistry,
    out: str | Path,
    *,
    model: str,
    table_dtype: TableDtype = "fp32",
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    info: DatasetInfo | None = None,
    trained_rows: npt.NDArray[np.bool_] | None = None,
    run_id: str | None = None,
    negative_rate: float = 1.0,
    overwrite: bool = False,
) -> Bundle:
    """Write what `serving` needs to reproduce the ranker's probabilities on raw rows, and read it back checked.

    `trained_rows` [M] flags the rows that a training example read; `negative_rate` is the share of the negatives that
    the training data kept. Raises `InputError` when `out` is taken or cannot be written, and for an impossible rate.
    """
    correction = correction_of(negative_rate)
    golden = golden_frame(registry)
    served = _with_served_table(ranker, table_dtype)
    exact = probabilities(served, registry, golden, exact=True, correction=correction)
    rounding = float(np.abs(probabilities(served, registry, golden, correction=correction) - exact).max())
    return write_bundle(
        out,
        model=model,
        num_parameters=ranker.num_parameters,
        registry=registry,
        layout=ranker.embedding.layout,
        table=ranker.embedding.table.detach().cpu().numpy(),
        dense_onnx=dense_graph(ranker.network, ranker.embedding.layout.embedded_width, len(registry.dense_features)),
        golden=golden.with_columns(pl.Series("probability", exact)),
        profile={**profile_of(info), "float32_rounding": rounding},
        table_dtype=table_dtype,
        trained_rows=trained_rows,
        vocabulary=ranker.embedding.vocabulary,
        prior_correction=correction,
        metrics=metrics,
        run_id=run_id,
        overwrite=overwrite,
    )


def _with_served_table(ranker: Ranker, table_dtype: TableDtype) -> Ranker:
    """The ranker as it will be served: its table rounded to the bundle's type, so that golden rows hold for that."""
    if table_dtype == "fp32":
        return ranker
    layout = ranker.embedding.layout
    served = copy.copy(ranker)  # the network is shared; only the table becomes another
    served._modules = {**ranker._modules, "embedding": UnifiedEmbedding(layout, vocabulary=ranker.embedding.vocabulary)}
    stored = quantize_rows(ranker.embedding.table.detach().cpu().numpy(), table_dtype)
    served.embedding.table.data.copy_(torch.from_numpy(dequantize(*stored)))
    return served


def correction_of(negative_rate: float) -> PriorCorrection | None:
    """What undoes the down-sampling of negatives; None where all were kept. Raises `InputError` outside (0, 1].

    >>> correction_of(0.1), correction_of(1.0)
    (PriorCorrection(negative_rate=0.1), None)
    """
    if not 0 < negative_rate <= 1:
        remedy = "give the share of the negatives that the training data kept"
        raise InputError("negative_rate must be above 0 and at most 1", found=str(negative_rate), remedy=remedy)
    return PriorCorrection(negative_rate=negative_rate) if negative_rate < 1 else None


def probabilities(
    ranker: Ranker,
    registry: FeatureRegistry,
    raw: pl.DataFrame,
    *,
    exact: bool = False,
    correction: PriorCorrection | None = None,
) -> npt.NDArray[np.float64]:
    """The trainer's own probabilities [B] of raw rows; what golden rows and the parity check compare with.

    `exact` takes the network in float64: the distance between the two is what float32 rounds away, for the trainer as
    for any other implementation. `correction` is that of the bundle which they are compared with.
    """
    batch = batch_of(encode(raw, registry), registry)
    with evaluating(ranker):
        embedded, dense = ranker.embedding(batch.sparse_features), batch.dense_features
        if exact:
            logits = copy.deepcopy(ranker.network).double()(embedded.double(), dense.double())
        else:
            logits = ranker.network(embedded, dense).double()
        uncorrected = torch.sigmoid(logits).cpu().numpy()
    return uncorrected if correction is None else correction.apply(uncorrected)


def dense_graph(network: nn.Module, embedded_width: int, num_dense: int) -> bytes:
    """The network as ONNX: embedded [B, W] and, where N > 0, dense [B, N] to logit [B].

    >>> from recsys.layers import ModelInputs
    >>> from recsys.models import MODELS
    >>> inputs = ModelInputs(views={"main": {"user": 4}}, dense_features=(), dense_width=4)
    >>> network = MODELS["logistic_regression"](MODELS["logistic_regression"].Config(), inputs)
    >>> len(dense_graph(network, 4, 0)) > 0
    True
    """
    folded = fold_batch_norm(network).cpu().eval()
    module = folded if num_dense else _TokensOnly(folded)
    names = ["embedded", "dense"][: 2 if num_dense else 1]
    examples = (torch.zeros(2, embedded_width), torch.zeros(2, num_dense))[: len(names)]
    shapes = ({0: torch.export.Dim("batch")}, {0: torch.export.Dim.AUTO})[: len(names)]
    torch_logger = logging.getLogger("torch.onnx")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations; the result is checked by the bundle
            program = torch.onnx.export(
                module,
                examples,
                input_names=names,
                output_names=["logit"],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    finally:
        torch_logger.setLevel(level)
    assert program is not None
    return _stripped(program.model_proto).SerializeToString()


def _stripped(model: Any) -> Any:
    """Without the exporter's notes, which hold source lines and paths of the machine that trained the model."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


class _TokensOnly(nn.Module):
    """A network without its float input: an ONNX graph has no input of width 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """[B, W] to logits [B]."""
        return self.network(embedded, embedded[:, :0])


def profile_of(info: DatasetInfo | None) -> dict[str, Any]:
    """What the bundle keeps of the training data's distribution: rows, label rate, missing rates."""
    if info is None:
        return {}
    train = info.splits["train"]
    return {
        "dataset": info.name,
        "dataset_digest": info.digest,
        "rows": train.rows,
        "label_rate": train.label_rate,
        "missing_rates": train.missing_rates,
    }
