"""Networks: images ``(B, C, H, W)`` to logits ``(B, K)``; a file and a ``conf/model`` YAML each.

What every model offers beside ``forward``, and ``tests/models/test_model_contract.py`` checks:

``layers() -> list[tuple[str, list[str]]]``
    The layers in order, stem to head: a name and the prefixes of the parameter names that belong to
    it. Every parameter is claimed by exactly one prefix; a prefix may claim nothing (fixed
    positions have no parameters).
``no_weight_decay() -> set[str]`` Names of parameters that weight decay should leave alone although
    they are matrices (positions, class token).
``has_teacher_head: bool`` and ``forward(images, per_head=True)``, of a model with a second head for a
    teacher alone: see `vitlab.models.distilled`.
"""
