"""Exports a trained ranker as a bundle: the network as ONNX with batch norm folded, table rows, golden rows, profile.

B examples, M table rows, w row width, W embedding columns, N float columns.
"""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn

from features.dataset.info import DatasetInfo
from features.encode import encode
from features.errors import InputError
from features.golden import golden_frame
from features.registry import FeatureRegistry
from recsys.batch import evaluating
from recsys.dataset import batch_of
from recsys.embedding.table import UnifiedEmbedding
from recsys.models.layers import fold_batch_norm
from recsys.ranker import Ranker
from serving.bundle.bundle import Bundle, write_bundle
from serving.bundle.manifest import PriorCorrection
from serving.bundle.profile import DISTRIBUTIONS, Distributions
from serving.bundle.quantize import TableDtype
from serving.bundle.table import Coder, learn_coder, quantized_rows


class QuantizedRanker(NamedTuple):
    """A ranker with its table rounded to the stored type, as it will be served, and the coder of its rows."""

    ranker: Ranker
    coder: Coder | None
    """None for table types that store no codes."""


def export_bundle(
    ranker: Ranker,
    registry: FeatureRegistry,
    out: str | Path,
    *,
    model: str,
    table_dtype: TableDtype = "fp32",
    quantized: QuantizedRanker | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    info: DatasetInfo | None = None,
    distributions: Distributions | None = None,
    trained_rows: npt.NDArray[np.bool_] | None = None,
    run_id: str | None = None,
    negative_rate: float = 1.0,
    compression: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write the bundle with which `serving` reproduces the ranker's probabilities on raw rows; returns it, verified.

    Only the kept cells of a masked table are written. `quantized` is the `quantized_copy` of this ranker and type, made
    here if not given. `trained_rows` [M] flags the rows that a training example read; `negative_rate` is the share of
    the negatives that the training data kept; `compression` is copied to the manifest. Raises `InputError` if `out`
    exists or cannot be written, and for an impossible rate.
    """
    correction = correction_of(negative_rate)
    golden = golden_frame(registry)
    served, coder = quantized or quantized_copy(ranker, table_dtype)
    embedding = ranker.embedding
    exact = probabilities(served, registry, golden, exact=True, correction=correction)
    rounding = float(np.abs(probabilities(served, registry, golden, correction=correction) - exact).max())
    return write_bundle(
        out,
        model=model,
        num_parameters=ranker.num_parameters,
        registry=registry,
        layout=embedding.layout,
        table=embedding.table.detach().cpu().numpy(),
        dense_onnx=dense_graph(
            ranker.network,
            embedding.layout.embedded_width,
            len(ranker.network.inputs.dense_features),
            _kept_columns(embedding),
        ),
        golden=golden.with_columns(pl.Series("probability", exact)),
        profile={**profile_of(info, distributions, correction), "float32_rounding": rounding},
        table_dtype=table_dtype,
        trained_rows=trained_rows,
        vocabulary=embedding.vocabulary,
        target_statistics=None if ranker.statistics is None else ranker.statistics.totals,
        prior_correction=correction,
        metrics=metrics,
        run_id=run_id,
        row_widths=_row_widths(embedding),
        coder=coder,
        compression=compression,
        overwrite=overwrite,
    )


def quantized_copy(ranker: Ranker, table_dtype: TableDtype) -> QuantizedRanker:
    """The ranker with its table rounded to the stored type, from which golden rows and metrics are computed."""
    if table_dtype == "fp32":
        return QuantizedRanker(ranker, None)
    embedding = ranker.embedding
    copied = copy.copy(ranker)  # shares the network; only the table differs
    rounded = UnifiedEmbedding(embedding.layout, vocabulary=embedding.vocabulary)
    copied._modules = {**ranker._modules, "embedding": rounded}
    table, widths = embedding.table.detach().cpu().numpy(), _row_widths(embedding)
    coder = learn_coder(table, table_dtype, widths)
    rounded.table.data.copy_(torch.from_numpy(quantized_rows(table, table_dtype, widths, coder)))
    rounded.gate = embedding.gate
    return QuantizedRanker(copied, coder)


def _row_widths(embedding: UnifiedEmbedding) -> npt.NDArray[np.int64] | None:
    return None if embedding.mask is None else embedding.mask.row_widths.cpu().numpy()


def _kept_columns(embedding: UnifiedEmbedding) -> torch.Tensor | None:
    """1 or 0 for each column [W]; None if every slot reads whole rows."""
    mask = embedding.mask
    if mask is None or bool((mask.slot_widths == embedding.layout.width).all()):
        return None
    return mask.columns(embedding.layout.width).cpu()


def correction_of(negative_rate: float) -> PriorCorrection | None:
    """The correction for down-sampled negatives; None if all were kept. Raises `InputError` outside (0, 1].

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
    """Probabilities [B] of raw rows by the trained model itself, the reference for golden rows and the parity check.

    `exact` computes the network in float64: the distance to float32 is the rounding error of any implementation.
    `correction` is that of the bundle that is compared.
    """
    batch = batch_of(encode(raw, registry), registry)
    with evaluating(ranker):
        embedded, dense = ranker.embedding(batch.sparse_features), ranker.dense(batch)
        if exact:
            logits = copy.deepcopy(ranker.network).double()(embedded.double(), dense.double())
        else:
            logits = ranker.network(embedded, dense).double()
        uncorrected = torch.sigmoid(logits).cpu().numpy()
    return uncorrected if correction is None else correction.apply(uncorrected)


def dense_graph(
    network: nn.Module, embedded_width: int, num_dense: int, kept_columns: torch.Tensor | None = None
) -> bytes:
    """The network as ONNX: embedded [B, W] and, where N > 0, dense [B, N] to logit [B].

    `kept_columns` [W], 1 or 0, masks `embedded` first, where slots read only part of a row.

    >>> from recsys.models.layers import ModelInputs
    >>> from recsys.models import MODELS
    >>> inputs = ModelInputs(views={"main": {"user": 4}}, dense_features=(), dense_width=4)
    >>> network = MODELS["logistic_regression"](MODELS["logistic_regression"].Config(), inputs)
    >>> len(dense_graph(network, 4, 0)) > 0
    True
    """
    folded = fold_batch_norm(network).cpu().eval()
    module = _MaskedNetwork(folded, kept_columns, has_dense=num_dense > 0)
    names = ["embedded", "dense"][: 2 if num_dense else 1]
    examples = (torch.zeros(2, embedded_width), torch.zeros(2, num_dense))[: len(names)]
    shapes = ({0: torch.export.Dim("batch")}, {0: torch.export.Dim.AUTO})[: len(names)]
    torch_logger = logging.getLogger("torch.onnx")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations; the bundle verifies the result
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
    """The model without the exporter's notes, which hold source lines and paths of the machine that trained it."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


class _MaskedNetwork(nn.Module):
    """A network with its mask of columns; without float input where N is 0, as ONNX has no input of width 0."""

    def __init__(self, network: nn.Module, kept_columns: torch.Tensor | None, *, has_dense: bool) -> None:
        super().__init__()
        self.network, self.has_dense = network, has_dense
        self.kept_columns: torch.Tensor | None
        self.register_buffer("kept_columns", kept_columns)

    def forward(self, embedded: torch.Tensor, dense: torch.Tensor | None = None) -> torch.Tensor:
        """[B, W] and [B, N] to logits [B]."""
        if self.kept_columns is not None:
            embedded = embedded * self.kept_columns
        return self.network(embedded, embedded[:, :0] if dense is None else dense)


def profile_of(
    info: DatasetInfo | None, distributions: Distributions | None = None, correction: PriorCorrection | None = None
) -> dict[str, Any]:
    """The training data in a bundle: rows, label rate, missing rates, and distributions of features and scores."""
    known: dict[str, Any] = {}
    if distributions is not None:
        known[DISTRIBUTIONS] = distributions.corrected(correction).model_dump(mode="json")
    if info is None:
        return known
    train = info.splits["train"]
    return known | {
        "dataset": info.name,
        "dataset_digest": info.digest,
        "rows": train.rows,
        "label_rate": train.label_rate,
        "missing_rates": train.missing_rates,
    }
