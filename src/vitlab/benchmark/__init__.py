"""Images per second: the training step, the input, and both together, against a plain PyTorch loop."""
