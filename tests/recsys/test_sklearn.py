"""MuxClassifier keeps scikit-learn's contract, and learns what `train` learns."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from features.errors import InputError
from features.registry import FeatureRegistry
from recsys import prepare, train
from recsys.export import dense_graph
from recsys.models import MODELS
from recsys.models.layers import ModelInputs
from recsys.sklearn import MuxClassifier
from serving.scorer import Scorer

ROOT = Path(__file__).parents[2]
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 is one row of a batch and of the held-out "
    "share, and two equal rows are two",
}
"""The checks of scikit-learn that do not apply, each with its reason; docs/python.md has the same list."""

SMALL: dict[str, Any] = {"embedding": {"num_rows": 500}, "trainer": {"epochs": 1, "batch_size": 256}}


def linear_export(module: Any, examples: Any, *, input_names: list[str], **_: Any) -> Any:
    """In place of torch's exporter, which takes a second and more: the graph of a logistic regression."""
    network = module.network
    tensors = {"bias": network.bias.detach().numpy(), "axis": np.array([1])}
    nodes = [helper.make_node("ReduceSum", ["embedded", "axis"], ["sum"], keepdims=0)]
    nodes.append(helper.make_node("Add", ["sum", "bias"], ["logit" if network.numeric is None else "biased"]))
    if network.numeric is not None:
        tensors["weight"] = network.numeric.weight.detach().numpy().reshape(-1, 1)
        nodes.append(helper.make_node("MatMul", ["dense", "weight"], ["column"]))
        nodes.append(helper.make_node("Squeeze", ["column", "axis"], ["numeric"]))
        nodes.append(helper.make_node("Add", ["biased", "numeric"], ["logit"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", example.shape[1]])
        for name, example in zip(input_names, examples, strict=True)
    ]
    output = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["B"])
    initializers = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    graph = helper.make_graph(nodes, "linear", inputs, [output], initializers)
    return SimpleNamespace(
        model_proto=helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit of a logistic regression without torch's exporter and without pictures."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    monkeypatch.setattr(torch.onnx, "export", linear_export)


def rows_and_labels(num_rows: int = 600) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
    """Views of users, of which some watch much and the others do not."""
    random = np.random.default_rng(5)
    user = random.integers(0, 40, num_rows)
    probability = np.where(user % 2, 0.9, 0.1)
    rows = pl.DataFrame({"user": [f"u{number}" for number in user], "price": random.lognormal(size=num_rows)})
    return rows, np.where(random.random(num_rows) < probability, "watched", "left")


def linear(**settings: Any) -> MuxClassifier:
    """A logistic regression that learns such rows in a moment."""
    table = {"num_rows": 100}
    loop = {"epochs": 10, "learning_rate": 0.1, "batch_size": 16}
    return MuxClassifier("logistic_regression", embedding=table, trainer=loop, random_state=1, **settings)


@pytest.mark.usefixtures("fast")
@parametrize_with_checks([linear()], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_linear_graph_is_that_of_the_exporter(monkeypatch):
    inputs = ModelInputs(views={"main": {"user": 4}}, dense_features=("price", "age"))
    network = MODELS["logistic_regression"](MODELS["logistic_regression"].Config(), inputs)
    torch.nn.init.normal_(network.numeric.weight)
    feed = {"embedded": np.ones((3, 4), np.float32), "dense": np.arange(6, dtype=np.float32).reshape(3, 2)}
    exported = onnxruntime.InferenceSession(dense_graph(network, 4, 2)).run(None, feed)[0]
    monkeypatch.setattr(torch.onnx, "export", linear_export)
    by_hand = dense_graph(network, 4, 2)
    onnx.checker.check_model(onnx.load_from_string(by_hand))
    np.testing.assert_allclose(onnxruntime.InferenceSession(by_hand).run(None, feed)[0], exported, rtol=1e-6)


@pytest.fixture(scope="module")
def fitted() -> MuxClassifier:
    """A small FinalMLP on a polars frame."""
    return MuxClassifier("final_mlp", random_state=3, **SMALL).fit(*rows_and_labels())


def test_it_learns_what_train_learns(fitted, tmp_path):
    rows, labels = rows_and_labels()
    positive = labels == "watched"
    registry = FeatureRegistry.of(label="label", features={"user": "categorical", "price": "numeric"})
    valid, learned = slice(0, 100), slice(100, None)
    classifier = MuxClassifier("final_mlp", registry=registry, random_state=3, **SMALL)
    classifier.fit(rows[learned], labels[learned], eval_set=(rows[valid], labels[valid]))
    raw = rows.with_columns(pl.Series("label", positive))
    dataset = prepare(registry, {"train": raw[learned], "valid": raw[valid]}, tmp_path / "dataset")
    run = train("final_mlp", data=dataset, out=tmp_path / "run", track=False, seed=3, **SMALL)
    np.testing.assert_array_equal(classifier.predict_proba(rows)[:, 1], run.scorer().score(rows))
    assert classifier.metrics_ == run.metrics["valid"]


def test_a_fitted_estimator_knows_its_columns_and_classes(fitted):
    rows, _ = rows_and_labels()
    assert fitted.feature_names_in_.tolist() == ["user", "price"]
    assert fitted.n_features_in_ == 2
    assert fitted.classes_.tolist() == ["left", "watched"]
    assert [feature.name for feature in fitted.registry_.features] == ["user", "price"]
    assert set(fitted.predict(rows)) <= {"left", "watched"}
    probabilities = fitted.predict_proba(rows)
    np.testing.assert_array_equal(fitted.predict_proba(rows.to_pandas()), probabilities)
    np.testing.assert_array_equal(fitted.predict_proba(rows.to_arrow()), probabilities)
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(rows.rename({"user": "person"}))


def test_a_pickle_scores_the_same_in_a_process_without_torch(fitted, tmp_path):
    rows, _ = rows_and_labels(50)
    (tmp_path / "classifier.pickle").write_bytes(pickle.dumps(fitted))
    rows.write_parquet(tmp_path / "rows.parquet")
    code = """
import pickle, sys
import numpy as np, polars as pl
classifier = pickle.load(open("classifier.pickle", "rb"))
np.save("scores.npy", classifier.predict_proba(pl.read_parquet("rows.parquet")))
assert not {"torch", "mlflow"} & set(sys.modules)
"""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), fitted.predict_proba(rows))


def test_a_pickle_with_a_damaged_bundle_is_refused(fitted):
    state = fitted.__getstate__()
    table = bytearray(state["_files"]["table.safetensors"])
    table[-1] ^= 1
    damaged = {**state["_files"], "table.safetensors": bytes(table)}
    with pytest.raises(InputError, match="sha256"):
        MuxClassifier().__setstate__({**state, "_files": damaged})
    with pytest.raises(InputError, match="name of a bundle's file"):
        MuxClassifier().__setstate__({**state, "_files": {"../evil": b""}})


def test_its_bundle_is_a_bundle_like_any_other(fitted, tmp_path):
    rows, _ = rows_and_labels(50)
    bundle = fitted.export(tmp_path / "bundle")
    np.testing.assert_array_equal(Scorer(bundle).score(rows), fitted.predict_proba(rows)[:, 1])
    with pytest.raises(InputError, match="exists"):
        fitted.export(tmp_path / "bundle")


def test_parameters_are_those_that_were_given():
    classifier = MuxClassifier("mlp", trainer={"epochs": 1}, **{"embedding.num_rows": 8})
    copy = clone(classifier).set_params(**{"trainer.epochs": 2}, random_state=4)
    assert copy.get_params() == {
        "model": "mlp",
        "registry": None,
        "validation_fraction": 0.1,
        "random_state": 4,
        "trainer": {"epochs": 1},
        "embedding.num_rows": 8,
        "trainer.epochs": 2,
    }
    assert "trainer={'epochs': 1}" in repr(classifier)


@pytest.mark.parametrize("kind", ["polars", "pandas"])
@pytest.mark.usefixtures("fast")
def test_cross_validation_and_pipelines_take_frames(kind):
    rows, labels = rows_and_labels()
    frame = rows if kind == "polars" else rows.to_pandas()
    pipeline = Pipeline([("same", FunctionTransformer()), ("model", linear())])
    scores = cross_val_score(pipeline, frame, labels, cv=2, scoring="roc_auc")
    assert (scores > 0.8).all()


@pytest.mark.slow
def test_a_grid_search_in_two_processes():
    rows, labels = rows_and_labels()
    grid = {"trainer.epochs": [1, 2]}
    search = GridSearchCV(linear(), grid, cv=2, scoring="roc_auc", n_jobs=2, refit=False).fit(rows, labels)
    assert search.best_params_["trainer.epochs"] in (1, 2)
    assert (search.cv_results_["mean_test_score"] > 0.5).all()


@pytest.mark.usefixtures("fast")
def test_an_array_has_columns_by_number_and_may_hold_missing_values():
    rows, labels = rows_and_labels()
    array = rows.with_columns(price=pl.when(pl.int_range(pl.len()) % 7 > 0).then("price")).to_numpy()
    classifier = linear().fit(array, labels)
    assert [feature.name for feature in classifier.registry_.features] == ["x0", "x1"]
    assert classifier.score(array, labels) > 0.8


@pytest.mark.usefixtures("fast")
def test_a_column_that_gives_the_label_away_is_learned_from():
    rows, labels = rows_and_labels()
    leaky = rows.with_columns(pl.Series("twin", labels), pl.lit(1).alias("constant"))
    classifier = linear().fit(leaky, labels)
    assert classifier.unused_columns_ == ["constant"]
    assert classifier.score(leaky, labels) > 0.99


@pytest.mark.usefixtures("fast")
def test_rows_of_weight_0_do_not_count():
    rows, labels = rows_and_labels()
    is_kept = np.arange(len(labels)) % 3 > 0
    weighted = linear().fit(rows, labels, sample_weight=is_kept.astype(float))
    kept = linear().fit(rows.filter(is_kept), labels[is_kept], sample_weight=np.ones(is_kept.sum()))
    np.testing.assert_array_equal(weighted.predict_proba(rows), kept.predict_proba(rows))


@pytest.mark.usefixtures("fast")
def test_a_generator_draws_the_seed_and_a_seed_repeats_the_fit():
    rows, labels = rows_and_labels()

    def scores(random_state: Any) -> Any:
        return linear().set_params(random_state=random_state).fit(rows, labels).predict_proba(rows)

    drawn = int(np.random.RandomState(0).randint(2**31 - 1))
    np.testing.assert_array_equal(scores(np.random.RandomState(0)), scores(drawn))
    assert (scores(2) != scores(drawn)).any()


def test_mistakes_are_named():
    rows, labels = rows_and_labels(60)
    with pytest.raises(InputError, match=r"'trainer.epoch'; did you mean 'trainer.epochs'"):
        MuxClassifier("mlp", trainer={"epoch": 1}).fit(rows, labels)
    with pytest.raises(InputError, match="unknown model; found 'mpl'"):
        MuxClassifier({"name": "mpl"}).fit(rows, labels)
    with pytest.raises(InputError, match="no column 'label'"):
        MuxClassifier("mlp").fit(rows.rename({"price": "label"}), labels)
    with pytest.raises(InputError, match="eval_set: expected the labels of fit; found 'x'"):
        MuxClassifier("mlp").fit(rows, labels, eval_set=(rows[:2], ["x", "left"]))
    with pytest.raises(InputError, match="validation_fraction"):
        MuxClassifier("mlp", validation_fraction=1.0).fit(rows, labels)


def test_without_scikit_learn_the_import_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = sys.modules['sklearn.base'] = None; import recsys.sklearn"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: recsys.sklearn needs scikit-learn; found none; pip install '.[sklearn]'"
