"""Compiles splash attention for TPUs that are not here, and prints what came out.

A program of its own (see `test_splash_tpu.py`), as the TPU compiler is loaded once in a process.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mdm_jax import masks
from mdm_jax.models import DiT, DiTConfig
from mdm_jax.models.attention import SAVED
from mdm_jax.train.backends import make_attention

ROWS, LENGTH, HEADS, FEATURES = 4, 512, 12, 64  # heads of the published 170M model


def kernels(function, *args) -> int:
    """Compiles a function and returns how many kernels of ours are in it."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"custom-call\([^\n]*tpu_custom_call", text))


def main() -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    names, sizes = ("data", "fsdp", "tensor", "sequence"), (2, 1, 1, 2)
    mesh = Mesh(np.array(devices).reshape(sizes), names, axis_types=(AxisType.Auto,) * 4)
    attend = make_attention("splash", mesh)

    def placed(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    found = {}
    x = placed((ROWS, LENGTH, HEADS, FEATURES), jnp.bfloat16, "data", "sequence")
    ids = placed((ROWS, LENGTH), jnp.int32, "data", "sequence")
    for name, mask in {
        "bidirectional": masks.Bidirectional(),
        "two streams": masks.TwoStream(16),
        "causal segments": masks.Segments(ids, causal=True),
    }.items():
        loss = lambda q, k, v, mask: attend(q, k, v, mask).astype(jnp.float32).sum()
        found[name] = kernels(jax.grad(loss, argnums=(0, 1, 2)), x, x, x, mask)

    def through(policy, q):
        return jax.checkpoint(lambda q: attend(jnp.sin(q), q, q, masks.Causal()), policy=policy)(q)

    for name, policy in {
        "computed again": jax.checkpoint_policies.nothing_saveable,
        "saved by name": jax.checkpoint_policies.save_only_these_names(SAVED),
    }.items():
        loss = lambda q, policy=policy: through(policy, q).astype(jnp.float32).sum()
        found[name] = kernels(jax.value_and_grad(loss), x)

    config = DiTConfig(
        num_ids=257, width=128, layers=2, heads=2, cond_dim=8, dtype="bfloat16", remat="dots"
    )
    model = DiT(config, make_attention("auto", mesh))
    tokens = placed((ROWS, LENGTH), jnp.int32, "data", "sequence")
    params = jax.eval_shape(DiT(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    params = jax.tree.map(lambda p: placed(p.shape, p.dtype), params)
    loss = lambda params, tokens: model.apply(params, tokens).astype(jnp.float32).sum()
    found["a model"] = kernels(jax.value_and_grad(loss), params, tokens)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
