"""What accelerators can do, by their published peaks: for rooflines and memory.

TPU figures are those of Google's Cloud TPU pages ("TPU v5e", "TPU v5p", "TPU v6e"); GPU figures
those of NVIDIA's data sheets, dense, without sparsity. Nothing here was measured.
"""

from typing import NamedTuple

from mdm_jax.train.utilization import peak_flops

_GIB = 2**30


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
        name: what it is called.
        memory: bytes of HBM that a program can have. On a TPU a little less than the data sheet
            says, as the runtime keeps some; the compiler names the number where one does not fit.
        flops: peak bfloat16 FLOP/s, a multiply-add being two.
        bandwidth: peak bytes/s of HBM.
        link: bytes/s of one link to a neighbor (of the whole switch, on a GPU), each way.
        axes: axes of the torus that the links form; 0 for a switch.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    axes: int


def _chip(name: str, kind: str, memory: float, bandwidth: float, link: float, axes: int) -> Chip:
    """A chip whose `jax.Device.device_kind` is `kind`."""
    return Chip(name, int(memory), peak_flops(kind) or 0.0, bandwidth, link, axes)


CHIPS: dict[str, Chip] = {
    # 16, 95 and 32 GB; 819, 2765 and 1640 GB/s; links of 1600 Gbit/s over four, 4800 over six and
    # 3584 over four.
    "v5e": _chip("TPU v5e", "TPU v5 lite", 15.75 * _GIB, 819e9, 50e9, 2),
    "v5p": _chip("TPU v5p", "TPU v5", 95.0 * _GIB, 2765e9, 100e9, 3),
    "v6e": _chip("TPU v6e", "TPU v6 lite", 31.25 * _GIB, 1640e9, 112e9, 2),
    "a100": _chip("A100 80GB", "NVIDIA A100-SXM4-80GB", 80e9, 2039e9, 300e9, 0),
    "h100": _chip("H100 SXM", "NVIDIA H100 80GB HBM3", 80e9, 3350e9, 450e9, 0),
    "h200": _chip("H200 SXM", "NVIDIA H200", 141e9, 4800e9, 450e9, 0),
}
"""Chips by the name that a topology begins with."""
