"""Converts a published checkpoint to Orbax, or any model to safetensors under published names.

    python launch/convert.py --from=mdlm-owt --to=runs/mdlm-owt
    python launch/convert.py --from=last.ckpt --to=model --format=safetensors --family=duo
    python launch/convert.py --from=runs/quickstart --to=model --format=safetensors

What is written samples with launch/sample.py --checkpoint=<to>. Tensors are read and written one
by one: memory stays below twice the model's size in float32, and PyTorch is not needed. Nothing is
downloaded: fetch the files from the pages below. Licences are those of the code; where "see page"
stands, the page of the weights says it.

  family   source page                                      licence     number to reproduce
  mdlm     huggingface.co/kuleshov-group/mdlm-owt           Apache-2.0  OpenWebText validation
           (and mdlm.ckpt, of the authors' Drive)                       perplexity 22.98 to 23.21
  ar       ar.ckpt, of the same Drive                       Apache-2.0  OpenWebText 17.54
  sedd     sedd.ckpt, of the same Drive                     Apache-2.0  OpenWebText 24.10
  bd3lm    huggingface.co/kuleshov-group/bd3lm-owt-block_   Apache-2.0  OpenWebText, blocks of 16,
           size{4,8,16}, {mdlm,ar,sedd}-noeos-owt                       8, 4: 22.27, 21.68, 20.73
  duo      huggingface.co/s-sahoo/duo, duo-distilled        see page    OpenWebText 25.2
  esolm    huggingface.co/sahoo-diffusion/Eso-LM-B-         see page    OpenWebText, alpha_0 of 1,
           alpha-1, Eso-LM-B-alpha-0_25                                 0.25: 30.06, 24.71
  smdm     huggingface.co/nieshen/SMDM, mdm_safetensors     see page    mdm-170M-100e18: SlimPajama
                                                                        validation 18.02
  smdm_ar  the same page, ar_safetensors                    see page    ar-170M-6e18: 17.34
  gpt2     huggingface.co/openai-community/gpt2             see page    (a judge of samples)

Perplexities, which are upper bounds except for ar, are per token of the model's own tokenizer:
GPT-2's, and Llama 2's for SMDM. Those of bd3lm and SMDM are quoted at second hand, and none has
been reproduced with this library yet. The scaling study publishes its configurations; its
repository has no checkpoint, and one that is trained with it loads as "dit". Zero-shot perplexities
of the MDLM paper are not reproduced by its own code either: its authors point to another rule of
packing.
"""

from absl import app, flags, logging

_FROM = flags.DEFINE_string(
    "from", None, "A published file or folder, an Orbax folder of this, or a run of ours."
)
_TO = flags.DEFINE_string("to", None, "Folder to write, or a file ending in .safetensors.")
_FAMILY = flags.DEFINE_string(
    "family", None, "Recognized if not given: dit, smdm, smdm_ar, gpt2, or how a DiT was trained."
)
_FORMAT = flags.DEFINE_enum("format", "orbax", ["orbax", "safetensors"], "What to write.")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Moving averages, or the parameters, where a file has both."
)
_HEADS = flags.DEFINE_integer("heads", None, "Attention heads, where the file does not show them.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "To be recorded: what sample.py should use.")
_MASK_ID = flags.DEFINE_integer("mask_id", None, "To be recorded: the mask.")


def main(argv: list[str]) -> None:
    """Runs `mdm_jax.train.converted.convert`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --name=value")
    logging.set_verbosity(logging.WARNING)
    from mdm_jax.train.converted import convert

    heads = {} if _HEADS.value is None else {"heads": _HEADS.value}
    print(
        convert(
            _FROM.value,
            _TO.value,
            format=_FORMAT.value,
            family=_FAMILY.value,
            weights=_WEIGHTS.value,
            tokenizer=_TOKENIZER.value,
            mask_id=_MASK_ID.value,
            **heads,
        )
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["from", "to"])
    app.run(main)
