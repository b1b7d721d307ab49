"""Which GPUs are seen: tools are asked, then the kernel, and nothing that goes wrong there is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_dsr1.servers.accelerator import visible_gpus

from pytest_dsr1.servers import accelerator

H100 = "NVIDIA H100 80GB HBM3"
MI355X = "AMD Instinct MI355X"
GFX950 = "AMD gfx950 (MI350X/MI355X)"


class Machine:
    """A machine's tools and its kernel's files, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._bin = folder / "bin"
        self._bin.mkdir()

    def tool(self, name: str, output: str = "", script: str = "") -> None:
        """Install a tool that prints `output`, or runs `script`."""
        (self._bin / f"{name}.out").write_text(output, encoding="utf-8")
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{script or f'exec /bin/cat {self._bin}/{name}.out'}\n", encoding="utf-8")
        path.chmod(0o755)

    def amd_smi(self, *asics: dict[str, object], before: str = "", after: str = "") -> None:
        """Install an amd-smi that knows of these GPUs."""
        gpus = [{"gpu": number, "asic": asic} for number, asic in enumerate(asics)]
        self.tool("amd-smi", before + json.dumps({"gpu_data": gpus}, indent=4) + after)

    def file(self, path: str, text: str) -> None:
        """Write a file of the kernel's."""
        (self.root / path).parent.mkdir(parents=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def nvidia_driver(self, *names: str) -> None:
        """Load NVIDIA's driver."""
        for number, name in enumerate(names):
            text = f"Model: \t\t {name}\nIRQ:   \t\t 95\nGPU UUID: \t GPU-{number}\n"
            self.file(f"proc/driver/nvidia/gpus/0000:{number:02x}:00.0/information", text)

    def amd_driver(self, *versions: int) -> None:
        """Load AMD's driver."""
        for number, version in enumerate(versions):
            text = f"cpu_cores_count 0\ngfx_target_version {version}\nvendor_id 4098\n"
            self.file(f"sys/class/kfd/kfd/topology/nodes/{number}/properties", text)

    def sees(self, **variables: str) -> tuple[str, ...]:
        """What is visible there, with these variables set."""
        return visible_gpus({"PATH": str(self._bin), **variables}, self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One without tools, drivers or GPUs."""
    return Machine(tmp_path)


def asic(name: str = MI355X, target: str = "gfx950") -> dict[str, object]:
    """What amd-smi says of one chip."""
    return {"market_name": name, "vendor_id": "0x1002", "target_graphics_version": target}


class TestSources:
    """Who is asked, in which order."""

    def test_a_machine_without_any(self, machine: Machine) -> None:
        """Nothing to ask is no GPU."""
        assert machine.sees() == ()
        assert visible_gpus({}, machine.root) == ()

    def test_nvidia_smi(self, machine: Machine) -> None:
        """One name a line."""
        machine.tool("nvidia-smi", f"{H100}\n{H100}\n")
        assert machine.sees() == (H100, H100)

    def test_nvidia_smi_is_asked_for_names(self, machine: Machine) -> None:
        """And for nothing else, which would cost it time."""
        machine.tool("nvidia-smi", script='[ "$*" = "--query-gpu=name --format=csv,noheader" ] && echo NVIDIA B200')
        assert machine.sees() == ("NVIDIA B200",)

    def test_nvidia_driver(self, machine: Machine) -> None:
        """In a container without the tool, the driver's files are left."""
        machine.nvidia_driver(H100, "NVIDIA H200")
        assert machine.sees() == (H100, "NVIDIA H200")

    def test_amd_smi(self, machine: Machine) -> None:
        """Its object, or the bare list of ROCm 6, with warnings around it."""
        machine.amd_smi(asic(), asic(), before="WARNING: not in group [render]\n", after="\ndone\n")
        assert machine.sees() == (MI355X, MI355X)
        machine.tool("amd-smi", json.dumps([{"gpu": 0, "asic": asic()}]))
        assert machine.sees() == (MI355X,)

    def test_amd_smi_is_asked_for_chips(self, machine: Machine) -> None:
        """As JSON."""
        reply = json.dumps({"gpu_data": [{"asic": asic()}]})
        machine.tool("amd-smi", script=f"[ \"$*\" = 'static --asic --json' ] && echo '{reply}'")
        assert machine.sees() == (MI355X,)

    @pytest.mark.parametrize("name", ["N/A", "AMD Radeon Graphics", ""])
    def test_a_chip_without_a_name_is_known_by_its_target(self, machine: Machine, name: str) -> None:
        """Old drivers have a generic name, partitions none."""
        machine.amd_smi(asic(name), asic(name, "gfx942:sramecc+:xnack-"), asic(name, "gfx1201"))
        assert machine.sees() == (GFX950, "AMD gfx942 (MI300A/MI300X/MI325X)", "AMD gfx1201")

    def test_amd_driver(self, machine: Machine) -> None:
        """Node 0 is a CPU; nodes are counted as numbers are."""
        machine.amd_driver(0, *[90500] * 9, 90010, 90402)
        assert machine.sees() == (*[GFX950] * 9, "AMD gfx90a (MI210/MI250/MI250X)", "AMD gfx942 (MI300A/MI300X/MI325X)")


class TestTrouble:
    """Whatever a tool does, the next source is asked."""

    @pytest.mark.parametrize(
        "script",
        [
            pytest.param("exit 9", id="fails"),
            pytest.param(f"echo {H100}; exit 9", id="fails-after-all"),
            pytest.param("echo No devices were found", id="sees-none"),
            pytest.param("echo 'NVIDIA-SMI has failed: no driver.'", id="complains"),
            pytest.param(r"printf '\377\376\000'", id="garbage"),
            pytest.param(":", id="silent"),
        ],
    )
    def test_nvidia_smi(self, machine: Machine, script: str) -> None:
        """The driver knows."""
        machine.tool("nvidia-smi", script=script)
        machine.nvidia_driver("NVIDIA H200")
        assert machine.sees() == ("NVIDIA H200",)

    @pytest.mark.parametrize(
        "output",
        [
            "", "[", "{}", "[]", "3", '{"gpu_data": 3}', "[[]]", '[{"asic": 3}]',
            '[{"asic": {"market_name": "N/A"}}]', '[{"asic": {"target_graphics_version": 9}}]', "[" * 99_999,
        ],
    )  # fmt: skip
    def test_amd_smi(self, machine: Machine, output: str) -> None:
        """The driver knows."""
        machine.tool("amd-smi", output)
        machine.amd_driver(0, 90500)
        assert machine.sees() == (GFX950,)

    def test_a_tool_that_hangs(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is ended."""
        monkeypatch.setattr(accelerator, "TIMEOUT_S", 0.1)
        machine.tool("nvidia-smi", script="exec /bin/sleep 60")
        machine.nvidia_driver(H100)
        assert machine.sees() == (H100,)

    def test_a_tool_that_cannot_be_run(self, machine: Machine) -> None:
        """Of another architecture, say."""
        machine.tool("nvidia-smi")
        (machine._bin / "nvidia-smi").write_bytes(b"\x7fELF")
        machine.nvidia_driver(H100)
        assert machine.sees() == (H100,)

    def test_a_driver_that_says_little(self, machine: Machine) -> None:
        """A file without the line is no GPU."""
        machine.file("proc/driver/nvidia/gpus/0/information", "Model:\n")
        machine.file("sys/class/kfd/kfd/topology/nodes/0/properties", "gfx_target_version x\n")
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
        machine.tool("nvidia-smi", "A1\nB2\nC3\n")
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
        machine.tool("nvidia-smi", H100)
        assert machine.sees(HIP_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="-1") == (H100,)

    def test_nobody_is_asked_about_what_is_hidden(self, machine: Machine, tmp_path: Path) -> None:
        """A tool costs a second or two."""
        for name in ("nvidia-smi", "amd-smi"):
            machine.tool(name, script=f": > {tmp_path}/asked")
        assert machine.sees(CUDA_VISIBLE_DEVICES="") == ()
        assert not (tmp_path / "asked").exists()

    @given(st.text(), st.text())
    def test_no_value_is_an_error(self, tmp_path_factory: pytest.TempPathFactory, rocr: str, hip: str) -> None:
        """At most as many are left as are named."""
        folder = tmp_path_factory.getbasetemp() / "hidden"
        if not folder.exists():
            folder.mkdir()
            Machine(folder).amd_driver(90500, 90402)
        seen = visible_gpus({"ROCR_VISIBLE_DEVICES": rocr, "HIP_VISIBLE_DEVICES": hip}, folder / "root")
        assert len(seen) <= len(hip.split(","))
