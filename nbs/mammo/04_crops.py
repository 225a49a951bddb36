# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Crops
# > From a file of twenty million pixels to the breast in grey levels, without decoding more than is needed.
#
# Half of a mammogram is air, and a network that is trained on air learns about collimators. So the breast is found in a
# small picture of the frame, cut out of the stored values, and then windowed to 8 bits. The winning system used the
# same order: a window of the whole frame would spend grey levels on markers. Pixels that are not needed are not
# decoded, because a JPEG 2000 file contains its picture also in half and in a quarter of its size.

# %%
#| default_exp mammo.crops

# %%
#| export
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from mammo_nb.core.backends import Graph, read_sidecar
from mammo_nb.core.dicom import Frame, Image
from mammo_nb.core.files import inside, owned, write_csv
from mammo_nb.core.grey import decode_grey, grey_levels
from mammo_nb.core.headers import BadHeader, Header
from mammo_nb.core.parallel import map_files
from mammo_nb.core.pictures import NOT_A_DEVICE, fit_resize, shrink, write_png
from mammo_nb.core.recipes import check_section
from mammo_nb.core.runs import Run
from mammo_nb.core.windows import WindowError, percentile
from mammo_nb.mammo.datasets import read_table, root_of
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.reading.blank import NO_BREAST, why_blank
from mammo_nb.mammo.reading.boxes import Box, find_box, open_detector
from mammo_nb.mammo.reading.frames import frame_note
from mammo_nb.mammo.reading.mammograms import no_standard, read_frame
from mammo_nb.mammo.recipes import Crops

# %%
#| hide
from dataclasses import astuple

import matplotlib.pyplot as plt

from mammo_nb.core.detection import iou
from mammo_nb.core.practice import practice
from mammo_nb.mammo.system import system
from mammo_nb.mammo.reading.boxes import frame_view

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
overrides = {}                                # changes for this run, such as {"crops.min_area": 0.05}
workers = 0                                   # number of processes; 0: one per core

# %%
run = Run.open(run_dir, overrides) if run_dir else practice(system, before="crops", overrides=overrides)
run.contract("crops")

# %%
#| hide
graph = open_detector(run.path("weights/detector.onnx"))
labels = read_table(run.path("processed/cleaned_label.csv"), ["file"])
folder = root_of(run, labels["dataset"][0])
frame = read_frame(folder / labels["file"][0])
image = decode_grey(frame)

# %% [markdown]
# ## Finding the breast
# `reading/boxes` finds the breast in a small picture of the frame, with the detector if there is one.

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
# A DICOM file has a window. A PNG or JPEG file has none: 8 bits are used unchanged, and 16 bits are scaled from their
# minimum to their 99th percentile. The table of a data set may name another scaling, as that of CDD-CESM, whose 8 bits
# the winner scaled as well. The winner's preparation never uses a picture unchanged.

# %%
#| export
def scaling_of(
    header: Header,
    settings: Crops,  # scaling, faithful
) -> str:             # window, percentile or none
    "Choose how a frame becomes grey levels. Raises WindowError."
    scaling = settings.scaling
    if scaling not in ("window", "percentile", "none"):
        raise WindowError(f"scaling is {scaling!r}. Known are window, percentile and none.")
    if scaling == "window" and not header.syntax:
        scaling = "percentile" if header.bits_stored > 8 or settings.faithful else "none"
    if scaling == "none" and header.bits_stored > 8:
        raise WindowError(
            f"scaling is none, and the file has {header.bits_stored} bits. Only 8 bits can be used unchanged. Use "
            "percentile."
        )
    if scaling == "none" and settings.faithful:
        raise WindowError("scaling is none, which the winner's preparation (faithful) does not know. Use percentile.")
    return scaling

# %%
as_picture = replace(frame.header, syntax="", bits_stored=8)
assert scaling_of(as_picture, Crops()) == "none"
assert scaling_of(replace(as_picture, bits_stored=16), Crops()) == "percentile"
assert scaling_of(as_picture, Crops(faithful=True)) == "percentile"
try:
    scaling_of(replace(as_picture, bits_stored=16), Crops(scaling="none"))
except WindowError as e:
    print(e)

# %% [markdown]
# ## Cutting and windowing
# The crop is cut out of the stored values, resized, and windowed last. So fewer pixels are windowed, and no grey level
# is rounded twice.

