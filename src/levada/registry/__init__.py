"""Training, the gate and the model registry (MLflow)."""
