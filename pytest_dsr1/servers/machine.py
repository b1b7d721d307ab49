"""What this machine can launch a server with: GPUs, a Python with SGLang."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pytest_dsr1.servers import ServerError

#: The driver answers within a second or two; one that hangs never answers.
GPU_TIMEOUT_S = 10.0
#: A Python that starts from a cold network disk needs seconds.
PYTHON_TIMEOUT_S = 20.0


class _NoAnswerError(RuntimeError):
    """A command gave no answer; the message says why."""


def _ask(argv: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> object:
    """What a short command prints last, as JSON.

    :raises _NoAnswerError: It cannot be run, does not end in time or with status 0, or prints no JSON.
    """
    try:
        done = subprocess.run(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise _NoAnswerError(f"cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise _NoAnswerError(f"ended with status {done.returncode}{f' ({said[-1][:120]})' if said else ''}")
    try:
        # A library may print warnings before.
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise _NoAnswerError("does not answer like a Python") from None


# -- GPUs -----------------------------------------------------------------------------------------------------

#: Run in a process of their own: a driver that hangs cannot be interrupted, but a process can be given up.
_NVIDIA = """
import json, pynvml
pynvml.nvmlInit()
gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
print(json.dumps([pynvml.nvmlDeviceGetName(gpu) for gpu in gpus]))
"""
#: amdsmi is a part of ROCm and no package of ours.
_AMD = """
import json, amdsmi
amdsmi.amdsmi_init()
chips = [amdsmi.amdsmi_get_gpu_asic_info(gpu) for gpu in amdsmi.amdsmi_get_processor_handles()]
print(json.dumps([[chip["market_name"], chip["target_graphics_version"]] for chip in chips]))
"""
#: AMD's chips by the name of their instruction set, which is all that the kernel knows of them.
_AMD_SERIES = {
    "gfx90a": "MI210/MI250/MI250X",
    "gfx942": "MI300A/MI300X/MI325X",
    "gfx950": "MI350X/MI355X",
}


def visible_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[str, ...]:
    """The names of the GPUs that a server started from here would see, one for each.

    NVML is asked first, then amdsmi, then AMD's driver in /sys (amdsmi may be missing), until one knows of a GPU.

    :param environ: Its *_VISIBLE_DEVICES say which GPUs are hidden.
    :param root: Where /sys is.
    """
    cuda = environ.get("CUDA_VISIBLE_DEVICES")
    if not _hides_all(cuda) and (found := _from_library(_NVIDIA, environ)):
        return _left(found, cuda)
    # ROCm hides by the first; HIP then counts what is left by the second, or by CUDA's where the second is unset.
    rocr, hip = environ.get("ROCR_VISIBLE_DEVICES"), environ.get("HIP_VISIBLE_DEVICES", cuda)
    if _hides_all(rocr) or _hides_all(hip):
        return ()
    return _left(_left(_from_library(_AMD, environ) or _from_amd_driver(root), rocr), hip)


def _hides_all(listed: str | None) -> bool:
    return listed is not None and listed.split(",")[0].strip() in ("", "-1")


def _left(gpus: tuple[str, ...], listed: str | None) -> tuple[str, ...]:
    """Those of `gpus` that the variable lists; all if it is unset."""
    if listed is None or not gpus:
        return gpus
    left = []
    for entry in map(str.strip, listed.split(",")):
        if re.fullmatch(r"[A-Za-z].*", entry):
            # A UUID, which is not resolved: the GPUs of a machine are alike.
            left.append(gpus[0])
        elif re.fullmatch(r"[0-9]{1,4}", entry) and int(entry) < len(gpus):
            left.append(gpus[int(entry)])
        else:
            break  # CUDA and HIP hide what follows an index that does not exist.
    return tuple(left)


def _from_library(question: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the GPUs that a vendor's library finds; none if it fails."""
    try:
        # -P: a module of the current folder must not stand in for a library.
        gpus = _ask([sys.executable, "-P", "-c", question], environ, GPU_TIMEOUT_S)
    except _NoAnswerError:
        return ()
    assert isinstance(gpus, list)
    return tuple(gpu if isinstance(gpu, str) else _amd_name(*map(str, gpu)) for gpu in gpus)


def _from_amd_driver(root: Path) -> tuple[str, ...]:
    versions = []
    nodes = root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
    for path in sorted(nodes, key=lambda path: (len(path.parent.name), path.parent.name)):
        with suppress(OSError):
            found = re.search(r"^gfx_target_version (\d+)$", path.read_text(errors="replace"), re.MULTILINE)
            versions.append(int(found[1]) if found else 0)
    # CPUs are nodes as well, with version 0. 90500 is 9.5.0, written gfx950; the last two digits are hexadecimal.
    return tuple(_amd_name("", f"gfx{each // 10000}{each // 100 % 100:x}{each % 100:x}") for each in versions if each)


def _amd_name(market_name: str, target: str) -> str:
    """The product's name, or the chip's if the product has a generic name or none."""
    if re.search(r"\bMI\d", market_name):
        return market_name
    # A target may have features appended: gfx942:sramecc+:xnack-.
    target = target.split(":")[0].lower()
    return f"AMD {target} ({_AMD_SERIES[target]})" if target in _AMD_SERIES else f"AMD {target}"


# -- a Python with SGLang -------------------------------------------------------------------------------------

#: Looks for the package without importing it, which would take 20 s. A folder that happens to be called sglang has no
#: origin; a source tree on PYTHONPATH has no version.
_HAS_SGLANG = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("sglang")
version = None
if spec is not None and spec.origin is not None:
    try:
        version = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
print()
print(json.dumps({"sglang": version}))
"""


def find_interpreter(option: Path | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """The Python to launch SGLang with: the typed one, ours, or one on PATH.

    :param option: `--sglang-python`; if typed, no other Python is asked.
    :param environ: What a server will inherit: PATH and PYTHONPATH count.
    :return: Its path as found (the Python of a virtual environment is a symbolic link to one with other packages), and
        the version of SGLang; "unknown" where it was not installed as a package.
    :raises ServerError: The typed one has no SGLang, or none has.
    """
    if option is not None:
        path = str(option.absolute())
        try:
            if not shutil.which(path):
                raise _NoAnswerError("is no executable file" if option.exists() else "does not exist")
            return path, _sglang_version(path, environ)
        except _NoAnswerError as error:
            raise ServerError(
                f"--sglang-python {option} {error}; name a Python that has SGLang, or leave the option out"
            ) from None
    folders = (Path(folder).absolute() for folder in environ.get("PATH", "").split(os.pathsep) if folder)
    tried = []
    for path in dict.fromkeys([sys.executable, *(str(folder / "python3") for folder in folders)]):
        if path and shutil.which(path):
            try:
                return path, _sglang_version(path, environ)
            except _NoAnswerError as error:
                tried.append(f"{path} {error}")
    raise ServerError(
        f"no Python with SGLang was found: {'; '.join(tried) or 'there is no python3 on PATH'}; "
        "name one with --sglang-python PATH"
    )


def _sglang_version(path: str, environ: Mapping[str, str]) -> str:
    """:raises _NoAnswerError: It has no SGLang, or does not answer like a Python."""
    said = _ask([path, "-c", _HAS_SGLANG], environ, PYTHON_TIMEOUT_S)
    if not isinstance(said, dict) or not isinstance(said.get("sglang"), str):
        raise _NoAnswerError("has no sglang")
    return str(said["sglang"])
