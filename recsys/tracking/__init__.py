"""MLflow: tracking, the model registry and comparisons; no other package imports mlflow."""
