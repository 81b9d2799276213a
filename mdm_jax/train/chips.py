"""What accelerators can do, by their published peaks: for MFU, rooflines and memory.

TPU figures are those of Google's Cloud TPU pages ("TPU v5e", "TPU v5p", "TPU v6e"); GPU figures
those of NVIDIA's data sheets, dense, without sparsity. Nothing here was measured.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
        name: what it is called.
        kind: how `jax.Device.device_kind` begins.
        memory: bytes of HBM that a program can have. On a TPU a little less than the data sheet
            says, as the runtime keeps some; the compiler names the number where one does not fit.
        flops: peak bfloat16 FLOP/s, a multiply-add being two.
        bandwidth: peak bytes/s of HBM.
        link: bytes/s of one link to a neighbor (of the whole switch, on a GPU), each way.
        axes: axes of the torus that the links form; 0 for a switch.
    """

    name: str
    kind: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    axes: int


CHIPS: dict[str, Chip] = {
    # 16 / 95 / 32 GiB; 197 / 459 / 918 TFLOP/s; 819 / 2765 / 1640 GB/s; links 1600 Gbit/s over
    # four, 4800 over six, 3584 over four.
    "v5e": Chip("TPU v5e", "TPU v5 lite", int(15.75 * GIB), 197e12, 819e9, 50e9, 2),
    "v5p": Chip("TPU v5p", "TPU v5", int(95.0 * GIB), 459e12, 2765e9, 100e9, 3),
    "v6e": Chip("TPU v6e", "TPU v6 lite", int(31.25 * GIB), 918e12, 1640e9, 112e9, 2),
    "a100": Chip("A100 80GB", "NVIDIA A100-SXM4-80GB", int(80e9), 312e12, 2039e9, 300e9, 0),
    "h100": Chip("H100 SXM", "NVIDIA H100 80GB HBM3", int(80e9), 989e12, 3350e9, 450e9, 0),
    "h200": Chip("H200 SXM", "NVIDIA H200", int(141e9), 989e12, 4800e9, 450e9, 0),
}
"""Chips by the name that a topology begins with."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, or None if its peaks are not known here.

    Examples:
        >>> kinds = ("TPU v5 lite", "TPU v5", "NVIDIA H100 80GB HBM3")
        >>> tuple(chip_of(kind).name for kind in kinds)
        ('TPU v5e', 'TPU v5p', 'H100 SXM')
        >>> chip_of("cpu") is None
        True
    """
    names = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}
    kind = names.get(device_kind, device_kind)
    found = [chip for chip in CHIPS.values() if kind.startswith(chip.kind)]
    # "TPU v5" begins "TPU v5 lite" too: the longest name is meant.
    return max(found, key=lambda chip: len(chip.kind), default=None)
