"""A SLURM cluster of three nodes on this machine for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import loopback
import pytest
import runs


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[loopback.Cluster]:
    """The cluster, with SLURM_CONF and PATH set so that SLURM's commands and submitit meet it."""
    with pytest.MonkeyPatch.context() as patch:
        # a system's folders are not on everybody's PATH
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin")
        if why := loopback.missing():
            warnings.warn(f"NOTHING IS CHECKED ON A REAL SLURM: {why}", stacklevel=1)
            pytest.skip(f"NOT CHECKED on a real SLURM: {why}")
        # of a SLURM job or a site around these tests
        for name in [n for n in os.environ if n.startswith(("SLURM", "SBATCH", "SQUEUE"))]:
            patch.delenv(name)
        # not pytest's own temporary folder: sockets' names must be short
        folder = Path(tempfile.mkdtemp(prefix="testcluster-", dir="/tmp"))
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        failed = request.session.testsfailed
        try:
            yield loopback.start(folder, 3)
        finally:
            loopback.stop(folder)
            if request.session.testsfailed > failed:
                print(f"logs of the test cluster: {folder}/log")
            else:
                shutil.rmtree(folder)


@pytest.fixture
def idle_cluster(cluster: loopback.Cluster) -> loopback.Cluster:
    """The same, all nodes up and idle, whatever the test before did to it."""
    cluster.reset()
    return cluster


@pytest.fixture(scope="session")
def reference(
    cluster: loopback.Cluster, tiny_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> runs.Reference:
    """The quick run in one process. Read only; made only where there is a cluster to compare with."""
    return runs.Reference.make(tiny_tree, tmp_path_factory.mktemp("inline") / "out")


@pytest.fixture
def begin(
    idle_cluster: loopback.Cluster, reference: runs.Reference, tmp_path: Path
) -> Callable[..., runs.Run]:
    """A function of the cells whose results are missing, to a run that stands so."""
    return partial(runs.Run.begin, idle_cluster, reference, tmp_path)