# %%
#| export
def crop_size(
    box: Box,
    settings: Crops,  # height and width that the crop must fit into, in pixels; 0: no limit
    aspect: float = 1.0,  # height of a pixel of the frame by its width; pixels of a crop are square
) -> tuple[int, int, float]:  # rows and columns of the crop; crop pixels per frame pixel, at most 1
    "Compute the size of a crop."
    rows, columns = (box.y1 - box.y0) * aspect, box.x1 - box.x0
    ratio = min(1.0, (settings.height or rows) / rows, (settings.width or columns) / columns)
    return max(1, round(rows * ratio)), max(1, round(columns * ratio)), ratio

def crop(
    image: Image,        # a frame from `decode_grey`, at any scale
    box: Box,
    settings: Crops = Crops(),  # height, width, window, scaling
) -> tuple[np.ndarray, tuple | None, tuple[str, ...]]:  # uint8 (rows, columns), tissue bright; window used; notes
    "Cut the box out of the values, resize it and apply the window."
    rows, columns, _ = crop_size(box, settings, image.header.aspect)
    down, across = (have / whole for have, whole in zip(image.pixels.shape, (image.header.rows, image.header.columns)))
    cut = image.pixels[int(box.y0 * down):int(np.ceil(box.y1 * down)),
                       int(box.x0 * across):int(np.ceil(box.x1 * across))]
    cut = shrink(cut, rows, columns)
    if settings.scaling == "none":
        return np.array(cut, np.uint8), None, ()
    if settings.scaling == "percentile":
        return (percentile(cut, 0, 99) * 255 + 1e-4).astype(np.uint8), None, ()
    return grey_levels(cut, image.header, min(settings.window, max(0, len(image.header.windows) - 1)))

# %%
grey, *_ = crop(image, box)
fitted = fit_resize(grey, 256, 128)
assert fitted.shape == (256, 128) and fitted.dtype == np.uint8
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
shown = [(grey, f"crop {grey.shape}"), (fitted, f"input of a network {fitted.shape}")]
for ax, (picture, title) in zip(axes, shown):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## One pass
# If the file has smaller pictures of its frame, a quarter of the rows and columns is enough to find the box. The box
# then determines which resolution is needed for the crop. Where it is clear before that the crop needs the full frame,
# this is decoded once, for both, as is a file without smaller pictures. Its box is then that of the same pixels in any
# compression. A box from a quarter may be some pixels away, because the wavelet's low band is no mean of areas.
# A picture that shows [no breast](reading/blank.py) is marked, except in the winner's preparation, which has no such
# rule.

# %%
#| export
@dataclass(frozen=True)
class Breast:
    "A breast cut out of its frame."
    image: Image      # the decoded frame, possibly at a smaller scale
    box: Box          # in frame pixels
    grey: np.ndarray  # uint8 (rows, columns) as from `crop_size`
    scaling: str      # as from `scaling_of`
    note: str = ""    # why it shows no breast; the source of its box is then NO_BREAST
    window: tuple[float, float] | None = None  # center and width that were used
    notes: tuple[str, ...] = ()  # what was odd about the file, and how it was read

    def told(self) -> str:
        return "; ".join(filter(None, (self.note, *self.notes)))

def _needs_all(header: Header, settings: Crops) -> bool:
    "Whether the crop will need the full frame, if the breast takes up to 9/10 of rows and columns."
    nearly = Box(0, 0, round(0.9 * header.columns), round(0.9 * header.rows), "full frame")
    return crop_size(nearly, settings, header.aspect)[2] > 0.5

