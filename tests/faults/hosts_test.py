"""Three hosts: network namespaces with names of their own, started by mpirun through an agent instead of ssh.

    .venv/bin/python tests/faults/hosts_test.py [BUILD_FOLDER]       # as root

Each "host" has its network, its name and its folder for temporary files, so that Open MPI finds three machines: TCP
between them, shared memory within. Exit code 77, which ctest shows as skipped, where the kernel does not allow that.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun

SUBNET = "10.213.77"
HOSTS = {f"mthost{i}": f"{SUBNET}.{10 + i}" for i in (1, 2, 3)}
BRIDGE = "mtbr0"
# What ssh would be: AGENT HOST COMMAND..., the command in a shell of that host. A TMPDIR of its own keeps Open MPI's
# sessions apart.
AGENT = """#!/bin/sh
host=$1; shift
export TMPDIR={folder}/tmp-$host
mkdir -p $TMPDIR
exec ip netns exec $host unshare --uts sh -c "hostname $host; exec $*"
"""


def do(command, check=True):
    return subprocess.run(command.split(), check=check, capture_output=True, text=True)


def make_hosts():
    """One bridge, a cable to each namespace. The bridge has an address too: mpirun stands outside of the three."""
    do(f"ip link add {BRIDGE} type bridge")
    do(f"ip addr add {SUBNET}.1/24 dev {BRIDGE}")
    do(f"ip link set {BRIDGE} up")
    for host, address in HOSTS.items():
        do(f"ip netns add {host}")
        do(f"ip link add v{host} type veth peer name eth0 netns {host}")
        do(f"ip link set v{host} master {BRIDGE} up")
        for device in ("lo", "eth0"):
            do(f"ip -n {host} link set {device} up")
        do(f"ip -n {host} addr add {address}/24 dev eth0")


def remove_hosts():
    for host in HOSTS:
        do(f"ip netns del {host}", check=False)
    do(f"ip link del {BRIDGE}", check=False)


class HostsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.addClassCleanup(remove_hosts)
        remove_hosts()
        make_hosts()
        agent = cls.folder / "agent"
        agent.write_text(AGENT.format(folder=cls.folder))
        agent.chmod(0o755)
        hostfile = cls.folder / "hosts"
        hostfile.write_text("".join(f"{host} slots=2\n" for host in HOSTS))
        cls.mpirun = [
            "mpirun",
            "--allow-run-as-root",
            "--hostfile",
            str(hostfile),
            "--map-by",
            "slot",
            "--bind-to",
            "none",
            "--mca",
            "plm",
            "rsh",
            "--mca",
            "plm_rsh_agent",
            str(agent),
            "--mca",
            "plm_rsh_no_tree_spawn",
            "1",
            "--mca",
            "oob_tcp_if_include",
            f"{SUBNET}.0/24",
            "--mca",
            "btl_tcp_if_include",
            f"{SUBNET}.0/24",
            "--mca",
            "btl",
            "self,vader,tcp",
            "--mca",
            "orte_keep_fqdn_hostnames",
            "1",
        ]

    def launch(self, arguments, ranks=6):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMIX", "PRTE"))} | {
            "OMP_NUM_THREADS": "1"
        }
        return subprocess.Popen(
            [*self.mpirun, "-np", str(ranks), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def test_places_on_hosts(self):
        """Six ranks, two on each host: the number within the host is what chooses the GPU."""
        script = "echo $(hostname) $OMPI_COMM_WORLD_RANK $OMPI_COMM_WORLD_LOCAL_RANK"
        output, _ = self.launch(["sh", "-c", script]).communicate(timeout=60)
        places = sorted(line.split() for line in output.splitlines() if line.startswith("mthost"))
        self.assertEqual(places, [[f"mthost{1 + rank // 2}", str(rank), str(rank % 2)] for rank in range(6)], output)

    def run_(self, name, **changes):
        return TinyRun(self.folder / name, **{"mesh.ep": 2, "train.steps": 20, "train.batch": 6} | changes)

    def test_training_is_that_of_one_host(self):
        """Experts on the ranks of a host, and on ranks of two hosts: tokens cross between hosts."""
        for ep, ranks in ((2, 6), (4, 4)):
            with self.subTest(ep=ep):
                one = self.run_(f"one{ep}", **{"mesh.ep": ep})
                one.finish(ranks)
                three = self.run_(f"three{ep}", **{"mesh.ep": ep})
                process = self.launch(three.arguments("train"), ranks)
                output, _ = process.communicate(timeout=240)
                self.assertEqual(process.returncode, 0, output)
                self.assertEqual(len(three.losses()), 20)
                # Open MPI may sum in another order between hosts than within one.
                for step, loss in one.losses().items():
                    self.assertAlmostEqual(three.losses()[step], loss, delta=1e-4 * abs(loss))

    def test_a_stall_is_told_with_its_host(self):
        run = self.run_("stalled", **{"train.steps": 100000, "run.stall_timeout_s": 4})
        process = self.launch(run.arguments("train"))
        self.addCleanup(process.kill)
        run.wait_for_step(3, process)
        pids = subprocess.run(["ip", "netns", "pids", "mthost3"], capture_output=True, text=True).stdout.split()
        ranks = {}
        for pid in pids:
            environment = dict(
                item.split("=", 1)
                for item in pathlib.Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                if "=" in item
            )
            if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "moetune":
                ranks[int(environment["OMPI_COMM_WORLD_RANK"])] = int(pid)
        self.assertEqual(sorted(ranks), [4, 5])
        os.kill(ranks[5], signal.SIGSTOP)
        start = time.time()
        output, _ = process.communicate(timeout=60)
        self.assertLess(time.time() - start, 30, output)
        self.assertEqual(process.returncode, 5, output)
        self.assertEqual(output.count("error: "), 1, output)
        self.assertRegex(output, rf"error: rank 5 of 6 \(host mthost3, process {ranks[5]}\) silent for \d+ s")
        self.assertNotIn("cannot reach", output)


if __name__ == "__main__":
    refusal = "it needs root" if os.geteuid() != 0 else ""
    if not refusal and not shutil.which("ip"):
        sys.exit("ip (Debian package iproute2) is missing: scripts/setup --dev")
    if not refusal:
        tried = do("ip netns add mtprobe", check=False)
        refusal = (
            tried.stderr.strip()
            or do("ip netns exec mtprobe unshare --uts hostname mtprobe", check=False).stderr.strip()
        )
        do("ip netns del mtprobe", check=False)
    if refusal:
        print(f"SKIPPED: several hosts are not tested, network namespaces are not to be had here: {refusal}")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not pathlib.Path(a).is_dir())])
