"""A run whose planted results are drawn on the miniature's own cortex."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nsdcap.errors import DataError
from nsdcap.nsd import NSD


@pytest.fixture(scope="session")
def drawn_run(tiny_tree, tmp_path_factory) -> Path:
    """Subjects 1 and 2 with subject 1's voxels and all figures; only subject 1 has a surface. Read only.

    z_v explains the early streams, z_B the higher ones: see ``test_aggregate.write_run``.
    """
    from test_aggregate import STATES, SUBJECTS, write_run

    from nsdcap import plots
    from nsdcap.aggregate import aggregate

    class OnlyFirst(NSD):
        def to_surface(self, subject, *rest):
            if subject != 1:
                raise DataError("lh.func1pt8-to-layerB1.mgz does not exist")
            return super().to_surface(subject, *rest)

    surfaces = OnlyFirst(tiny_tree)
    labels, affine = surfaces.roi(1)
    xyz = np.argwhere(labels > 0)
    voxels = {"xyz": xyz, "affine": affine, "shape": labels.shape, "stream": labels[tuple(xyz.T)]}
    folder = tmp_path_factory.mktemp("drawn")
    write_run(folder, SUBJECTS, STATES, voxels)
    target = folder / "aggregate"
    aggregate(folder, target, SUBJECTS, STATES, surfaces=surfaces, log=lambda line: None)
    plots.draw(folder, target, log=lambda line: None)
    return folder
