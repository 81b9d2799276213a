"""What devices say to each other in a compiled program, read from its text.

The text is that of XLA after optimization. A collective inside a loop counts as often as the loop
runs, where the compiler noted that or the loop's condition compares with a constant, as that of a
scan does; other loops (the chunks of a loss, whose number is found at run time) count once, and are
reported.
"""

import math
import re
from typing import NamedTuple

_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of `KINDS`.
        size: bytes of the whole array: what is gathered, reduced, or sent.
        group: devices that take part together.
        times: how often a step runs it.
    """

    kind: str
    size: int
    group: int
    times: int


class Traffic(NamedTuple):
    """The collectives of a program.

    Attributes:
        found: every one.
        loops: loops of unknown length that hold some of them.
    """

    found: tuple[Collective, ...]
    loops: int

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """(how many run in a step, bytes of their whole arrays) of each kind that occurs."""
        totals: dict[str, tuple[int, int]] = {}
        for one in self.found:
            count, size = totals.get(one.kind, (0, 0))
            totals[one.kind] = (count + one.times, size + one.times * one.size)
        return totals


def shape_bytes(text: str) -> int:
    """Returns the bytes of the arrays of an HLO type, a tuple's all together.

    Examples:
        >>> shape_bytes("f32[2,3]{1,0:T(8,128)}"), shape_bytes("(bf16[4]{0}, s32[])")
        (24, 12)
    """
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text):
        total += _BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
    return total


def group_size(text: str, devices: int) -> int:
    """Returns how many devices a collective joins, from its attributes.

    Examples:
        >>> group_size("replica_groups={{0,1},{2,3}}, x=1", 4)
        2
        >>> group_size("replica_groups=[2,8]<=[16]", 16)
        8
        >>> group_size("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", 8)
        4
    """
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found[1])
    if found := re.search(r"replica_groups=@?mesh[\w.]*\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return devices


def read(text: str, devices: int) -> Traffic:
    """Returns the collectives of a compiled module.

    Args:
        text: ``compiled.as_text()``.
        devices: how many the module runs on.

    Raises:
        ValueError: if the text has no entry computation.

    Examples:
        >>> module = '''
        ... ENTRY %main (x: f32[8]) -> f32[8] {
        ...   %x = f32[8]{0} parameter(0)
        ...   ROOT %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
        ... }
        ... '''
        >>> read(module, 2).found
        (Collective(kind='all-reduce', size=32, group=2, times=1),)
    """
    bodies, entry = _computations(text)
    if entry is None:
        raise ValueError("the text has no ENTRY computation: expected that of a compiled module")
    found: list[Collective] = []
    loops: set[str] = set()

    def visit(name: str, times: int, open_loop: str) -> None:
        for line in bodies.get(name, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            _, shape, opcode, rest = match.groups()
            kind = opcode.removesuffix("-start")
            if kind in KINDS:
                group = group_size(rest, devices)
                size = _payload(kind, shape, group, opcode.endswith("-start"))
                if kind == "all-reduce" and "all-reduce-scatter" in name:
                    kind = "reduce-scatter"  # a fusion that keeps a part of the sum
                found.append(Collective(kind, size, group, times))
                if open_loop:
                    loops.add(open_loop)
            elif opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", rest)
                condition = re.search(r"condition=%?([\w.\-]+)", rest)
                if body and condition:
                    known = re.search(r"known_trip_count\W+n\W+(\d+)", rest)
                    trips = int(known[1]) if known else _trips(bodies.get(condition[1], ()))
                    visit(body[1], times * (trips or 1), open_loop if trips else body[1])
            else:
                for called in _called(rest):
                    visit(called, times, open_loop)

    visit(entry, 1, "")
    return Traffic(tuple(found), len(loops))


def _computations(text: str) -> tuple[dict[str, list[str]], str | None]:
    """The lines of each computation, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    entry, lines = None, []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if header and not line.startswith(" "):
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _called(rest: str) -> list[str]:
    branches = [
        name.strip().lstrip("%") for names in _BRANCHES.findall(rest) for name in names.split(",")
    ]
    return _CALLED.findall(rest) + branches


def _trips(condition: tuple | list[str]) -> int | None:
    """How often a loop runs whose counter from 0 is compared with a constant; None if unknown."""
    constants = {}
    for line in condition:
        match = _INSTRUCTION.match(line)
        if match and match[3] == "constant" and match[2].startswith("s32[]"):
            constants[match[1]] = int(match[4].split(")")[0])
        if match and line.lstrip().startswith("ROOT") and "direction=LT" in line:
            operands = re.findall(r"%([\w.\-]+)", match[4].split(")")[0])
            return constants.get(operands[-1]) if operands else None
    return None


def _payload(kind: str, shape: str, group: int, started: bool) -> int:
    """Bytes of the whole array. The type of a started operation holds its operand as well."""
    size = shape_bytes(shape)
    if kind == "reduce-scatter":
        return size * group
    if started and kind == "all-gather":
        return size * group // (group + 1)
    if started and kind in ("collective-permute", "all-to-all"):
        return size // 2
    return size
