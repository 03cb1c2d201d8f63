from __future__ import annotations
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Resources:
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time_minutes: int = 30
    memory_gb: int = 2
    cpus: int = 1
    gpus: int = 0
    gres: str = ""
    parallel: int = 0
    extra: dict = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        return bool(self.gpus or self.gres)


@dataclass(frozen=True)
class Site:
    image: str = ""
    binds: tuple[str, ...] = ()
    cache: str = ""
    setup: tuple[str, ...] = ()
    nv: bool = True
    max_array: int = 0
    retries: int = 3
    timeouts: int = 8
    signal_seconds: int = 60


def load(path: Path) -> Site:
    return Site()


def resources(stage: str, costs: Any, site: Site, memory: int = 0, time: int = 0) -> Resources:
    return Resources()
