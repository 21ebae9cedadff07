"""What a run says of itself: figures, tables and the model card, as files that MLflow shows too."""
