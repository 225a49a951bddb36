# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Crops
# > From a file of twenty million pixels to the breast in grey levels: one pass, no more decoded than is needed, nothing
# > lost.
#
# Half of a mammogram is air, and a network fed with air learns about collimators. So the breast is found in a small
# picture of the frame, cut out of the stored values, and only then windowed to 8 bits, in this order, as the winning
# system did: a window of the whole frame would spend its grey levels on markers. What the consumer does not need is not
# even decoded: a JPEG 2000 file holds its picture in a quarter and in half the size too.

# %%
#| default_exp mammo.crops

# %%
#| export
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.backends import Graph, read_sidecar
from mammo_nb.core.dicom import Frame, Image, find_files, read_frame
from mammo_nb.core.files import inside, write_csv
from mammo_nb.core.headers import BadHeader, Header
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import fit_resize, shrink, write_png
from mammo_nb.core.runs import Run
from mammo_nb.core.windows import WindowError, percentile, to_grey
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.boxes import Box, find_box, open_detector
from mammo_nb.mammo.datasets import DatasetError, read_table, root_of
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
from dataclasses import astuple

import matplotlib.pyplot as plt

from mammo_nb.core.detection import iou
from mammo_nb.core.runs import practice
from mammo_nb.mammo.system import system
from mammo_nb.mammo.reading.boxes import frame_view

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"crops.field": value}
workers = 0                                   # processes; 0: one a core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="crops", overrides=overrides)
run.contract("crops")

# %%
#| hide
graph = open_detector(run.path("weights/detector.onnx"))
labels = read_table(run.path("processed/cleaned_label.csv"), ["file"])
folder = root_of(run, labels["dataset"][0])
frame = read_frame(folder / labels["file"][0])
image = frame.decode()

# %% [markdown]
# ## Finding the breast
# `reading/boxes` looks at a small picture of the frame, with the detector's eyes where there is one.

# %%
box = find_box(image, graph=graph)
view = frame_view(image)
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(view, cmap="gray")
ax.axis("off")
ax.set_title(f"{box.source}: {astuple(box)[:4]}", fontsize=9)
small = view.shape[0] / image.pixels.shape[0]
ax.add_patch(
    plt.Rectangle((box.x0 * small, box.y0 * small), (box.x1 - box.x0) * small, (box.y1 - box.y0) * small, fill=False,
                  edgecolor="orange"))

# %% [markdown]
# ## Grey levels
# A DICOM file has a window. A PNG or JPEG has none: 8 bits are grey levels already, 16 bits go from their lowest value
# to their 99th percentile. The table of a data set may say otherwise, as it does for CDD-CESM, whose 8 bits the winner
# stretched as well. Its preparation knew no picture that is left as it is.

# %%
#| export
def scaling_of(
    header: Header,
    settings: Crops,  # scaling, faithful
) -> str:             # window, percentile or none
    "How a frame becomes grey levels."
    scaling = settings.scaling
    if scaling not in ("window", "percentile", "none"):
        raise WindowError(f"scaling is {scaling!r}; known are window, percentile and none")
    if scaling == "window" and not header.syntax:
        scaling = "percentile" if header.bits_stored > 8 or settings.faithful else "none"
    if scaling == "none" and header.bits_stored > 8:
        raise WindowError(
            f"scaling is none, and the file has {header.bits_stored} bits; only 8 are grey levels as they are. Say "
            "percentile."
        )
    if scaling == "none" and settings.faithful:
        raise WindowError("scaling is none, which the winner's preparation (faithful) does not know. Say percentile.")
    return scaling

# %%
as_picture = replace(frame.header, syntax="", bits_stored=8)
assert [scaling_of(h, Crops()) for h in (as_picture, replace(as_picture, bits_stored=16))
        ] == ["none", "percentile"] and scaling_of(as_picture, Crops(faithful=True)) == "percentile"
try:
    scaling_of(replace(as_picture, bits_stored=16), Crops(scaling="none"))
except WindowError as e:
    print(e)

# %% [markdown]
# ## Cutting and windowing
# The crop is cut out of the stored values, brought to the size that is wanted, and windowed last: fewer pixels, and no
# level is rounded twice.

