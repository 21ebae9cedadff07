"""Experiments: resolved, written, read back, overridden; unknown keys name the closest one."""

import pytest
import yaml

from experiments.runs import RUNS
from features.errors import InputError
from recsys.config import Experiment, read_experiment, validated, with_overrides
from recsys.models import MODELS
from recsys.sweep.search_space import Choice, check_space


@pytest.mark.parametrize("name", list(RUNS))
def test_every_named_run_is_constructed_and_survives_yaml(name, tmp_path):
    experiment = RUNS[name]()
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment.to_yaml())
    assert read_experiment(path) == experiment


def test_every_model_has_a_run_of_its_name():
    assert set(MODELS) <= set(RUNS)
    assert all(RUNS[name]().model.name == name for name in MODELS)


def test_the_model_is_written_with_all_its_settings():
    model = Experiment(name="x", model={"name": "mlp", "hidden": [8]}).model
    assert model.hidden == (8,)
    assert list(model.model_dump()) == ["name", *MODELS["mlp"].Config.model_fields]


def test_mlflow_has_few_params_of_a_method_of_compression():
    compression = {"method": "mixed_dimensions", "target_bytes": 100, "settings": {"temperature": 0.25}}
    document = {"name": "small", "model": {"name": "mlp"}, "compression": compression}
    params = Experiment.model_validate(document).params()
    assert params["compression"]["settings"] == '{"temperature": 0.25}'
    assert params["compression"]["method"] == "mixed_dimensions"
    assert params | {"compression": None} == Experiment.model_validate(document).model_dump(mode="json") | {
        "compression": None
    }
    assert "compression" not in Experiment(name="small", model={"name": "mlp"}).params()


def test_overrides_change_what_they_name_and_nothing_else():
    before = RUNS["final_mlp"]()
    after = with_overrides(before, ["seed=7", "embedding.num_rows=99", "model.mlp1_hidden=[20, 10]"])
    assert (after.seed, after.embedding.num_rows, after.model.mlp1_hidden) == (7, 99, (20, 10))
    assert after.trainer == before.trainer
    assert before.seed == RUNS["final_mlp"]().seed


def test_target_statistics_are_written_only_where_they_are_on():
    off = RUNS["final_mlp"]()
    on = with_overrides(off, ["target_statistics=true"])
    assert (off.target_statistics, on.target_statistics) == (False, True)
    assert ("target_statistics" in off.params(), "target_statistics" in on.params()) == (False, True)
    assert on.to_yaml() == off.to_yaml() + "target_statistics: true\n"
    assert validated(yaml.safe_load(on.to_yaml()), "x") == on
    assert with_overrides(on, ["target_statistics=false"]) == off
    check_space({"target_statistics": Choice(values=(True, False))}, off)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target_statistic=true", "did you mean 'target_statistics'"),
        ("target_statistics=5", "valid boolean"),
        ("embeding.num_rows=5", "did you mean 'embedding.num_rows'"),
        ("trainer.epoch=5", "did you mean 'trainer.epochs'"),
        ("model.num_head=5", "did you mean 'model.num_heads'"),
        ("seed", "key=value"),
        ("trainer.epochs=many", "trainer.epochs"),
        ("trainer.epochs=0", "greater than or equal to 1"),
        ("embedding.num_rows=0", "embedding.num_rows"),
        ("embedding.num_rows=3000000000", "embedding.num_rows"),
        ("model.mlp1_hidden=[]", "mlp1_hidden"),
        ("model.name=nope", "use one of final_mlp"),
        ("embedding.optimizer=sgd", "adam"),
        ("seed=[1", "YAML"),
    ],
)
def test_a_wrong_override_is_one_line_that_helps(override, message):
    with pytest.raises(InputError) as error:
        with_overrides(RUNS["final_mlp"](), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("text", "expected a mapping"),
        ({"name": "x", "model": {"name": "mlp"}, "trainr": {}}, "did you mean 'trainer'"),
        ({"name": "x"}, "model"),
        ({"name": "x", "model": {"name": "mlp"}, "trainer": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"name": "x", "model": {"name": "mlp"}, "embedding": {"widht": 1}}, "did you mean 'width'"),
    ],
)
def test_a_wrong_document_is_one_line_that_helps(document, message):
    with pytest.raises(InputError) as error:
        validated(document, "file.yaml")
    assert message in str(error.value)


def test_a_file_that_is_not_yaml(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text("a: [1")
    with pytest.raises(InputError, match="expected YAML"):
        read_experiment(path)
    with pytest.raises(InputError, match="expected an experiment file"):
        read_experiment(tmp_path / "absent.yaml")
