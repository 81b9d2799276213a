"""Which kernel computes attention, and how it is spread over a mesh.

The compiler splits XLA's attention over devices as it splits everything else. A kernel it cannot
split: `jax.shard_map` gives each device its rows (mesh axes "data" and "fsdp"), its heads
("tensor") and its queries ("sequence"), with the keys and values of whole sequences.
"""

import logging
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mdm_jax.masks import Mask
from mdm_jax.models import cudnn, splash
from mdm_jax.models.attention import Attention, attention
from mdm_jax.train.meshes import BATCH_AXES, batch_ways

logger = logging.getLogger(__name__)

ATTENTIONS = ("xla", "splash", "cudnn", "auto")
_KERNEL_OF = {"tpu": "splash", "gpu": "cudnn"}
_PLATFORM_OF = {kernel: platform for platform, kernel in _KERNEL_OF.items()}


def make_attention(name: str, mesh: Mesh, *, interpret: bool = False) -> Attention:
    """Returns the attention that ``model.attention`` names, for the devices of a mesh.

    Args:
        name: "xla"; "splash" on TPUs or "cudnn" on GPUs, which raise for what they cannot do; or
            "auto", the kernel of the devices where it can do the mask and the shapes, else XLA.
            The log says which, and why not the kernel.
        mesh: the devices, which may be of a machine that is not here. Its axes are Auto, and
            whoever calls the attention is not already inside a `shard_map` or `pmap`.
        interpret: run splash attention as plain JAX on any device, slowly: for tests.

    Returns:
        A function of the signature of `mdm_jax.models.attention.attention`.

    Raises:
        ValueError: if the name is unknown, or the kernel is not for these devices. When called, if
            the kernel cannot do the mask or the shapes and the name is not "auto".

    Examples:
        >>> from mdm_jax.train.meshes import make_mesh
        >>> make_attention("xla", make_mesh()) is attention
        True
        >>> make_attention("flash", make_mesh())
        Traceback (most recent call last):
            ...
        ValueError: unknown model.attention 'flash': expected one of ['xla', 'splash', ...
    """
    if name not in ATTENTIONS:
        raise ValueError(f"unknown model.attention {name!r}: expected one of {list(ATTENTIONS)}")
    platform = mesh.devices.flat[0].platform
    kernel = _KERNEL_OF.get(platform, "xla") if name == "auto" else name
    logger.info("attention: %s (model.attention=%r, devices: %s)", kernel, name, platform)
    if kernel == "xla":
        return attention
    if platform != _PLATFORM_OF[kernel] and not (kernel == "splash" and interpret):
        raise ValueError(
            f"model.attention={name!r} is for {_PLATFORM_OF[kernel]} devices, and these are "
            f"{platform}: set 'auto' or 'xla'"
        )

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        reason = _unfit(q, k, mesh)
        if not reason:
            reason = splash.refusal(mask) if kernel == "splash" else cudnn.refusal(q, k, mask)
        if reason and name == "auto":
            logger.info("attention of %s is left to XLA: %s", type(mask).__name__, reason)
            return attention(q, k, v, mask)
        if reason:
            raise ValueError(
                f"model.attention={name!r} cannot do this: {reason}. Set 'auto', which leaves it "
                "to XLA, or 'xla'"
            )
        if kernel == "cudnn":
            return _cudnn(q, k, v, mask, mesh)
        return _splash(q, k, v, mask, mesh, interpret)

    return attend


def _unfit(q: jax.Array, k: jax.Array, mesh: Mesh) -> str:
    """Returns why the arrays cannot be given out over the mesh, or "" if they can."""
    ways, heads = batch_ways(mesh), mesh.shape.get("tensor", 1)
    if q.shape[0] % ways:
        return f"{q.shape[0]} rows do not divide over the {ways} devices of mesh axes {BATCH_AXES}"
    if k.shape[2] % heads:
        return f"{k.shape[2]} key heads do not divide over the {heads} devices of mesh axis tensor"
    return ""


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, mesh: Mesh, interpret: bool
) -> jax.Array:
    """Splash attention, each device on its part."""
    rows, heads, queries = _axes(mesh)
    call = splash.prepare(q, k, v, mask, parts=mesh.shape.get("sequence", 1), interpret=interpret)
    split = NamedSharding(mesh, P(None, queries if call.parted else None))
    kernel = call.kernel.manual_sharding_spec(split)
    segments: Any = None
    if call.segments is not None:
        segments = call.segments._replace(**{"q": P(rows, queries), "kv": P(rows)})
    specs = (kernel, P(rows, queries, heads), P(rows, None, heads), P(rows, None, heads), segments)
    arrays = (call.kernel, call.q, call.k, call.v, call.segments)
    out = _each(splash.run, mesh, specs, P(rows, queries, heads))(*arrays)
    return out[:, : q.shape[1]]


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, mesh: Mesh) -> jax.Array:
    """Attention of cuDNN, each device on its part."""
    rows, heads, queries = _axes(mesh)
    parts = mesh.shape.get("sequence", 1)
    if q.shape[1] % parts:
        raise ValueError(
            f"{q.shape[1]} positions do not divide over the {parts} devices of mesh axis sequence"
        )
    hidden = cudnn.prepare(q, k, mask, parts=parts)
    causal = cudnn.is_causal(q, k, mask) and parts == 1
    batched = hidden.allowed is not None and hidden.allowed.shape[0] > 1
    hidden_specs: Any = cudnn.Hidden(None, None)
    if hidden.counts is not None:
        hidden_specs = hidden_specs._replace(counts=P(rows))
    if hidden.allowed is not None:
        hidden_specs = hidden_specs._replace(allowed=P(rows if batched else None, None, queries))
    specs = (P(rows, queries, heads), P(rows, None, heads), P(rows, None, heads), hidden_specs)
    run = lambda q, k, v, hidden: cudnn.run(q, k, v, hidden, causal)
    return _each(run, mesh, specs, P(rows, queries, heads))(q, k, v, hidden)


def _axes(mesh: Mesh) -> tuple[tuple[str, ...], str | None, str | None]:
    """Returns the mesh's axes over rows, heads and queries."""
    rows = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    heads, queries = (axis if axis in mesh.shape else None for axis in ("tensor", "sequence"))
    return rows, heads, queries


def _each(function: Any, mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    """Returns the function mapped over the mesh; kernels do not say along which axes they vary."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