# %%
#| export
def crop_size(
    box: Box,
    settings: Crops,  # height and width to fit into, 0: as large as it is
) -> tuple[int, int, float]:  # rows and columns of the crop; and its pixels per frame pixel, at most 1
    "How large the crop is to be."
    rows, columns = box.y1 - box.y0, box.x1 - box.x0
    ratio = min(1.0, (settings.height or rows) / rows, (settings.width or columns) / columns)
    return max(1, round(rows * ratio)), max(1, round(columns * ratio)), ratio

def crop(
    image: Image,        # a frame as stored, at any scale
    box: Box,
    settings: Crops = Crops(),  # height, width, window, scaling
) -> np.ndarray:         # uint8, of `crop_size`, tissue bright
    "Cut the box out of the stored values, resize, window."
    rows, columns, _ = crop_size(box, settings)
    down, across = (have / whole for have, whole in zip(image.pixels.shape, (image.header.rows, image.header.columns)))
    cut = image.pixels[int(box.y0 * down):int(np.ceil(box.y1 * down)),
                       int(box.x0 * across):int(np.ceil(box.x1 * across))]
    cut = shrink(cut, rows, columns)
    if settings.scaling == "none":
        return np.array(cut, np.uint8)
    if settings.scaling == "percentile":
        return (percentile(cut, 0, 99) * 255 + 1e-4).astype(np.uint8)
    return to_grey(cut, image.header, which=min(settings.window, max(0, len(image.header.windows) - 1)))

# %%
grey = crop(image, box)
fitted = fit_resize(grey, 256, 128)
assert fitted.shape == (256, 128) and fitted.dtype == np.uint8
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
for ax, (picture, title) in zip(axes, [(grey, f"crop {grey.shape}"),
                                       (fitted, f"as the network sees it {fitted.shape}")]):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## One pass
# A quarter of the frame is enough to find the box, where the file has one; the box then says how much of the frame is
# needed for the crop. A file without smaller pictures is decoded once, for both.

# %%
#| export
@dataclass(frozen=True)
class Breast:
    "A breast cut out of its frame."
    image: Image      # what it was cut from, possibly at a smaller scale
    box: Box          # frame pixels
    grey: np.ndarray  # uint8 (rows, columns), of `crop_size`
    scaling: str      # as in `scaling_of`

def cut_breast(
    frame: Frame,               # as the file holds it
    settings: Crops = Crops(),  # `faithful` is read here: the frame in full, its own grey levels, no size
    graph: Graph | None = None, # the detector; None: Otsu
) -> Breast:
    "Decode, find the breast, cut, window."
    settings = replace(settings, scaling=scaling_of(frame.header, settings))
    if settings.faithful:
        image = frame.decode()
        box = find_box(image, settings, graph)
        return Breast(image, box, faithful.grey_levels(_cast(image, box, settings), image.header, settings.scaling),
                      settings.scaling)
    looked_at = graph.metadata["size"] if graph else settings.box_size
    image = frame.decode(min(1.0, looked_at / max(frame.header.rows, frame.header.columns)))
    box = find_box(image, settings, graph)
    needed = crop_size(box, settings)[2]
    if image.scale < needed:
        image = frame.decode(needed)
    return Breast(image, box, crop(image, box, settings), settings.scaling)

def _cast(image: Image, box: Box, settings: Crops) -> np.ndarray:
    "The crop's stored values as the winner had them."
    return faithful.as_cast(image.pixels, settings.scaling)[box.y0:box.y1, box.x0:box.x1]

def faithful_floats(
    image: Image,     # the whole frame
    box: Box,
    settings: Crops,  # scaling, as `scaling_of` says
) -> np.ndarray:      # float32 (rows, columns) of the box, 0 to 255
    "The crop as the winner had it, before it was cut off to whole levels."
    return faithful.grey_floats(_cast(image, box, settings), image.header, settings.scaling)

# %% [markdown]
# The same file in full size, and made to fit into 128 x 64 from a quarter of its rows and columns. (The practice frames
# are so small that the box must be looked for in a smaller picture than usual for this to happen.)

