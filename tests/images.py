"""Images for tests: a tiny one in half a second, and the real one by way of a registry on loopback.

The real one is built by containers/build.sh on a Debian base with torch's CPU build, pushed to the
registry and pulled from it. What is slow to make and the same each time, the base and the wheels,
is kept in pytest's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN, BUILD, PUBLISH, WHEELS = (
    ROOT / "containers" / f"{name}.sh" for name in ("run", "build", "publish", "wheels")
)
REGISTRY_TOOLS = ("docker-registry", "skopeo", "umoci", "mmdebstrap")


@dataclass(frozen=True)
class TinyImage:
    """A SIF of empty folders, and the options of run.sh that bind this machine's programs into it."""

    sif: Path
    options: tuple[str, ...]

    def argv(self, *program: str, options: tuple[str, ...] = ()) -> list[str]:
        """run.sh's command line for a program inside."""
        return [str(RUN), "--image", str(self.sif), *self.options, *options, "--", *program]


@dataclass(frozen=True)
class Registry:
    """A registry on loopback: where it is, and the address of the Debian base in it."""

    host: str
    base: str
    cache: Path


def need(*tools: str) -> None:
    """Skip, loudly, where programs are missing or this is not root."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        pytest.skip(f"NO IMAGE IS TESTED: no {', '.join(missing)}; see containers/test-tools.sh")
    if "mmdebstrap" in tools and os.getuid() != 0:
        pytest.skip("NO IMAGE IS TESTED: the registry's base is made as root")


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> TinyImage:
    """An image in half a second: empty folders, with /usr, Python and nsdcap bound when it runs."""
    need("apptainer")
    folder = tmp_path_factory.mktemp("tiny image")
    tree, sif = folder / "tree", folder / "it's tiny.sif"
    for name in ("usr", "root", "tmp", "proc", "sys", "dev", "etc", "var/tmp", "home"):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group"):
        (tree / "etc" / name).touch()
    fast = "--mksquashfs-args=-comp zstd -Xcompression-level 1"
    built = subprocess.run(
        ["apptainer", "build", "--fakeroot", fast, str(sif), str(tree)],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        pytest.skip(f"NO IMAGE IS TESTED: apptainer cannot build here: {built.stderr[-800:]}")
    places = dict.fromkeys(["/usr", sys.base_prefix, sys.prefix, str(ROOT)])
    return TinyImage(sif, tuple(word for place in places for word in ("--bind", place)))


@contextmanager
def timed(config: pytest.Config, what: str) -> Iterator[None]:
    """Print how long a step took, past pytest's capture."""
    start = time.monotonic()
    yield
    # a worker of xdist has no terminal's reporter
    with config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n  {what}: {time.monotonic() - start:.0f} s", file=sys.stderr)


@pytest.fixture(scope="session")
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """A registry that has started and holds a Debian base; Apptainer's cache beside it."""
    need("apptainer", *REGISTRY_TOOLS)
    folder = tmp_path_factory.mktemp("registry")
    with timed(request.config, "a Debian base"):
        base = debian_base(request.config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "registry.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'store'}}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    with (folder / "log").open("w") as log:
        served = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "registry.yml")], stdout=log, stderr=log
        )
    try:
        wait_for(f"http://{host}/v2/")
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
        subprocess.run([*copy, f"oci:{base}:base", f"docker://{host}/base:12"], check=True)
        yield Registry(host, f"{host}/base:12", folder / "cache")
    finally:
        served.terminate()
        served.wait()
        shutil.rmtree(folder)


def wait_for(url: str) -> None:
    """Wait until an address answers."""
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers at {url}")


def debian_base(config: pytest.Config) -> Path:
    """An OCI layout with Debian 12 and its Python 3.11, from the mirror of this machine's sources."""
    kept = config.cache.mkdir("nsdcap-base")
    layout = kept / "oci"
    if (kept / "made").exists():
        return layout
    shutil.rmtree(layout, ignore_errors=True)
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian"]
    mirrors = subprocess.run(targets, capture_output=True, text=True).stdout.split()
    if not mirrors:
        pytest.skip("NO IMAGE IS TESTED: no Debian mirror among apt's sources")
    made = subprocess.run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--include=python3-venv",
         "--dpkgopt=path-exclude=/usr/share/doc/*", "bookworm", str(kept / "base.tar"), mirrors[0]],
        capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"NO IMAGE IS TESTED: Debian's packages cannot be had: {made.stderr[-800:]}")
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:base"], check=True)
    added = ["umoci", "raw", "add-layer", "--image", f"{layout}:base", kept / "base.tar"]
    subprocess.run(added, check=True, capture_output=True)
    (kept / "base.tar").unlink()
    (kept / "made").touch()
    return layout


def cpu_wheels(config: pytest.Config) -> Path:
    """The folder of a CPU image's wheels, by containers/wheels.sh."""
    said = [ROOT / "containers" / "constraints.txt", ROOT / "setup.cfg"]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in said)).hexdigest()[:12]
    kept = config.cache.mkdir("nsdcap-wheels")
    wheels, made = kept / key, kept / f"{key}.made"
    if not made.exists():
        shutil.rmtree(kept)
        kept.mkdir()
        env = {**os.environ, "PYTHON": sys.executable}
        subprocess.run([WHEELS, wheels], env=env, check=True, capture_output=True)
        made.touch()
    return wheels


@pytest.fixture(scope="session")
def built_image(
    request: pytest.FixtureRequest, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The image of this checkout, built and tested by containers/build.sh, with its record beside it."""
    with timed(request.config, "wheels, with torch's CPU build"):
        wheels = cpu_wheels(request.config)
    folder = tmp_path_factory.mktemp("image")
    image = folder / "nsdcap.sif"
    options = ["--base", registry.base, "--no-https", "--extras", "metrics", "--wheels", wheels]
    with timed(request.config, "containers/build.sh"):
        subprocess.run(
            [BUILD, *options, "--fakeroot", "--fast", image],
            env={**os.environ, "APPTAINER_CACHEDIR": str(registry.cache)},
            check=True,
        )
    yield image
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def pulled_image(request: pytest.FixtureRequest, built_image: Path, registry: Registry) -> Path:
    """The same image, published to the registry and pulled from it."""
    address = f"oras://{registry.host}/lab/nsdcap:test"
    with timed(request.config, "containers/publish.sh"):
        subprocess.run([PUBLISH, built_image, address, "--no-https"], check=True)
    pulled = built_image.with_name("pulled.sif")
    with timed(request.config, "apptainer pull"):
        pull = ["apptainer", "pull", "--disable-cache", "--no-https", str(pulled), address]
        subprocess.run(pull, check=True, capture_output=True)
    return pulled
