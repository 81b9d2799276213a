"""The README.md that goes with a saved model."""

import dataclasses
import math
from typing import Any

from mdm_jax.models.convert.family import Family


def model_card(
    family: Family, config: Any, *, trained_as: str, tokenizer: str, mask_id: int | None
) -> str:
    """Returns the model card, Markdown with the front matter that Hugging Face reads.

    Args:
        family: Whose layout the files have.
        config: The configuration.
        trained_as: Name of the family that the model was trained as.
        tokenizer: Name or file of the tokenizer; "" if unknown.
        mask_id: Id of the mask, or None.

    Examples:
        >>> from mdm_jax.models.configs import DiTConfig
        >>> from mdm_jax.models.convert.families import FAMILIES
        >>> config = DiTConfig.from_size("small", 50258)
        >>> card = model_card(
        ...     FAMILIES["dit"], config, trained_as="mdlm", tokenizer="gpt2", mask_id=50257
        ... )
        >>> print(card.splitlines()[7])
        A mdlm language model with 169,627,218 parameters.
    """
    count = sum(math.prod(leaf.stacked) for leaf in family.leaves(config))
    fields = dataclasses.asdict(config).items()
    rows = "\n".join(f"| {name} | {value} |" for name, value in fields)
    extra = "" if trained_as == family.name else f', family="{trained_as}"'
    return f"""---
library_name: mdm_jax
tags: [discrete-diffusion, {trained_as}]
---

# {trained_as}, {count / 1e6:,.1f}M parameters

A {trained_as} language model with {count:,} parameters.

| | |
|---|---|
| family | {trained_as} (tensors as published for {family.name}) |
| tokenizer | {tokenizer or "not recorded"} |
| mask id | {"none" if mask_id is None else mask_id} |
{rows}

```python
import mdm_jax.models

model, params = mdm_jax.models.load("this/folder"{extra})
logits = model.apply({{"params": params}}, tokens, sigma)
```

`tokens` is int32[B, L]; `sigma`, float32[B], is -log alpha(t), and None for a model that takes no
time. The weights are in `model.safetensors`, under their published names.
"""
