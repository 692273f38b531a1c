"""Images per second, against other stacks: the training step, the input, and both together.

`checks` is torch-free and refuses what cannot be compared; `measure.measure` does the rest. A contender
is something that takes steps; `timing` lets several take them in turn.
"""