# %%
# a set of PNGs has none
j2k = next((f for f in labels["file"].head(40) if read_frame(folder / f).header.syntax_name.startswith("JPEG 2000")),
           labels["file"][0])
both = [cut_breast(read_frame(folder / j2k), Crops(box_size=80, height=h, width=w)) for h, w in ((0, 0), (64, 32))]
if labels["dataset"][0] == "phantom":
    assert both[1].image.scale < both[0].image.scale == 1 and both[0].box == both[1].box
    assert np.abs(fit_resize(both[0].grey, 64, 32).astype(int) - fit_resize(both[1].grey, 64, 32)).mean() < 4
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
for ax, breast in zip(axes, both):
    ax.imshow(breast.grey, cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{breast.grey.shape} of {breast.image.pixels.shape}", fontsize=9)
    ax.axis("off")

# %% [markdown]
# People look before they read: the frame with its box, and what came of it.

# %%
#| export
def preview(
    breast: Breast,       # cut out of its frame
    seen: np.ndarray,     # uint8 (height, width) the network's input
    lines: list[str],     # text below
) -> np.ndarray:          # uint8 (rows, columns, 3), BGR
    "The frame with its box, beside what the network saw."
    height = 512
    side = lambda grey: cv2.cvtColor(
        cv2.resize(grey, (max(1, round(grey.shape[1] * height / grey.shape[0])), height), interpolation=cv2.INTER_AREA),
        cv2.COLOR_GRAY2BGR)
    box, header = breast.box, breast.image.header
    frame, scale = side(
        crop(breast.image, Box(0, 0, header.columns, header.rows, "full frame"),
             Crops(height=height, scaling=breast.scaling))), height / header.rows
    cv2.rectangle(frame, (int(box.x0 * scale), int(box.y0 * scale)), (int(box.x1 * scale) - 1, int(box.y1 * scale) - 1),
                  (0, 165, 255), 2)
    picture = np.concatenate([frame, np.full((height, 8, 3), 90, np.uint8), side(seen)], axis=1)
    width = max(picture.shape[1], 520)
    picture = cv2.copyMakeBorder(picture, 0, 10 + 20 * len(lines), 0, width - picture.shape[1], cv2.BORDER_CONSTANT,
                                 value=(0, 0, 0))
    for i, line in enumerate(lines):
        cv2.putText(picture, line, (8, height + 20 + 20 * i), cv2.FONT_HERSHEY_SIMPLEX, .45, (255, 255, 255), 1,
                    cv2.LINE_AA)
    return picture

# %%
breast = cut_breast(frame, Crops(), graph)
plt.figure(figsize=(6, 4))
plt.imshow(preview(breast, fit_resize(breast.grey, 256, 128), [f"box: {breast.box.source}"])[..., ::-1])
plt.axis("off");

# %% [markdown]
# ## One file
# The worker of the stage. The PNG appears under its name only when it is whole, and its sha256 goes into the table, so
# that two runs can be compared without comparing pictures.

# %%
#| export
def crop_path(
    images: Path,      # cleaned_images/
    patient_id: str,
    image_id: str,
) -> Path:
    "`{patient_id}@{image_id}.png`, the name that the contract gives."
    return Path(images) / f"{patient_id}@{image_id}.png"

WHOLE = ["rows", "columns", "x0", "y0", "x1", "y1"]  # columns of whole numbers, empty where a file failed

def cut_mask(
    path: Path,        # a picture, lesions white on black
    breast: Breast,    # cut out of the frame that it belongs to
) -> np.ndarray:       # uint8, of the crop's shape
    "The mask of a crop."
    mask, header, box = read_frame(path).decode().pixels, breast.image.header, breast.box
    if mask.shape != (header.rows, header.columns):
        raise BadHeader(
            path, f"a mask of {mask.shape[0]} x {mask.shape[1]} for a frame of {header.rows} x {header.columns}", "",
            "Draw masks in the size of the frames.")
    return shrink(np.uint8(mask[box.y0:box.y1, box.x0:box.x1] > 0) * np.uint8(255), *breast.grey.shape)

def crop_file(
    # file, patient_id, image_id, perhaps mask, and folder, images, masks, previews, settings, detector as set by
    # `crop_files`
    item: dict,
) -> dict:       # a row of crops.csv, and seconds
    "Decode, find the breast, cut, window, write."
    cv2.setNumThreads(1)  # the processes share the cores already
    started, settings = time.perf_counter(), Crops(**item["settings"])
    frame = read_frame(inside(item["folder"], item["file"]))
    breast = cut_breast(frame, settings, open_detector(item["detector"]) if item.get("detector") else None)
    mask = cut_mask(inside(item["folder"], item["mask"]), breast) if item.get("mask") else None
    sha = write_png(crop_path(item["images"], item["patient_id"], item["image_id"]), breast.grey)
    if mask is not None:
        write_png(crop_path(item["masks"], item["patient_id"], item["image_id"]), mask)
    header, box = frame.header, breast.box
    if item.get("previews"):
        write_png(
            crop_path(item["previews"], item["patient_id"], item["image_id"]),
            preview(breast, fit_resize(breast.grey, 512, 256),
                    [f"box: {box.source}" + (f" {box.score:.2f}" if box.score else "")]))
    center, width = header.windows[min(
        settings.window,
        len(header.windows) - 1)] if header.windows and breast.scaling == "window" else (None, None)
    return {
        "patient_id": item["patient_id"], "image_id": item["image_id"], "rows": header.rows, "columns": header.columns,
        "decoder": breast.image.decoder, "scale": breast.image.scale, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1":
            box.y1, "box_source": box.source, "box_score": None if box.score is None else round(box.score, 4),
        "window_center": center, "window_width": width, "voi_function": header.voi_function, "sha256": sha, "seconds":
            round(time.perf_counter() - started, 3)
    }

# %% [markdown]
# ## Many files
# A table may mix data sets: `dataset` says in which folder a file is, `scaling` how its grey levels are made. Every
# file becomes a row, a crop or an error, and the errors stand in a table of their own once more. The seconds of each
# file are kept apart, in `crops_seconds.csv`, since they differ from run to run and nothing else here does. A killed
# run leaves finished crops, rows in the journal, and perhaps a picture under a temporary name, which goes when the next
# run ends.

# %%
#| export
def crop_files(
    # file, relative to `folder`; patient_id, image_id; perhaps mask, as file; perhaps dataset; perhaps scaling, which
    # wins over the settings' where it is not empty
    files: pd.DataFrame,
    # of the files; no name in `files` leads out of it. Of several data sets: dataset -> folder
    folder: Path | Mapping,
    output: Path,             # gets cleaned_images/, cleaned_masks/, crops.csv, crop_errors.csv, crops_seconds.csv
    settings: Crops = Crops(),
    detector: Path | None = None,  # detector.onnx; None: Otsu
    version: str = "",        # of the code, where it is known: another one starts anew
    previews: bool = False,   # write previews/ too: the frame with its box beside the crop
    **machine,                # workers, backend, scheduler of `map_files`
) -> pd.DataFrame:            # crops.csv with seconds
    "Crop all files, on this machine or a cluster; resumes where it was killed."
    output, several = Path(output), isinstance(folder, Mapping)
    place = {
        "images": str((output / "cleaned_images").resolve()), "masks": str((output / "cleaned_masks").resolve()),
        "detector": str(Path(detector).resolve()) if detector else "", "previews": str(
            (output / "previews").resolve()) if previews else ""
    }
    # another detector under the same name starts anew
    known = read_sidecar(Path(detector))["sha256"] if detector else ""
    scaled = files["scaling"].fillna("") if "scaling" in files else [""] * len(files)
    each = [{
        "folder": str(Path(folder[d] if several else folder).resolve()), "settings": asdict(
            replace(settings, scaling=s or settings.scaling))
    } for d, s in zip(files["dataset"] if several else scaled, scaled)]
    known_masks = files["mask"].fillna("") if "mask" in files else ""
    items = [
        {**row, **where, **place}
        for row, where in zip(files[["file", "patient_id", "image_id"]].assign(
            mask=known_masks).to_dict("records"), each)
    ]
    work = map_files(crop_file, items, table=output / "crops_seconds.csv",
                     params={**place, "code": version, "detector_sha256": known}, label="crops", **machine)
    for left in output.glob("cleaned_*/.*.png"):
        left.unlink()
    for column in ("patient_id", "image_id"):
        work[column] = files[column].values  # an error row has them too
    work = work.astype({c: "Int64" for c in WHOLE if c in work})
    write_csv(output / "crop_errors.csv", work.loc[work["error"] != "", ["file", "patient_id", "image_id", "error"]])
    write_csv(output / "crops.csv", work.drop(columns=["seconds"], errors="ignore"))
    return work

# %% [markdown]
# A folder of scans without a table names its crops after the files: `10006/462822612.dcm` becomes
# `10006@462822612.png`, as in a competition.

# %%
#| export
def crop_folder(
    folder: Path,             # DICOM files, nested or flat; without any, PNG and JPEG files
    output: Path,             # as in `crop_files`
    settings: Crops = Crops(),
    detector: Path | None = None,  # detector.onnx; None: Otsu
    previews: bool = False,   # as in `crop_files`
    **machine,                # workers, backend, scheduler of `map_files`
) -> pd.DataFrame:
    "Crop every mammogram of a folder."
    found, _ = find_files(folder, besides=output)
    names = pd.Series(
        [Path(f).with_suffix("").as_posix() for f in found]).map(lambda n: quote(n, safe="/ ()+,=").split("/"))
    files = pd.DataFrame({
        "file": found, "patient_id": ["@".join(n[:-1]) or "unknown" for n in names], "image_id": [n[-1] for n in names]
    })
    if (twice := files.duplicated(["patient_id", "image_id"])).any():
        raise DatasetError(
            f"{files['file'][twice.idxmax()]}: another file would have a crop of the same name. Rename one.")
    return crop_files(files, folder, output, settings, detector, previews=previews, **machine)

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,      # processes; None: one a core
) -> pd.DataFrame:                   # crops.csv with seconds
    """The files of the unified table -> processed/cleaned_images/*.png, processed/crops.csv and
    processed/crop_errors.csv."""
    with run.stage("crops"):
        labels = read_table(run.path("processed/cleaned_label.csv"), ["file", "dataset", "scaling"])
        return crop_files(labels, {name: root_of(run, name) for name in labels["dataset"].unique()},
                          run.path("processed"), run.section("crops"), run.path("weights/detector.onnx"),
                          run.code("crops"), workers=workers)

