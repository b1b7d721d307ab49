"""Copies a model folder with weights rounded to fewer bits, to test a gate.

    python -m tools.quantize_reference int8 pytest_dsr1/reference/weights /tmp/int8

The copy has the same layout: weights are rounded, then stored as bfloat16 again, so that every loader reads it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]


def _rounded(values: Array, scale: Array | float) -> Array:
    """Nearest multiples of the scale, ties to even."""
    return np.asarray(np.rint(values / scale) * scale, np.float32)


def int8_per_channel(matrices: Mapping[str, Array]) -> dict[str, Array]:
    """Each output channel to -127..127 with its own scale: the usual careful rounding."""
    scales = {name: np.abs(values).max(1, keepdims=True) / 127 for name, values in matrices.items()}
    return {name: _rounded(values, scales[name]) for name, values in matrices.items()}


def int4_global(matrices: Mapping[str, Array]) -> dict[str, Array]:
    """All matrices to -7..7 with one scale, set by the largest weight: ruins a model."""
    scale = max(float(np.abs(values).max()) for values in matrices.values()) / 7
    return {name: _rounded(values, scale) for name, values in matrices.items()}


SCHEMES: Final[Mapping[str, Callable[[Mapping[str, Array]], dict[str, Array]]]] = {
    "int8": int8_per_channel,
    "int4": int4_global,
}


def widened(data: bytes | bytearray, shape: list[int]) -> Array:
    """Float32 values of stored bfloat16: its bits are a float32's upper half."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)


def narrowed(values: Array) -> bytes:
    """bfloat16 of float32 values, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def quantised_copy(source: Path, target: Path, scheme: str) -> Path:
    """Writes a copy of a model folder with rounded linear layers.

    Embedding, head, router and norms stay as they are.

    :param scheme: A key of SCHEMES.
    :returns: The target.
    """
    shutil.copytree(source, target)
    # safetensors: the header's length, the header as JSON, then all data, where the header gives offsets
    stored = bytearray((source / "model.safetensors").read_bytes())
    data = 8 + int.from_bytes(stored[:8], "little")
    spans, linear = {}, {}
    for name, tensor in json.loads(stored[8:data]).items():
        if "_proj" in name and name.endswith(".weight"):
            begin, end = tensor["data_offsets"]
            spans[name] = slice(data + begin, data + end)
            linear[name] = widened(stored[spans[name]], tensor["shape"])
    for name, values in SCHEMES[scheme](linear).items():
        stored[spans[name]] = narrowed(values)
    (target / "model.safetensors").write_bytes(stored)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scheme", choices=sorted(SCHEMES))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="Folder to write; must not exist")
    options = parser.parse_args()
    quantised_copy(options.source, options.target, options.scheme)


if __name__ == "__main__":
    main()
