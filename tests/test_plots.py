"""Figures of a run whose results are planted: what they show, that they come out the same, what they refuse."""

from __future__ import annotations

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_aggregate import ADDS, SUBJECTS

from nsdcap import plots, plots_captions, plots_encoding, plots_mesh, plots_run, plots_turning
from nsdcap.config import STREAMS
from nsdcap.errors import DataError, UsageError
from nsdcap.miniature import cortex
from nsdcap.nsd import NSD

FILES = {
    "3": ["fig3_captions"],
    "4": ["fig4_reconstructions", "figB1_subj01", "figB1_subj02"],
    "maps": ["fig5_cortex", "fig5_flat", "fig5_streams", "fig5_volume"],
    "6": ["fig6_layers"],
    "7": ["fig7_best_layer", "fig7_flat", "fig7_streams", "fig7_volume"],
    "gain": ["fig8_gain", "fig8_volume"],
    "alpha": ["fig9_alpha"],
    "10": ["fig10_ceiling"],
    "cortex": ["cortex"],
}
# Machado, Oliveira and Fernandes 2009: linear RGB as seen without one kind of cone
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def out(drawn_run) -> Path:
    return drawn_run


@pytest.fixture(scope="module")
def planted(drawn_run) -> plots_run.Run:
    return plots_run.open_run(drawn_run, drawn_run / "aggregate")


def copied(out: Path, to: Path) -> Path:
    """A copy whose results are links, to be removed but not written to; run.json and figures are its own."""
    for name in ("caption", "prepare", "reconstruct", "aggregate"):
        shutil.copytree(out / name, to / name, copy_function=lambda a, b: Path(b).symlink_to(a))
    shutil.rmtree(to / "aggregate/figures")
    (to / "aggregate/run.json").unlink()
    shutil.copy(out / "aggregate/run.json", to / "aggregate/run.json")
    return to / "aggregate"


@pytest.mark.parametrize("figure", FILES)
def test_each_figure_alone_comes_out_the_same(out, figure, capsys):
    folder = out / "aggregate/figures"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert plots.main([str(out), "--figure", figure]) == 0
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert {name: bytes_ for name, (_, bytes_) in after.items()} == {
        name: bytes_ for name, (_, bytes_) in before.items()
    }
    drawn = {name for name, (time, _) in after.items() if time != before[name][0]}
    suffixes = (".html",) if figure == "cortex" else (".png", ".svg")
    assert drawn - {"figures.json"} == {name + s for name in FILES[figure] for s in suffixes}
    assert all(name in capsys.readouterr().out for name in FILES[figure][:1])


def test_the_listing_is_of_all_figures_in_order(out):
    listing = json.loads((out / "aggregate/figures/figures.json").read_text())
    names = [name for figure, names in FILES.items() if figure != "cortex" for name in names]
    assert sorted(entry["name"] for entry in listing) == sorted(names)
    assert [entry["number"] for entry in listing] == sorted(entry["number"] for entry in listing)
    assert all(len(entry["alt"]) > 30 and len(entry["caption"]) > 60 for entry in listing)


def test_who_has_no_surface_is_drawn_in_the_volume_and_the_captions_say_so(out):
    listing = json.loads((out / "aggregate/figures/figures.json").read_text())
    captions = {entry["name"]: entry["caption"] for entry in listing}
    for name in ("fig5_cortex", "fig5_flat", "fig7_best_layer", "fig8_gain"):
        assert "Subject 2: no surface, see the projections" in captions[name]
    for name in ("fig5_volume", "fig7_volume", "fig8_volume"):
        assert "transforms to the surface are missing for subject 2" in captions[name]
    assert "as the mean along" in captions["fig7_volume"]  # the highest layer would flatter
    about = json.loads((out / "aggregate/run.json").read_text())
    assert f"of {about['counts']['1']['n_voxels']} voxels" in captions["fig5_cortex"]


