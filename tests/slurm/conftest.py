"""A real Slurm of two nodes on this machine, for the tests in this folder.

They take a cluster and over a minute, so they run only where they are asked for: by this folder's name on
the command line (`pytest tests/slurm`), or by MIM_BENCH_SLURM=1 (`make test` with the rest). Where Slurm
can neither be found nor installed they are skipped; with MIM_BENCH_REQUIRE_SLURM=1 they fail instead.
"""

import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import submitit

HERE = Path(__file__).parent
T = TypeVar("T")
SCRIPT = HERE / "slurm_local.sh"
CANNOT = 3  # exit status of both scripts: no Slurm can be had here


def wanted(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    named = (config.invocation_params.dir / arg.split("::")[0] for arg in config.args)
    asked = any(HERE in (path.resolve(), *path.resolve().parents) for path in named)
    asked = asked or wanted("MIM_BENCH_SLURM") or wanted("MIM_BENCH_REQUIRE_SLURM")
    return None if asked else True


@dataclasses.dataclass(frozen=True)
class Slurm:
    """The running cluster. Partition `high` preempts `main`, the default (USR2, 20 s, requeue)."""

    folder: Path
    nodes: tuple[str, ...]
    cpus_per_node: int
    gpus_per_node: int
    max_array_size: int
    """Most tasks of one array: kept small, so that arrays have to be split."""

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    def command(self, *args: object) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, args))}: {done.stderr.strip()}")
        return done.stdout

    def scontrol(self, *args: object) -> str:
        return self.command("scontrol", *args)

    def squeue(self, *args: object) -> list[dict[str, str]]:
        """One dict per job or array task, by default of those that wait or run."""
        fields = {"id": "%i", "state": "%T", "partition": "%P", "nodes": "%N", "reason": "%r"}
        fields |= {"time": "%M", "name": "%j"}  # a name may hold anything: last
        lines = self.command("squeue", "-hr", *args, "-o", "|".join(fields.values())).splitlines()
        return [dict(zip(fields, line.split("|", len(fields) - 1), strict=True)) for line in lines]

    def states(self, job_id: object) -> dict[str, str]:
        """State by job or array task, finished ones too. As slurmctld has it; sacct may lag by 5 s."""
        return {job["id"]: job["state"] for job in self.squeue("-t", "all", "-j", job_id)}

    def wait_for(self, predicate: Callable[[], T], timeout_s: float = 60) -> T:
        """The first true value of `predicate`."""
        end = time.monotonic() + timeout_s
        while not (value := predicate()):
            if time.monotonic() > end:
                queue = self.command("squeue", "-r", "-t", "all")
                raise TimeoutError(f"not within {timeout_s:g} s; squeue says:\n{queue}")
            time.sleep(0.1)
        return value

    def executor(self, folder: Path, **parameters: Any) -> submitit.AutoExecutor:
        """submitit's, for this cluster; `folder` must be fresh, for job ids name the files in it."""
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**{"timeout_min": 60, **parameters})
        return executor

    def results(self, job: submitit.Job[Any], timeout_s: float = 60) -> list[Any]:
        """What every task returned. submitit's own `results()` would wait for ever."""
        self.wait_for(job.done, timeout_s)
        return job.results()

    def result(self, job: submitit.Job[Any], timeout_s: float = 60) -> Any:
        return self.results(job, timeout_s)[0]


def unavailable(reason: str) -> NoReturn:
    if wanted("MIM_BENCH_REQUIRE_SLURM"):
        pytest.fail(f"MIM_BENCH_REQUIRE_SLURM is set: {reason}")
    pytest.skip(reason)


def call(script: Path, *args: object, logs: Path | None = None) -> None:
    done = subprocess.run([script, *map(str, args)], capture_output=True, text=True)
    said = [done.stdout.strip(), done.stderr.strip()]
    if done.returncode == CANNOT:
        unavailable("".join(said))
    if done.returncode:
        for log in sorted(logs.iterdir()) if logs and logs.is_dir() else []:
            said += [f"== {log.name}", *log.read_text(errors="replace").splitlines()[-5:]]
        said.insert(0, f"{script.name} {' '.join(map(str, args))}: exit {done.returncode}")
        pytest.fail("\n".join(said))


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster, the same for all tests; os.environ leads to it until the end."""
    call(HERE / "install.sh")
    slurm = Slurm(
        folder=Path(tempfile.mkdtemp(prefix="slurm.", dir="/tmp")),  # short, for unix sockets
        nodes=("127.0.0.11", "127.0.0.12"),
        cpus_per_node=4,
        gpus_per_node=2,
        max_array_size=5,
    )
    with pytest.MonkeyPatch.context() as patch:
        # nothing of a Slurm around us: neither its job, if we are one, nor settings for other clusters
        for name in list(os.environ):
            if name.startswith(("SLURM", "SBATCH_", "SRUN_", "SUBMITIT_")):
                patch.delenv(name)
        patch.setenv("SLURM_CONF", str(slurm.conf))
        patch.setenv("SLURM_LOCAL_DIR", str(slurm.folder))
        patch.setenv("SLURM_LOCAL_NODES", str(len(slurm.nodes)))
        patch.setenv("SLURM_LOCAL_CPUS", str(slurm.cpus_per_node))
        patch.setenv("SLURM_LOCAL_GPUS", str(slurm.gpus_per_node))
        patch.setenv("SLURM_LOCAL_MAX_ARRAY", str(slurm.max_array_size))
        # jobs inherit these: they can import the test modules (`slurm.test_x`), and many fit on few cores
        patch.setenv("PYTHONPATH", str(HERE.parent), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # each job would compile torch anew
        # submitit by default asks sacct ever more seldom, and waits 15 s for a dead job's result
        patch.setattr(submitit.SlurmJob.watcher, "_delay_s", 1)
        patch.setattr(submitit.SlurmJob, "_results_timeout_s", 2)
        submitit.SlurmJob.watcher.clear()
        # the cluster must not outlive these tests, even if they are killed
        guard = subprocess.Popen(
            [SCRIPT, "guard", slurm.folder, str(os.getpid())],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            call(SCRIPT, "start", slurm.folder, logs=slurm.logs)
            yield slurm
        finally:  # should this be cut off as well, the guard does it
            if (slurm.folder / "settings").exists():
                subprocess.run([SCRIPT, "stop", slurm.folder], capture_output=True, check=True)
            shutil.rmtree(slurm.folder)
            guard.kill()
            guard.wait()
