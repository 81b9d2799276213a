"""What a reader asks to be done to a model's predictions, checked before anything is compiled."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edits:
    """What is done to the model's predictions before tokens are drawn.

    The order is guidance, forbidden ids, temperature, top-k, nucleus. Any of them makes the law
    another one than the model's.

    Attributes:
        temperature: divides the logits.
        top_k: keeps so many of the most probable ids; 0 keeps all.
        nucleus: keeps the smallest set of ids with this mass; 1 keeps all.
        guidance: scale of classifier-free guidance on what is given, against the same model with
            masks in place of it; 0 is none. Every model call then has twice the rows.
        forbid: ids that are never drawn.

    Raises:
        ValueError: if a number makes no sense.
    """

    temperature: float = 1.0
    top_k: int = 0
    nucleus: float = 1.0
    guidance: float = 0.0
    forbid: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected a number of ids, or 0 to keep all")
        if not 0 < self.nucleus <= 1:
            raise ValueError(
                f"nucleus={self.nucleus}: expected a number in (0, 1]; 1 keeps every token"
            )
        if not self.guidance >= 0:
            raise ValueError(f"guidance={self.guidance}: expected a scale, at least 0")