def cut_breast(
    frame: Frame,               # the encoded frame of a file
    settings: Crops = Crops(),  # with `faithful`, the full frame is decoded, and the grey levels are the winner's
    graph: Graph | None = None,  # the detector; None: Otsu's threshold
) -> Breast:
    "Decode a frame, find the breast, cut it out and apply the window. Raises DicomError, WindowError."
    settings = replace(settings, scaling=scaling_of(frame.header, settings))
    if settings.faithful:
        image = frame.decode()
        header, notes = faithful.choose_window(image.header)
        image = replace(image, header=header)
        box = find_box(image, settings, graph)
        grey = faithful.grey_levels(_cast(image, box, settings), image.header, settings.scaling)
        window = next(iter(header.windows), None)
        return Breast(image, box, grey, settings.scaling, "", window, header.notes + notes)
    view_size = max(settings.box_size, graph.metadata["size"] if graph else 0)
    coarse = min(1.0, view_size / max(frame.header.rows, frame.header.columns))
    image = decode_grey(frame, 1.0 if _needs_all(frame.header, settings) else coarse)
    box = find_box(image, settings, graph)
    needed = crop_size(box, settings, image.header.aspect)[2]
    if image.scale < needed:
        image = decode_grey(frame, needed)
    grey, window, notes = crop(image, box, settings)
    breast = Breast(image, box, grey, settings.scaling, "", window, image.header.notes + notes)
    if reason := why_blank(grey, (frame.header.rows, frame.header.columns), (box.x0, box.y0, box.x1, box.y1)):
        return replace(breast, box=replace(box, source=NO_BREAST), note=f"{NO_BREAST}: {reason}")
    return breast

def _cast(image: Image, box: Box, settings: Crops) -> np.ndarray:
    "Cut the box out of the stored values, cast as the winner did."
    return faithful.as_cast(image.pixels, settings.scaling)[box.y0:box.y1, box.x0:box.x1]

def faithful_floats(
    image: Image,     # the whole frame at full scale
    box: Box,
    settings: Crops,  # scaling, from `scaling_of`; half_windows
) -> np.ndarray:      # float32 (rows, columns) of the box, 0 to 255
    "Make the winner's crop, before it is truncated to whole grey levels."
    half = settings.half_windows and image.header.syntax in (JPEG2000Lossless, JPEGLosslessSV1)
    return faithful.grey_floats(_cast(image, box, settings), image.header, settings.scaling, half=half)

# %% [markdown]
# The same file at full size, and fitted into 64 x 32 pixels, for which a smaller picture is decoded. The practice
# frames are small, so the box is searched in a smaller picture than usual.

# %%
# the first JPEG 2000 file; a set of PNG files has none
j2k = next((f for f in labels["file"].head(40) if read_frame(folder / f).header.syntax_name.startswith("JPEG 2000")),
           labels["file"][0])
