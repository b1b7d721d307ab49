"""Which GPUs this machine has, as far as this process may see them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_dsr1.servers.tool import ToolError, answer

#: A healthy tool needs a second or two; one whose driver hangs never answers.
TIMEOUT_S = 10.0

#: AMD's chips by the name of their instruction set, which is all that the kernel knows of them.
_AMD_SERIES = {
    "gfx90a": "MI210/MI250/MI250X",
    "gfx942": "MI300A/MI300X/MI325X",
    "gfx950": "MI350X/MI355X",
}
#: A product name; a tool's complaints have full stops, colons or apostrophes.
_NAME = re.compile(r"[A-Za-z][\w /+()-]*")
_NO_DEVICES = "No devices were found"


def visible_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[str, ...]:
    """The names of the GPUs that a server started from here would see, one for each.

    Asked are nvidia-smi and NVIDIA's driver, then amd-smi and AMD's, until one knows of a GPU; whatever is missing,
    fails or answers nonsense is passed over.

    :param environ: Its PATH says where the tools are, its *_VISIBLE_DEVICES which GPUs are hidden.
    :param root: Where /proc and /sys are.
    """
    cuda = _entries(environ, "CUDA_VISIBLE_DEVICES")
    if not _hides_all(cuda) and (found := _nvidia_smi(environ) or _nvidia_driver(root)):
        return _left(found, cuda)
    # ROCm hides by the first, then HIP counts what is left by the second, for which it takes CUDA's where it is unset.
    rocr, hip = _entries(environ, "ROCR_VISIBLE_DEVICES"), _entries(environ, "HIP_VISIBLE_DEVICES")
    hip = cuda if hip is None else hip
    if not _hides_all(rocr) and not _hides_all(hip) and (found := _amd_smi(environ) or _amd_driver(root)):
        return _left(_left(found, rocr), hip)
    return ()


def _entries(environ: Mapping[str, str], variable: str) -> list[str] | None:
    """What a variable lists; None if it is unset, which hides nothing."""
    return [entry.strip() for entry in environ[variable].split(",")] if variable in environ else None


def _hides_all(entries: list[str] | None) -> bool:
    return entries is not None and entries[0] in ("", "-1")


def _left(gpus: tuple[str, ...], entries: list[str] | None) -> tuple[str, ...]:
    """Those of `gpus` that are listed, in that order; all, if nothing is."""
    if entries is None or not gpus:
        return gpus
    left = []
    for entry in entries:
        if re.fullmatch(r"[A-Za-z].*", entry):
            # A UUID, which is not resolved: the GPUs of a machine are alike.
            left.append(gpus[0])
        elif re.fullmatch(r"[0-9]{1,4}", entry) and int(entry) < len(gpus):
            left.append(gpus[int(entry)])
        else:
            break  # CUDA and HIP hide what follows an index that does not exist.
    return tuple(left)


def _nvidia_smi(environ: Mapping[str, str]) -> tuple[str, ...]:
    lines = _asked("nvidia-smi", ("--query-gpu=name", "--format=csv,noheader"), environ).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    return names if all(_NAME.fullmatch(name) and name != _NO_DEVICES for name in names) else ()


def _nvidia_driver(root: Path) -> tuple[str, ...]:
    texts = [_text(path) for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))]
    found = (re.search(r"^Model:\s*(\S.*?)\s*$", text, re.MULTILINE) for text in texts)
    return tuple(match[1] for match in found if match)


def _amd_smi(environ: Mapping[str, str]) -> tuple[str, ...]:
    text = _asked("amd-smi", ("static", "--asic", "--json"), environ)
    # Warnings may stand before it, and behind.
    start = re.search(r"^\s*(?=[\[{])", text, re.MULTILINE)
    try:
        document: Any = json.JSONDecoder().raw_decode(text, start.end())[0] if start else []
        # A list of GPUs in ROCm 6, since then an object that holds one.
        gpus = document["gpu_data"] if isinstance(document, dict) else document
        return tuple(_amd_name(gpu["asic"]) for gpu in gpus)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def _amd_name(asic: Mapping[str, Any]) -> str:
    """The name on the box, or what the chip is, where the tool has a generic name ("AMD Radeon Graphics") or none."""
    name = str(asic.get("market_name"))
    return name if re.search(r"\bMI\d", name) else _amd_series(asic["target_graphics_version"])


def _amd_driver(root: Path) -> tuple[str, ...]:
    nodes = root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
    texts = [_text(path) for path in sorted(nodes, key=lambda path: (len(path.parent.name), path.parent.name))]
    found = (re.search(r"^gfx_target_version (\d+)$", text, re.MULTILINE) for text in texts)
    # CPUs are nodes as well, with version 0.
    versions = [int(match[1]) for match in found if match and int(match[1])]
    # 90500 is 9.5.0, written gfx950; the last two digits of the name are hexadecimal.
    return tuple(_amd_series(f"gfx{each // 10000}{each // 100 % 100:x}{each % 100:x}") for each in versions)


def _amd_series(target: str) -> str:
    # A target may have features appended: gfx942:sramecc+:xnack-.
    target = target.split(":")[0].lower()
    return f"AMD {target} ({_AMD_SERIES[target]})" if target in _AMD_SERIES else f"AMD {target}"


def _asked(tool: str, arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    # Without a PATH in it there is no tool: None would mean our own PATH.
    path = shutil.which(tool, path=environ.get("PATH", ""))
    try:
        return answer([path, *arguments], environ, TIMEOUT_S) if path else ""
    except ToolError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
