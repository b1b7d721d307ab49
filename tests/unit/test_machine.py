"""What a server can be launched with here: GPUs, and a Python that has SGLang."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers import machine as servers_machine
from pytest_dsr1.servers.machine import find_interpreter, visible_gpus

H100 = "NVIDIA H100 80GB HBM3"
MI355X = "AMD Instinct MI355X"
GFX950 = "AMD gfx950 (MI350X/MI355X)"

#: Stand-ins for the libraries of NVIDIA and AMD, which know of `GPUS`.
NVML = """
def nvmlInit(): {init}
def nvmlDeviceGetCount(): return len(GPUS)
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(index): return GPUS[index]
GPUS = {gpus!r}
"""
AMDSMI = """
def amdsmi_init(): {init}
def amdsmi_get_processor_handles(): return list(range(len(GPUS)))
def amdsmi_get_gpu_asic_info(index):
    return {{"market_name": GPUS[index][0], "vendor_id": 0x1002, "target_graphics_version": GPUS[index][1]}}
GPUS = {gpus!r}
"""


class Machine:
    """A machine's libraries and its kernel's files, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._libraries = folder / "libraries"
        self._libraries.mkdir()
        # Whatever is installed here is hidden.
        self.nvml(init="raise RuntimeError('no driver')")
        self.amdsmi(init="raise RuntimeError('no driver')")

    def nvml(self, *gpus: str, init: str = "pass") -> None:
        """Have NVIDIA's library know of these GPUs."""
        (self._libraries / "pynvml.py").write_text(NVML.format(gpus=gpus, init=init), encoding="utf-8")

    def amdsmi(self, *gpus: tuple[str, str], init: str = "pass") -> None:
        """Have AMD's library know of these GPUs, each a name and a target."""
        (self._libraries / "amdsmi.py").write_text(AMDSMI.format(gpus=gpus, init=init), encoding="utf-8")

    def file(self, path: str, text: str) -> None:
        """Write a file of the kernel's."""
        (self.root / path).parent.mkdir(parents=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def amd_driver(self, *versions: int) -> None:
        """Load AMD's driver."""
        for number, version in enumerate(versions):
            text = f"cpu_cores_count 0\ngfx_target_version {version}\nvendor_id 4098\n"
            self.file(f"sys/class/kfd/kfd/topology/nodes/{number}/properties", text)

    def sees(self, **variables: str) -> tuple[str, ...]:
        """What is visible there, with these variables set."""
        return visible_gpus({"PYTHONPATH": str(self._libraries), **variables}, self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One without drivers or GPUs."""
    return Machine(tmp_path)


class TestSources:
    """The sources are asked in order; if one fails, the next one is asked."""

    def test_a_machine_without_any(self, machine: Machine) -> None:
        """Without libraries and drivers there is no GPU."""
        assert machine.sees() == ()

    def test_nvml(self, machine: Machine) -> None:
        """NVML is asked first."""
        machine.nvml(H100, H100)
        machine.amd_driver(90500)
        assert machine.sees() == (H100, H100)

    def test_amdsmi(self, machine: Machine) -> None:
        """It gives the product's name."""
        machine.amdsmi((MI355X, "gfx950"), (MI355X, "gfx950"))
        assert machine.sees() == (MI355X, MI355X)

    @pytest.mark.parametrize("name", ["N/A", "AMD Radeon Graphics", ""])
    def test_a_chip_without_a_name_is_known_by_its_target(self, machine: Machine, name: str) -> None:
        """Old drivers have a generic name, partitions none."""
        machine.amdsmi((name, "gfx950"), (name, "gfx942:sramecc+:xnack-"), (name, "gfx1201"))
        assert machine.sees() == (GFX950, "AMD gfx942 (MI300A/MI300X/MI325X)", "AMD gfx1201")

    def test_amd_driver(self, machine: Machine) -> None:
        """Node 0 is a CPU; nodes are in numeric order."""
        machine.amd_driver(0, *[90500] * 9, 90010, 90402)
        assert machine.sees() == (*[GFX950] * 9, "AMD gfx90a (MI210/MI250/MI250X)", "AMD gfx942 (MI300A/MI300X/MI325X)")

    @pytest.mark.parametrize(
        "trouble", ["raise OSError('no library')", "import os; os._exit(9)", "import os; os._exit(0)"]
    )
    def test_a_library_in_trouble(self, machine: Machine, trouble: str) -> None:
        """The driver is asked next."""
        machine.amdsmi((MI355X, "gfx950"), init=trouble)
        machine.amd_driver(90500)
        assert machine.sees() == (GFX950,)

    def test_a_library_that_warns(self, machine: Machine) -> None:
        """What it prints before the answer is not the answer."""
        machine.amdsmi((MI355X, "gfx950"), init="print('WARNING: User is missing the render group')")
        assert machine.sees() == (MI355X,)

    def test_a_driver_that_hangs(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a time-out the next source is asked."""
        monkeypatch.setattr(servers_machine, "GPU_TIMEOUT_S", 0.5)
        machine.nvml(H100, init="import time; time.sleep(600)")
        machine.amd_driver(90500)
        assert machine.sees() == (GFX950,)

    def test_a_driver_that_says_little(self, machine: Machine) -> None:
        """A file without the line is no GPU."""
        machine.file("sys/class/kfd/kfd/topology/nodes/0/properties", "gfx_target_version x\n")
        assert machine.sees() == ()

    def test_a_module_of_the_current_folder_is_no_library(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python would find it first."""
        (tmp_path / "pynvml.py").write_text(NVML.format(gpus=(H100,), init="pass"), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        assert machine.sees() == ()


class TestHidden:
    """*_VISIBLE_DEVICES, as CUDA and HIP read them."""

    @pytest.mark.parametrize(
        ("value", "left"),
        [
            ("", ""),
            ("-1", ""),
            (" ", ""),
            ("0", "A1"),
            ("2,0", "C3 A1"),
            ("1, 2", "B2 C3"),
            ("0,-1,1", "A1"),
            ("0,7,1", "A1"),
            ("7", ""),
            ("GPU-8f6d,GPU-1c2b", "A1 A1"),
            ("--1", ""),
        ],
    )
    def test_a_list_names_those_that_are_left(self, machine: Machine, value: str, left: str) -> None:
        """In its order; what follows an index that does not exist is hidden; a UUID counts as one."""
        machine.nvml("A1", "B2", "C3")
        assert machine.sees(CUDA_VISIBLE_DEVICES=value) == tuple(left.split())

    @pytest.mark.parametrize("variable", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
    def test_each_of_amds(self, machine: Machine, variable: str) -> None:
        """HIP takes CUDA's as another name of its own."""
        machine.amd_driver(90500, 90402)
        assert machine.sees(**{variable: "1"}) == ("AMD gfx942 (MI300A/MI300X/MI325X)",)
        assert machine.sees(**{variable: ""}) == ()

    def test_hip_counts_what_rocr_left(self, machine: Machine) -> None:
        """One after the other, where both are set."""
        machine.amd_driver(90010, 90402, 90500)
        assert machine.sees(ROCR_VISIBLE_DEVICES="1,2", HIP_VISIBLE_DEVICES="1") == (GFX950,)
        assert machine.sees(ROCR_VISIBLE_DEVICES="2", HIP_VISIBLE_DEVICES="2") == ()

    def test_hips_own_goes_before_cudas(self, machine: Machine) -> None:
        """The other is not looked at."""
        machine.amd_driver(90402, 90500)
        assert machine.sees(HIP_VISIBLE_DEVICES="1", CUDA_VISIBLE_DEVICES="0") == (GFX950,)

    def test_amds_hide_nothing_from_cuda(self, machine: Machine) -> None:
        """Each vendor has its own."""
        machine.nvml(H100)
        assert machine.sees(HIP_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="-1") == (H100,)

    def test_nobody_is_asked_about_what_is_hidden(self, machine: Machine, tmp_path: Path) -> None:
        """No library is asked, since a driver may take a second to answer."""
        asked = f"open({str(tmp_path / 'asked')!r}, 'w')"
        machine.nvml(init=asked)
        machine.amdsmi(init=asked)
        assert machine.sees(CUDA_VISIBLE_DEVICES="") == ()
        assert not (tmp_path / "asked").exists()

    @given(st.text())
    def test_no_value_is_an_error(self, value: str) -> None:
        """At most as many are left as are named."""
        assert len(servers_machine._left(("A", "B"), value)) <= len(value.split(","))


WITH = """echo '{"sglang": "0.5.23"}'"""
WITHOUT = """echo '{"sglang": null}'"""


def python3(folder: Path, script: str) -> str:
    """Install a python3 that answers like this."""
    folder.mkdir(exist_ok=True)
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def on_path(*folders: Path) -> dict[str, str]:
    """An environment that finds its programs there."""
    return {"PATH": os.pathsep.join(map(str, folders))}


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Our own Python, which has no SGLang."""
    path = python3(tmp_path / "ours", WITHOUT)
    monkeypatch.setattr(sys, "executable", path)
    return path


class TestSearch:
    """Without --sglang-python."""

    def test_ours_comes_first(self, ours: str, tmp_path: Path) -> None:
        """The Python of pytest is taken if it has SGLang."""
        python3(tmp_path / "ours", WITH)
        python3(tmp_path / "a", """echo '{"sglang": "0.1"}'""")
        assert find_interpreter(None, on_path(tmp_path / "a")) == (ours, "0.5.23")

    def test_then_the_first_on_path_that_has_it(self, ours: str, tmp_path: Path) -> None:
        """Folders without a python3, or with one without SGLang, are passed over."""
        python3(tmp_path / "a", WITHOUT)
        found = python3(tmp_path / "b", WITH)
        python3(tmp_path / "c", """echo '{"sglang": "0.1"}'""")
        environ = on_path(tmp_path / "absent", tmp_path / "a", tmp_path / "b", tmp_path / "c")
        assert find_interpreter(None, environ) == (found, "0.5.23")

    def test_a_link_stays_a_link(self, ours: str, tmp_path: Path) -> None:
        """A virtual environment's Python is one, and what it points to has other packages."""
        target = python3(tmp_path / "usr", WITH)
        (tmp_path / "venv").mkdir()
        (tmp_path / "venv" / "python3").symlink_to(target)
        assert find_interpreter(None, on_path(tmp_path / "venv"))[0] == str(tmp_path / "venv" / "python3")

    def test_each_is_asked_once(self, ours: str, tmp_path: Path) -> None:
        """The Python of pytest is usually on PATH too."""
        python3(tmp_path / "ours", f"echo asked >> {tmp_path}/log; {WITHOUT}")
        with pytest.raises(ServerError):
            find_interpreter(None, on_path(tmp_path / "ours", tmp_path / "ours"))
        assert (tmp_path / "log").read_text() == "asked\n"

    def test_none_has_it(self, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says who was asked, what each said, and what to do."""
        monkeypatch.setattr(servers_machine, "PYTHON_TIMEOUT_S", 2.0)
        scripts = [WITHOUT, "echo no module >&2; exit 3", "echo hello", "exec /bin/sleep 60"]
        paths = [python3(tmp_path / f"{number}", script) for number, script in enumerate(scripts)]
        with pytest.raises(ServerError) as refused:
            find_interpreter(None, on_path(*(Path(path).parent for path in paths)))
        assert str(refused.value) == (
            f"no Python with SGLang was found: {ours} has no sglang; {paths[0]} has no sglang; "
            f"{paths[1]} ended with status 3 (no module); {paths[2]} does not answer like a Python; "
            f"{paths[3]} did not answer within 2 s; name one with --sglang-python PATH"
        )

    def test_there_is_no_python_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An embedded interpreter does not know where it is."""
        monkeypatch.setattr(sys, "executable", "")
        with pytest.raises(ServerError, match="there is no python3 on PATH; name one with"):
            find_interpreter(None, {})


class TestTyped:
    """--sglang-python."""

    def test_no_other_is_asked(self, ours: str, tmp_path: Path) -> None:
        """The typed Python is taken, whatever other Pythons have SGLang."""
        python3(tmp_path / "ours", """echo '{"sglang": "0.1"}'""")
        path = python3(tmp_path / "a", WITH)
        assert find_interpreter(Path(path), {}) == (path, "0.5.23")

    def test_one_that_does_not_exist(self, tmp_path: Path) -> None:
        """A spelling mistake is no reason to take another."""
        with pytest.raises(ServerError, match=r"--sglang-python .*/absent does not exist; name a Python"):
            find_interpreter(tmp_path / "absent", dict(os.environ))

    def test_one_that_is_no_program(self, tmp_path: Path) -> None:
        """A folder is refused."""
        with pytest.raises(ServerError, match=r"--sglang-python .* is no executable file; name a Python"):
            find_interpreter(tmp_path, dict(os.environ))

    def test_one_without_sglang(self, tmp_path: Path) -> None:
        """No other Python is tried."""
        path = python3(tmp_path / "a", WITHOUT)
        with pytest.raises(ServerError, match=r"--sglang-python .*python3 has no sglang; name a Python"):
            find_interpreter(Path(path), dict(os.environ))


class TestQuestion:
    """What a real Python is asked."""

    @staticmethod
    def ask(folder: Path) -> str:
        """The version that a real Python says which has the packages in `folder`, and no others."""
        path = python3(folder / "bin", f'exec {shlex.quote(sys.executable)} -S "$@"')
        return find_interpreter(Path(path), os.environ | {"PYTHONPATH": str(folder)})[1]

    def test_an_installed_sglang_is_found_and_not_imported(self, tmp_path: Path) -> None:
        """Importing it takes 20 s."""
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").write_text("raise SystemExit('imported')")
        (tmp_path / "sglang-9.8.7.dist-info").mkdir()
        (tmp_path / "sglang-9.8.7.dist-info" / "METADATA").write_text("Name: sglang\nVersion: 9.8.7\n")
        assert self.ask(tmp_path) == "9.8.7"

    def test_a_source_tree_has_no_version(self, tmp_path: Path) -> None:
        """A source tree on PYTHONPATH was not installed, so its version is unknown."""
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").touch()
        assert self.ask(tmp_path) == "unknown"

    def test_a_folder_of_that_name_is_none(self, tmp_path: Path) -> None:
        """Python would take it for a namespace package."""
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "notes.txt").write_text("")
        with pytest.raises(ServerError, match="has no sglang"):
            self.ask(tmp_path)
