"""The numbers of a run in TensorBoard, MLflow and Weights & Biases while it goes on."""