both = [cut_breast(read_frame(folder / j2k), Crops(box_size=80, height=h, width=w)) for h, w in ((0, 0), (64, 32))]
if labels["dataset"][0] == "phantom":
    assert both[1].image.scale < both[0].image.scale == 1
    assert iou(np.array(astuple(both[0].box)[:4]), np.array(astuple(both[1].box)[:4])).item() > 0.95
    assert np.abs(fit_resize(both[0].grey, 64, 32).astype(int) - fit_resize(both[1].grey, 64, 32)).mean() < 6
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
for ax, breast in zip(axes, both):
    ax.imshow(breast.grey, cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{breast.grey.shape} of {breast.image.pixels.shape}", fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## A preview
# A preview shows the frame with its box beside the input of the network, so that a person can check both.

# %%
#| export
def preview(
    breast: Breast,       # from `cut_breast`
    seen: np.ndarray,     # uint8 (height, width), the input of the network
    lines: list[str],     # lines of text below the pictures
) -> np.ndarray:          # uint8 (rows, columns, 3), BGR
    "Draw the frame with its box beside the input of the network, and write the scale of the frame below."
    height = 512

    def side(grey):
        width = max(1, round(grey.shape[1] * height / grey.shape[0]))
        return cv2.cvtColor(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)

    box, header = breast.box, breast.image.header
    whole, scale = Box(0, 0, header.columns, header.rows, "full frame"), height / header.rows
    frame = side(crop(breast.image, whole, Crops(height=height, scaling=breast.scaling))[0])
    across = frame.shape[1] / header.columns
    cv2.rectangle(frame, (int(box.x0 * across), int(box.y0 * scale)),
                  (int(box.x1 * across) - 1, int(box.y1 * scale) - 1), (0, 165, 255), 2)
    lines = [*lines, f"frame {header.rows} x {header.columns}, shown at {scale:.2g} times its size"]
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
# Each process of the stage calls `crop_file`. The PNG gets its name only when it is whole. Its SHA-256 is in the table,
# so that two runs can be compared without comparing pictures.

# %%
#| export
def crop_path(
    images: Path,      # cleaned_images/
    patient_id: str,
    image_id: str,
) -> Path:
    "Give the path of a crop, `{patient_id}@{image_id}.png`."
    return Path(images) / f"{patient_id}@{image_id}.png"

WHOLE = ["rows", "columns", "x0", "y0", "x1", "y1"]  # columns of whole numbers, which are empty if a file failed

def cut_mask(
    path: Path,        # a picture with lesions white on black, in the size of the frame
    breast: Breast,    # from `cut_breast`, of the same frame
) -> np.ndarray:       # uint8 in the shape of the crop, 0 or 255
    "Cut and resize a mask as its crop. Raises BadHeader if mask and frame differ in size."
    mask, header, box = read_frame(path).decode().pixels, breast.image.header, breast.box
    if mask.shape != (header.rows, header.columns):
        raise BadHeader(
            path, f"a mask of {mask.shape[0]} x {mask.shape[1]} for a frame of {header.rows} x {header.columns}", "",
            "Draw masks in the size of their frames.")
    white = mask[box.y0:box.y1, box.x0:box.x1] > mask.max() // 2  # a JPEG has grey along the edges of a lesion
    return shrink(np.uint8(white) * np.uint8(255), *breast.grey.shape)

def crop_file(
    # file, patient_id, image_id, mask or "", frame: index from 0 or None; and folder, images, masks, previews,
    # settings, detector from `crop_files`
    item: dict,
) -> dict:       # a row of crops.csv, and seconds
    "Make and write the crop of one file, with its mask and its preview if they are wanted."
    cv2.setNumThreads(1)  # the processes already share the cores
    started, settings = time.perf_counter(), Crops(**item["settings"])
    frame = read_frame(inside(item["folder"], item["file"]), item.get("frame"))
    breast = cut_breast(frame, settings, open_detector(item["detector"]) if item.get("detector") else None)
    mask = cut_mask(inside(item["folder"], item["mask"]), breast) if item.get("mask") else None
    sha = write_png(crop_path(item["images"], item["patient_id"], item["image_id"]), breast.grey)
    if mask is not None:
        write_png(crop_path(item["masks"], item["patient_id"], item["image_id"]), mask)
    header, box = frame.header, breast.box
    if item.get("previews"):
        text = f"box: {box.source}" + (f" {box.score:.2f}" if box.score else "")
        write_png(crop_path(item["previews"], item["patient_id"], item["image_id"]),
                  preview(breast, fit_resize(breast.grey, 512, 256), [Path(item["file"]).name, text, NOT_A_DEVICE]))
    return {"patient_id": item["patient_id"], "image_id": item["image_id"], "rows": header.rows,
            "columns": header.columns, "decoder": breast.image.decoder, "scale": breast.image.scale,
            "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1,
            "box_source": box.source, "box_score": None if box.score is None else round(box.score, 4),
            **dict(zip(("window_center", "window_width"), breast.window or (None, None))),
            "note": "; ".join(filter(None, [no_standard(header), frame_note(header, frame.index), breast.told()])),
            "voi_function": header.voi_function, "sha256": sha, "seconds": round(time.perf_counter() - started, 3)}

# %% [markdown]
# ## Many files
# A table may contain several data sets: `dataset` gives the folder of a file, and `scaling` the way to its grey levels.
# Every file becomes a row with a crop or with an error. The errors are also in a table of their own. The seconds of
# each file are in `crops_seconds.csv`, because they are the only result that differs between two runs. An interrupted
# run leaves finished crops, rows in the journal, and perhaps a temporary picture. The next run removes that picture.

# %%
#| export
def _sources(item: dict) -> list[Path]:
    "The files that a crop is made of."
    return [Path(item["folder"], item[name]) for name in ("file", "mask") if item[name]]

def write_crops(
    work: pd.DataFrame,  # from `make_crops`
    output: Path,
) -> pd.DataFrame:       # the same
    "Write crops.csv and crop_errors.csv."
    write_csv(output / "crop_errors.csv", work.loc[work["error"] != "", ["file", "patient_id", "image_id", "error"]])
    write_csv(output / "crops.csv", work.drop(columns=["seconds"], errors="ignore"))
    return work

@owned
def crop_files(
    # file, relative to `folder`; patient_id; image_id; optionally mask, relative to `folder`, dataset, frame, and
    # scaling, which replaces that of the settings unless it is empty
    files: pd.DataFrame,
    # folder of the files, out of which no name may lead; for several data sets a mapping dataset -> folder
    folder: Path | Mapping,
    output: Path,             # gets cleaned_images/, cleaned_masks/, crops.csv, crop_errors.csv, crops_seconds.csv
    settings: Crops = Crops(),
    detector: Path | None = None,  # detector.onnx; None: Otsu's threshold
    version=None,             # digests of the code; crops of other code are made anew; None: the whole package
    previews: bool = False,   # whether previews/ is written, too
    **machine,                # workers, scheduler of `map_files`
) -> pd.DataFrame:            # crops.csv with seconds
    "Crop all files, on this machine or on a cluster. Continues where an interrupted run stopped."
    output = Path(output)
    return write_crops(make_crops(files, folder, output, settings, detector, version, previews, **machine), output)

def make_crops(files, folder, output: Path, settings: Crops, detector=None, version=None, previews=False, **machine):
    "The crops and the table of `crop_files`, with the name of each picture; the table is not written."
    check_section(settings, "crops")
    several = isinstance(folder, Mapping)
    place = {
        "images": str((output / "cleaned_images").resolve()), "masks": str((output / "cleaned_masks").resolve()),
        "detector": str(Path(detector).resolve()) if detector else "",
        "previews": str((output / "previews").resolve()) if previews else ""
    }
    # with another detector under the same name, all crops are made anew
    known = read_sidecar(Path(detector))["sha256"] if detector else ""
    scaled = files["scaling"].fillna("") if "scaling" in files else [""] * len(files)
    rows = files[["file", "patient_id", "image_id"]].assign(mask=files.get("mask", "")).fillna("")
    rows = rows.assign(frame=files.get("frame")).to_dict("records")
    roots = [folder[dataset] for dataset in files["dataset"]] if several else [folder] * len(files)
    items = []
    for row, root, scaling in zip(rows, roots, scaled):
        chosen = replace(settings, scaling=scaling or settings.scaling)
        items.append({**row, "picture": crop_path("", row["patient_id"], row["image_id"]).name,
                      "folder": str(Path(root).resolve()), "settings": asdict(chosen), **place})
    work = map_files(crop_file, items, key="picture", table=output / "crops_seconds.csv", reads=_sources, code=version,
                     writes=output, params={**place, "detector_sha256": known}, label="crops", **machine)
    for left in output.glob("cleaned_*/.*.png"):
        left.unlink()
    work.insert(0, "file", files["file"].values)
    for column in ("patient_id", "image_id"):
        work[column] = files[column].values  # also for files that failed
    return work.astype({c: "Int64" for c in WHOLE if c in work})

# %% [markdown]
# ## Run the stage

# %%
#| export
def run_stage(
    run: Run,
    workers: int | None = None,      # number of processes; None: one per core
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
# The tables and pictures show how the boxes were found, at which scale the files were decoded, how long it took, and
# some crops. The breast of a phantom is known, so its box can be compared by IoU.

# %%
kinds = crops.groupby(["decoder", "scale", "box_source"], dropna=False)
kinds.agg(files=("file", "size"), median_seconds=("seconds", "median")).reset_index()

# %%
truth = run.path("competition/truth/boxes.csv")
if truth.exists():
    both = crops.merge(read_table(truth, ["x0"]), on=["patient_id", "image_id"], suffixes=("", "_true"))
    corners = ["x0", "y0", "x1", "y1"]
    found, true = both[corners].to_numpy(float), both[[f"{c}_true" for c in corners]].to_numpy(float)
    both["iou"] = [iou(a, b).item() for a, b in zip(found, true)]
    plt.figure(figsize=(5, 2.5))
    plt.hist(both["iou"], bins=np.linspace(0, 1, 41))
    plt.xlabel("IoU of box and breast")
    plt.ylabel("images")
    plt.title(f"mean {both['iou'].mean():.3f}, lowest {both['iou'].min():.3f}")

# %%
fig, axes = plt.subplots(2, 6, figsize=(11, 6))
good = crops[crops["error"] == ""]
for ax, row in zip(axes.flat, good.iloc[np.linspace(0, len(good) - 1, 12).astype(int)].itertuples()):
    path = crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)
    ax.imshow(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{row.image_id}\n{row.box_source}", fontsize=8)
for ax in axes.flat:
    ax.axis("off")
fig.tight_layout()

# %% [markdown]
# ---
# [← Detector](03_detector.py) · [Folds →](05_folds.py)
