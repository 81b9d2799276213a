"""The mask id of a masked model, and what a tokenizer says of that id."""

from mdm_jax.data.tokenizers import Tokenizer

_MASKS = ("[MASK]", "<mask>", "<|mask|>")


def mask_id_for(
    tokenizer: Tokenizer, num_ids: int, mask_id: int | None = None, *, shared: str = ""
) -> int:
    """Returns the mask id of a model, once it is known to be no token of the text.

    A mask that is also a token corrupts silently: the token cannot be told from noise, and is
    never predicted. Yet published models do have such ids. With GPT-2's vocabulary the mask is
    50257, one past all tokens; the same tokenizer with a padding token added has that very id
    for ``[PAD]``. That is harmless where windows are full and no padding is in the data, as here:
    then say so with `shared="[PAD]"`.

    Args:
        tokenizer: Of the data.
        num_ids: Ids the model embeds (`config.num_ids`).
        mask_id: The model's mask; by default its last id, as in most published models. BERT's
            vocabulary has its own mask inside (103), as has the scaling study's (3).
        shared: The token that may have the mask's id, because the data never hold it.

    Raises:
        ValueError: If the model embeds fewer ids than the tokenizer has, or the mask is none of
            them, or is a token other than a mask token or `shared`; the token is named. The token
            that ends documents is in the data, and cannot be shared.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer
        >>> mask_id_for(ByteTokenizer(), 257)
        256
        >>> mask_id_for(ByteTokenizer(), 257, mask_id=97)
        Traceback (most recent call last):
            ...
        ValueError: the mask id 97 is also the tokenizer's token 'a': ...
    """
    if num_ids < tokenizer.vocab_size:
        raise ValueError(
            f"the model embeds {num_ids} ids, fewer than the tokenizer's {tokenizer.vocab_size}: "
            "this is not the tokenizer it was trained with"
        )
    if mask_id is None:
        mask_id = num_ids - 1
    if not 0 <= mask_id < num_ids:
        raise ValueError(f"the mask id {mask_id} is none of the model's {num_ids} ids")
    if mask_id >= tokenizer.vocab_size:
        return mask_id
    special = {number: name for name, number in tokenizer.special_ids.items()}
    token = special.get(mask_id) or tokenizer.decode([mask_id])
    if mask_id != tokenizer.eos_id and token in (*_MASKS, shared):
        return mask_id
    if mask_id == tokenizer.eos_id:
        fix = "it ends documents, so the data hold it: give the model another mask_id"
    elif mask_id in special:
        fix = (
            f"give another mask_id or a tokenizer without it, or shared={token!r} if the data "
            "never hold it, as with padding where windows are full"
        )
    else:
        fix = "give a mask_id that no text yields, such as one past the vocabulary"
    raise ValueError(f"the mask id {mask_id} is also the tokenizer's token {token!r}: {fix}")
