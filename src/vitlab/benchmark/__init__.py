"""Images per second: the training step, the input, and both together, against a plain PyTorch loop.

`checks` refuses what cannot be measured, `baselines` is what takes steps, `timing` lets several take them in
turn, `measure` does it layer by layer, and `report` shows it.
"""
