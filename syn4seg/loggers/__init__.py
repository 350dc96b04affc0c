"""Where the numbers of a run are shown while it goes on: TensorBoard, MLflow, Weights & Biases."""