# %%
crops = run_stage(run, workers or None)
failed = crops[crops["error"] != ""]
print(f"{len(crops)} files, {len(failed)} failed")
crops.drop(columns=["sha256"]).head()

# %% [markdown]
# ## What came out
# How the boxes were found, how much was decoded, how fast, and what they look like. A phantom knows its breast, so the
# boxes can be scored.

# %%
display_table = crops.groupby(["decoder", "scale", "box_source"], dropna=False).agg(
    files=("file", "size"), median_seconds=("seconds", "median")).reset_index()
display_table

# %%
truth = run.path("competition/truth/boxes.csv")
if truth.exists():
    both = crops.merge(read_table(truth, ["x0"]), on=["patient_id", "image_id"], suffixes=("", "_true"))
    of = lambda end: both[[c + end for c in ("x0", "y0", "x1", "y1")]].to_numpy(float)
    both["iou"] = [iou(a, b).item() for a, b in zip(of(""), of("_true"))]
    plt.figure(figsize=(5, 2.5))
    plt.hist(both["iou"], bins=np.linspace(0, 1, 41))
    plt.xlabel("IoU of box and breast")
    plt.ylabel("images")
    plt.title(f"mean {both['iou'].mean():.3f}, lowest {both['iou'].min():.3f}")

# %%
fig, axes = plt.subplots(2, 6, figsize=(11, 6))
good = crops[crops["error"] == ""]
for ax, row in zip(axes.flat, good.iloc[np.linspace(0, len(good) - 1, 12).astype(int)].itertuples()):
    ax.imshow(
        cv2.imread(str(crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)),
                   cv2.IMREAD_GRAYSCALE), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{row.image_id}\n{row.box_source}", fontsize=7)
for ax in axes.flat:
    ax.axis("off")
fig.tight_layout()
