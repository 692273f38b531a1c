"""Images per second: the training step, the input, both together, against a plain loop; and inference."""
