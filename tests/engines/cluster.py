"""A Slurm cluster on one machine: a controller and three nodes, on loopback, with a munge of its own. Debian: slurm-wlm, munge."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ["slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue"]
NODES = ["n1", "n2", "n3"]

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=3
MinJobAge=600
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2,requeue_delay=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
JobRequeue=1
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Programs that are not there."""
    return [name for name in NEEDED if not shutil.which(name)]


class Cluster:
    def __init__(self, folder, port=26817):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "log", *[f"spool.{node}" for node in NODES]):
            (folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        places = {"folder": folder, "host": host, "port": port, "first": port + 1, "last": port + 3}
        (folder / "slurm.conf").write_text(CONFIG.format(**places))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        folder.chmod(0o755)
        munge = ["--force", f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
        self.run("munged", *munge, f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed")
        self.run("slurmctld", "-c")
        for node in NODES:
            self.run("slurmd", "-N", node)
        self.until(lambda: len(self.output("sinfo", "-h", "-N", "-t", "idle", "-o", "%n").split()) == len(NODES), 60)

    def run(self, *words):
        subprocess.run(words, env=self.environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def output(self, *words):
        return subprocess.run(words, env=self.environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def until(self, happened, seconds):
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                log = (self.folder / "log" / "slurmctld.log").read_text()[-3000:]
                raise TimeoutError(f"{self.output('squeue', '-r')}\n{log}")
            time.sleep(0.2)

    def jobs(self, state):
        """The jobs in a state."""
        return self.output("squeue", "-h", "-r", "-t", state, "-o", "%i").split()

    def lose(self, node):
        """Ends a node as a power cut does: its daemon, and all that it started."""
        daemon = int((self.folder / f"slurmd.{node}.pid").read_text())
        for process in [daemon, *of_node(node)]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # Slurm would see it by itself, half a minute later.
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def stop(self):
        names = ["slurmctld", *[f"slurmd.{node}" for node in NODES], "munged"]
        for name in names:
            try:
                os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                pass


def running(word):
    """Stops the first process of a job that has this word among its own; the job and its node, or none."""
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or word.encode() not in (folder / "cmdline").read_bytes().split(b"\0"):
                continue
            pairs = [line.partition(b"=") for line in (folder / "environ").read_bytes().split(b"\0")]
            variables = {name.decode(): value.decode(errors="replace") for name, _, value in pairs}
            if "SLURMD_NODENAME" in variables and "SLURM_ARRAY_TASK_ID" in variables:
                os.kill(int(folder.name), signal.SIGSTOP)
                job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
                return job, variables["SLURMD_NODENAME"]
        except OSError:
            continue
    return None


def of_node(node):
    """What runs for jobs on a node, and the processes of Slurm that watch over it."""
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if f"SLURMD_NODENAME={node}".encode() not in variables:
                continue
            found.add(int(folder.name))
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if (Path("/proc") / str(parent) / "comm").read_text().startswith("slurmstepd"):
                found.add(parent)
        except OSError:
            continue
    return found
