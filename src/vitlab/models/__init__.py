"""Networks: images ``(B, C, H, W)`` to logits ``(B, K)``; a file and a ``conf/model`` YAML each.

Every one has ``layers()``, in order, stem to head, each with the prefixes of its parameters' names: exactly
one prefix claims each parameter. And ``no_weight_decay()``, the names of parameters that weight decay
should leave alone although they are matrices (positions, class token).
"""
