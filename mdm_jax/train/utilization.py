"""What the devices of a run can do and hold: their peak, their memory."""

import jax

from mdm_jax.train.chips import chip_of


def peak_flops(device_kind: str, tflops: float = 0.0) -> float | None:
    """Returns the peak of one device, in FLOP/s of dense bfloat16 products; None if not known.

    Args:
        device_kind: as ``jax.devices()[0].device_kind`` says.
        tflops: what to take instead, such as a measured rate, in TFLOP/s; 0: the makers' figure.

    Examples:
        >>> peak_flops("TPU v5 lite"), peak_flops("cpu"), peak_flops("cpu", tflops=0.3)
        (197000000000000.0, None, 300000000000.0)
    """
    if tflops:
        return 1e12 * tflops
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops


def device_memory() -> dict[str, float]:
    """Returns the memory of the fullest device of this process, in GiB; nothing where unknown.

    ``memory_gib`` is in use now, ``memory_peak_gib`` was at most, and ``memory_limit_gib`` may be.

    Examples:
        >>> sorted(device_memory()) in ([], ["memory_gib", "memory_limit_gib", "memory_peak_gib"])
        True
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    names = {
        "memory_gib": "bytes_in_use",
        "memory_peak_gib": "peak_bytes_in_use",
        "memory_limit_gib": "bytes_limit",
    }
    return {
        name: max(one[key] for one in stats if one) / 2**30
        for name, key in names.items()
        if any(stats) and all(key in one for one in stats if one)
    }