def test_a_stale_figure_goes_and_one_that_fails_stays(out, tmp_path, capsys):
    target = copied(out, tmp_path)
    plots.draw(tmp_path, target, ("gain", 4, "cortex"), quiet)
    folder = target / "figures"
    assert (folder / "cortex.html").exists()
    about = json.loads((target / "run.json").read_text())
    (target / "run.json").write_text(json.dumps(about | {"on_surface": [], "no_stimuli": True}))
    plots.draw(tmp_path, target, ("gain", 4, "cortex"), quiet)
    assert {path.name for path in folder.iterdir()} == {
        "fig8_volume.png", "fig8_volume.svg", "figures.json",
    }  # fmt: skip
    assert [entry["name"] for entry in json.loads((folder / "figures.json").read_text())] == [
        "fig8_volume"
    ]
    plots.draw(tmp_path, target, (9,), quiet)
    (target / "tables/alphas.csv").unlink()
    assert plots.main([str(tmp_path), "--figure", "9"]) == 65
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "tables/alphas.csv: cannot be read (No such file or directory); run the aggregate stage"
        in said
    )
    assert (folder / "fig9_alpha.png").exists()
    assert "fig9_alpha" in (folder / "figures.json").read_text()


def gone_table(out: Path) -> None:
    (out / "aggregate/tables/encoding.csv").unlink()


def gone_map(out: Path) -> None:
    (out / "aggregate/maps/subj02/z_v_r.nii.gz").unlink()


def gone_surface(out: Path) -> None:
    (out / "aggregate/maps/subj01/fsaverage5/rh.gain.func.gii").unlink()


def gone_pictures(out: Path) -> None:
    (out / "reconstruct/subj01.h5").unlink()


def gone_captions(out: Path) -> None:
    (out / "caption/subj02.json").unlink()


@pytest.mark.parametrize(
    ("harm", "figure", "words"),
    [
        (gone_table, 6, r"encoding\.csv: cannot be read .*run the aggregate stage"),
        (gone_map, 10, "z_v_r.nii.gz: missing; run the aggregate stage"),
        (gone_surface, "cortex", "rh.gain.func.gii: missing; run the aggregate stage"),
        (gone_pictures, 4, "reconstruct/subj01.h5: cannot be read.*run the reconstruct stage"),
        (gone_captions, 3, "caption/subj02.json: cannot be read; run the caption stage"),
    ],
)
def test_what_is_missing_is_named(out, tmp_path, harm, figure, words):
    copied(out, tmp_path)
    harm(tmp_path)
    with pytest.raises(DataError, match=words):
        plots.draw(tmp_path, tmp_path / "aggregate", (figure,), quiet)


@pytest.mark.parametrize(
    ("name", "content", "figure", "words"),
    [
        ("run.json", b'{"subj', 6, "run.json: broken"),
        ("run.json", b"[]", 6, "run.json: lacks subjects, layers"),
        ("tables/encoding.csv", b"a,b\n1,2\n", 6, "encoding.csv: lacks subject, roi"),
        ("tables/encoding.csv", b"\xff\xfe", 6, "encoding.csv: broken"),
        ("maps/subj01/ceiling.nii.gz", b"no gzip", 10, "ceiling.nii.gz: broken"),
        ("maps/subj01/ceiling.nii.gz", 300, 10, "ceiling.nii.gz: broken"),
        ("maps/subj01/fsaverage5/lh.gain.func.gii", 300, 8, "lh.gain.func.gii: broken"),
        ("figures/figures.json", b"[{", 6, "figures.json: broken"),
    ],
)
def test_what_is_broken_is_one_line(out, tmp_path, capsys, name, content, figure, words):
    """``content``: bytes that stand there, or how many of it are left."""
    path = copied(out, tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    left = path.read_bytes()[:content] if isinstance(content, int) else content
    path.unlink(missing_ok=True)  # it may be a link to what all tests read
    path.write_bytes(left)
    assert plots.main([str(tmp_path), "--figure", str(figure)]) == 65
    said = capsys.readouterr().err
    assert said.startswith("nsdcap.plots: ")
    assert words in said
    assert said.count("\n") == 1


def test_a_file_in_the_place_of_the_figures_is_one_line(out, tmp_path, capsys):
    (copied(out, tmp_path) / "figures").write_text("")
    assert plots.main([str(tmp_path), "--figure", "6"]) == 2
    assert "aggregate/figures: cannot be written (File exists)" in capsys.readouterr().err


def test_unknown_figures_and_runs_are_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"found 11, expected some of 3 \(captions\).*cortex"):
        plots.draw(tmp_path, tmp_path / "aggregate", (11,))
    assert plots.main([str(tmp_path), "--figure", "nine"]) == 2
    assert plots.main([str(tmp_path)]) == 65
    assert "run the aggregate stage first" in capsys.readouterr().err


