"""scripts/setup, scripts/build and scripts/format in a clone on a machine that has no network, as an image for training is:
what only helps is done without, what is needed is named, and a table says which is which.

.venv/bin/python tests/faults/setup_test.py
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDED = ["g++", "ninja", "mpicxx", "mpirun"]
HELPS = ["ccache"]
NOWHERE = "http://127.0.0.1:9"


def nvcc():
    """That of the machine, or of the wheels of this Python."""
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if pathlib.Path(found).exists():
        return found
    return str(pathlib.Path(importlib.util.find_spec("nvidia.cu13").submodule_search_locations[0]) / "bin" / "nvcc")


class SetupTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.clone = self.folder / "clone"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(self.clone)], check=True)
        # What the working tree has and the last commit has not.
        for name in ("scripts", "cmake", "CMakeLists.txt", "tests/CMakeLists.txt"):
            source, target = ROOT / name, self.clone / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, target, **({"dirs_exist_ok": True} if source.is_dir() else {}))
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for folder in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"):
            for path in sorted(pathlib.Path(folder).glob("*")) if pathlib.Path(folder).is_dir() else ():
                if not (self.bin / path.name).exists() and os.access(path, os.X_OK):
                    (self.bin / path.name).symlink_to(path)
        self.script("apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
        self.script("python3", f'exec "{sys.executable}" "$@"')

    def script(self, name, text):
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def without(self, *names):
        for name in names:
            (self.bin / name).unlink(missing_ok=True)

    def call(self, *command, expect, **environment):
        clean = {k: v for k, v in os.environ.items() if k not in ("CMAKE_PREFIX_PATH", "VIRTUAL_ENV", "MOETUNE_PYTHON")}
        ended = subprocess.run(
            command,
            cwd=self.clone,
            env=clean
            | {"PATH": str(self.bin), "CUDACXX": nvcc(), "PIP_INDEX_URL": NOWHERE, "PIP_CONFIG_FILE": os.devnull}
            | {"http_proxy": NOWHERE, "https_proxy": NOWHERE}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        self.assertEqual(ended.returncode, expect, ended.stdout[-3000:])
        return ended.stdout

    def rows(self, output):
        """The table: {part: what stands in its last column}."""
        return {line[2:24].strip(): line[51:].strip() for line in output.splitlines() if line.startswith("  ")}

    def test_what_only_helps_is_done_without(self):
        self.without(*HELPS)
        output = self.call("scripts/setup", expect=0)
        rows = self.rows(output)
        self.assertEqual(rows["ccache"], "missing: only helps", output)
        self.assertIn("pyarrow", rows, output)
        self.assertRegex(rows["torch"], r"^2\.11\.0 in /")
        for part in ("g++", "openmpi-bin", "nvcc", "cmake", "NCCL"):
            self.assertRegex(rows[part], r"^/|^\.venv|^2\.", part)
        self.assertIn("all that is needed is there", output)
        again = self.call("scripts/setup", expect=0)  # nothing is installed twice
        self.assertNotIn("installing into", again)
        # The same machine lays out no code: that is said, and no test fails of it.
        (self.clone / ".venv" / "bin" / "ruff").unlink(missing_ok=True)
        self.assertIn("scripts/setup --dev", self.call("scripts/format", "--check", expect=77))
        self.assertIn("scripts/setup --dev", self.call("scripts/format", expect=2))

    def test_what_is_needed_is_named(self):
        self.without("ninja", *HELPS)
        output = self.call("scripts/setup", expect=2)
        self.assertEqual(self.rows(output)["ninja-build"], "missing: needed", output)
        self.assertIn("missing: ninja-build", output)
        self.assertRegex(self.rows(output)["g++"], "^/")

    def test_a_python_without_torch(self):
        """Nothing can be had: the Python parts are named too."""
        base = f"{sys.base_prefix}/bin/python3"
        if subprocess.run([base, "-c", "import ensurepip"], capture_output=True).returncode:
            self.skipTest(f"{base} makes no virtual environments")
        output = self.call("scripts/setup", expect=2, PYTHON=base)
        self.assertEqual(self.rows(output)["torch"], "missing: needed", output)
        self.assertIn("text cannot be prepared", self.rows(output)["tokenizers"])
        self.assertRegex(output, "missing: .*torch")

    def test_build_without_venv_takes_the_machines_tools(self):
        """Configures and would build: ninja itself is asked only what CMake asks it."""
        self.without(*HELPS)
        cmake = pathlib.Path(sys.executable).parent / "cmake"
        self.script("cmake", f'exec "{cmake if cmake.exists() else shutil.which("cmake")}" "$@"')
        ninja = shutil.which("ninja")
        self.script(
            "ninja", f'case "$*" in *" all" | *" moetune") echo "would build"; exit 0;; esac\nexec {ninja} "$@"'
        )
        self.script("nvidia-smi", 'case "$*" in *compute_cap*) echo 9.0; echo 8.9; echo 9.0;; esac')
        configured = self.clone / "build" / "configure.log"
        self.assertIn("would build", self.call("scripts/build", expect=0, MOETUNE_CUDA_ARCHS=""))
        self.assertIn("GPU architectures: 90a;89\n", configured.read_text())
        self.assertIn("would build", self.call("scripts/build", expect=0, MOETUNE_CUDA_ARCHS="86,90a"))
        self.assertFalse((self.clone / ".venv").exists())
        self.assertIn("GPU architectures: 86;90a\n", configured.read_text())
        flags = (self.clone / "build" / "build.ninja").read_text()
        self.assertIn("compute_86", flags)
        self.assertIn("compute_90a", flags)
        self.assertNotIn("compute_80", flags)
        output = self.call("scripts/build", expect=1, MOETUNE_CUDA_ARCHS="75")
        self.assertIn("'75' is no architecture of 80 or later", output)
        self.without("cmake")
        self.assertIn("scripts/setup", self.call("scripts/build", expect=2))


if __name__ == "__main__":
    unittest.main(verbosity=2)
