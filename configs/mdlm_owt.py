r"""MDLM on OpenWebText, with the published hyper-parameters (170M parameters, 524B tokens).

    python launch/train.py --config=configs/mdlm_owt.py --workdir=runs/mdlm_owt \
        --config.data.path='owt/*.txt' --config.data.tokenizer=gpt2/tokenizer.json

Data: OpenWebText as text files, one document per file, and GPT-2's tokenizer.json (50,257 ids; the
mask is id 50,257, which gives the published 169,627,218 parameters). Nothing is downloaded. The
published run frames every window of 1024 with <|endoftext|> and holds out the last 100,000
documents; here documents are packed end to end and held out by hash.

Memory and time: every host reads and tokenizes the whole corpus into its memory at every start, in
one process and with nothing kept on disk: the text, 5 bytes per token, and copies of both while
packing. All of OpenWebText (about 40 GB, 9B tokens) takes well over 100 GB and hours; try a part.

Hardware: written for 64 TPU chips at 8 windows each; on fewer devices raise train.accumulate, or
set train.loss_chunk=1024 and model.remat=dots, as docs/pods.md does for 16 and 32 chips.

Expected: held-out perplexity at most 23.21, that is 3.14 nats per token (MDLM, table 2; 22.98 in
the re-evaluation by BD3-LM). Not reproduced in this repository.
"""

from ml_collections import ConfigDict

from configs.base import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base()
    config.model.dropout = 0.1
    config.model.attention = "auto"
    config.objective.min_time = 1e-3
    return config