def test_svg_has_its_text_as_text(out):
    folder = out / "aggregate/figures"
    wanted = {
        "fig3_captions": "subject 2", "fig5_cortex": "Pearson r", "fig6_layers": "BERT layer (emb",
        "fig9_alpha": "end of the grid", "fig10_ceiling": "r = ceiling",
    }  # fmt: skip
    for name, words in wanted.items():
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        texts = [
            "".join(element.itertext()).strip()
            for element in root.iter("{http://www.w3.org/2000/svg}text")
        ]
        assert any(words in text for text in texts), (name, texts)


def test_a_caption_is_no_formula(tmp_path):
    with mpl.rc_context(plots_run.STYLE):
        page = plots_captions._Page(2.0, 0.3)
        page.text(0, 0.2, "a $5 cake, a $6_ tea")
        page.canvas.savefig(tmp_path / "x.svg")
        plt.close(page.canvas)
    assert "a $5 cake, a $6_ tea</text>" in (tmp_path / "x.svg").read_text()


def test_figures_fit_a_page_and_can_be_read_there(out):
    run = plots_run.open_run(out, out / "aggregate")
    with mpl.rc_context(plots_run.STYLE):
        for kind in plots.KINDS.values():
            for canvas, figure in kind.draw(run):
                assert canvas.get_figwidth() <= plots_run.WIDTH + 0.3, figure.name
                sizes = {t.get_fontsize() for t in canvas.findobj(mpl.text.Text) if t.get_text()}
                assert min(sizes) >= 7, figure.name
                plt.close(canvas)


