"""TensorBoard, with an HParams tab that compares runs."""