def lab(linear: np.ndarray) -> np.ndarray:
    """Linear RGB (n, 3) -> CIELAB (n, 3), D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = (np.clip(linear, 0, 1) @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]).T
    x, y, z = (np.where(v > 0.008856, np.cbrt(v), 7.787 * v + 16 / 116) for v in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize("kind", ["normal", *BLINDNESS])
def test_colours_are_told_apart_with_any_colour_vision(kind):
    def seen(rgb: np.ndarray) -> np.ndarray:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return lab(linear @ np.array(BLINDNESS.get(kind, np.eye(3))).T)

    phases = [style["color"] for style in plots_run.PHASE_STYLE.values()]
    colours = seen(np.array([mpl.colors.to_rgb(c) for c in [*phases, plots_run.GREY, "black"]]))
    apart = np.linalg.norm(colours[:, None] - colours, axis=2) + 1e3 * np.eye(len(colours))
    assert apart.min() > 8
    folds = seen(np.repeat(plots_mesh.fold_grey(np.linspace(-2, 2, 9))[:, None], 3, axis=1))
    for name in ("inferno", "magma"):  # amounts: always lighter, and never the cortex's grey
        ramp = seen(mpl.colormaps[name](np.linspace(0, 1, 13))[:, :3])
        assert (np.diff(ramp[:, 0]) > 3).all()
        assert np.linalg.norm(np.diff(ramp, axis=0), axis=1).min() > 5
        assert np.linalg.norm(ramp[:, None] - folds, axis=2).min() > 9


# --- the mesh -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hemi", ["lh", "rh"])
def test_the_flat_map_is_right_side_up(hemi):
    mesh = plots_mesh.fsaverage5()[hemi]
    view = plots_mesh.flat_view(hemi, 80)
    h, w = view.grey.shape
    for axis, index in ((0, np.arange(w)[None, :]), (1, -np.arange(h)[:, None])):
        shown = view.at_pixels(mesh.flat[:, axis])
        known = np.isfinite(shown)
        pixel = np.broadcast_to(index, (h, w))[known]
        slope, start = np.polyfit(pixel, shown[known], 1)
        assert slope > 0
        off = np.abs(shown[known] - slope * pixel - start) / slope  # pixels; some faces overlap
        assert np.quantile(off, 0.99) < 1
    assert known.mean() > 0.7


@pytest.mark.parametrize("name", plots_mesh.VIEWS)
@pytest.mark.parametrize("hemi", ["lh", "rh"])
def test_an_inflated_view_shows_what_is_nearest(hemi, name):
    """No vertex lies in front of what its pixel shows; outlines are those of all vertices."""
    points = plots_mesh.fsaverage5()[hemi].inflated
    azimuth, elevation = np.deg2rad(plots_mesh.VIEWS[name])
    azimuth *= 1 if hemi == "rh" else -1  # from behind and from the outer side
    towards = [
        np.sin(azimuth) * np.cos(elevation),
        -np.cos(azimuth) * np.cos(elevation),
        np.sin(elevation),
    ]
    right = [np.cos(azimuth), np.sin(azimuth), 0]
    x, y, depth = np.array([right, np.cross(towards, right), towards]) @ points.T
    view = plots_mesh.inflated_view(hemi, name, 100)
    h, _ = view.grey.shape
    scale = (h - 1) / (y.max() - y.min())
    column = np.rint((x - x.min()) * scale).astype(int)
    row = np.rint((y.max() - y) * scale).astype(int)
    shown = view.at_pixels(depth)[row, column]
    known = np.isfinite(shown)
    assert known.mean() > 0.98
    assert (depth[known] - shown[known] < 4).mean() > 0.995  # mm; faces are up to 4 mm wide
    assert (np.abs(depth[known] - shown[known]) < 4).mean() > 0.3  # those in front


def test_pixels_without_a_value_show_the_folds():
    view = plots_mesh.flat_view("lh", 80)
    values = np.full(10242, np.nan)
    colours = mpl.colormaps["inferno"]
    grey = view.paint(values, colours, (0, 1))
    assert (np.ptp(grey.astype(int), axis=2) == 0).all()
    assert np.isnan(view.at_pixels(values)).all()
    values[:] = 1.0
    full = view.paint(values, colours, (0, 1)).reshape(-1, 3)
    inside = full[np.ptp(full.astype(int), axis=1) > 60]
    top = np.array(colours(1.0)[:3]) * 255
    assert np.abs(inside - top).max(1).min() < 1
    kinds = np.where(np.arange(10242) % 2, 1.0, 5.0)
    assert set(np.unique(view.at_pixels(kinds, mean=False)[view.weight.sum(2) > 0])) == {1.0, 5.0}


# --- what was planted is what is drawn ------------------------------------------------------------


def by_stream(run: plots_run.Run, name: str, mean: bool = True) -> dict[str, np.ndarray]:
    """The numbers that the flat maps show, by the stream that lies there."""
    found: dict[str, list[np.ndarray]] = {roi: [] for roi in STREAMS}
    for hemi, mesh in cortex.fsaverage5().items():
        view = plots_mesh.flat_view(hemi, 150)
        shown = view.at_pixels(run.surface(run.subjects[0], name, hemi), mean)
        stream = view.at_pixels(mesh.stream.astype(float), mean=False)
        for k, roi in enumerate(STREAMS, 1):
            found[roi].append(shown[stream == k])
    return {roi: np.concatenate(values) for roi, values in found.items()}


def test_the_flat_map_shows_z_v_early_and_z_b_higher(planted):
    z_v, z_b = by_stream(planted, "z_v_r"), by_stream(planted, "z_B_r")
    for roi in ("early", "midlateral"):  # planted: z_v .5, z_B none
        assert np.nanmean(z_v[roi]) == pytest.approx(0.5, abs=0.03)
        assert np.isfinite(z_v[roi]).mean() > 0.8
        assert np.isfinite(z_b[roi]).mean() < 0.2
    for roi in ("ventral", "lateral", "parietal"):  # z_v .3, z_B .3 + .03 layer + .02 in the middle
        assert np.nanmean(z_v[roi]) == pytest.approx(0.3, abs=0.03)
        assert np.nanmean(z_b[roi]) == pytest.approx(0.38, abs=0.03)
        assert np.isfinite(z_b[roi]).mean() > 0.8


def test_the_flat_map_shows_each_streams_own_layer(planted):
    best = by_stream(planted, "best_layer", mean=False)
    assert np.isfinite(best["early"]).mean() < 0.1
    for label, layer in ADDS.items():
        shown = best[STREAMS[label - 1]]
        assert np.isfinite(shown).mean() > 0.8
        assert np.nanmean(shown == layer) > 0.8 * np.isfinite(shown).mean()
        assert np.nanmedian(shown) == layer


def test_left_and_right_are_not_exchanged(planted, tiny_tree):
    """A map that is 1 in the left half of the head, by world x, is 1 on the left hemisphere only."""
    labels, affine = NSD(tiny_tree).roi(1)
    x = np.arange(labels.shape[0])[:, None, None] * affine[0, 0] + affine[0, 3]
    volume = np.where(labels > 0, np.broadcast_to(x < 0, labels.shape) * 1.0, np.nan)
    for hemi, expected in (("lh", 1.0), ("rh", 0.0)):
        own = NSD(tiny_tree).to_surface(1, hemi, volume, "nearest")
        values = NSD(tiny_tree).to_fsaverage(1, hemi, own)[:10242]
        shown = plots_mesh.flat_view(hemi, 80).at_pixels(values)
        assert np.nanmean(shown) == pytest.approx(expected, abs=0.05)


def test_charts_draw_the_planted_numbers(planted):
    with mpl.rc_context(plots_run.STYLE):
        canvas, _ = next(plots_encoding.draw_r_by_stream(planted))
        lines = {bars.get_label(): bars.lines[0].get_ydata() for bars in canvas.axes[0].containers}
        early = np.isin(STREAMS, STREAMS[:4])
        np.testing.assert_allclose(lines["z_v"], np.where(early, 0.5, 0.3), atol=0.01)
        np.testing.assert_allclose(lines["z_B, layer 2, mid"], np.where(early, 0, 0.38), atol=0.01)
        run = planted
        ceiling, r = ([run.volume(s, name) for s in SUBJECTS] for name in ("ceiling", "z_v_r"))
        means = plots_encoding.stream_means(run, list(ceiling), list(r))
        assert means["early"] == pytest.approx((0.6, 0.5), abs=0.01)
        assert means["parietal"] == pytest.approx((0.6, 0.3), abs=0.01)
        grid, shares, n = plots_encoding.alpha_shares(run.table("alphas"), "encode", "z_B")
        assert grid[shares[1] == 1] == pytest.approx([2.154])
        assert n == [9 * (run.counts(s)["n_voxels"] - 2) for s in SUBJECTS]
        plt.close("all")


def test_the_page_holds_every_map_in_the_palettes_levels(planted):
    text = plots_turning.page(planted, [1])
    data = json.loads(re.search(r"const data = (\{.*\})\n", text)[1])
    assert data["maps"][0]["title"] == "z_v predicts"
    for one, name in zip(
        data["maps"], ("z_v_r", "z_B_r", "gain", "best_layer_r", "best_layer"), strict=True
    ):
        level = np.frombuffer(base64.b64decode(one["values"]["1"]), np.uint8)
        values = np.concatenate([planted.surface(1, name, hemi) for hemi in ("lh", "rh")])
        np.testing.assert_array_equal(level > 0, np.isfinite(values))
        known = (values > one["low"]) & (values < one["high"])
        middle = one["low"] + (level[known] - 0.5) / 254 * (one["high"] - one["low"])
        assert np.abs(middle - values[known]).max() < (one["high"] - one["low"]) / 254
    assert "no surface" not in text
    assert text == plots_turning.page(planted, [1])
