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
# > From a frame of twenty million pixels to the breast, windowed as the header says.
#
# Half of a mammogram is air, and a network fed with air learns about collimators. So the breast is found, cut out of the stored values, and only then windowed to 8 bits, in this order, as the winning system did: a window of the whole frame would spend its grey levels on markers.

# %%
#| default_exp mammo.crops

# %%
#| export
import hashlib
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import Image, read_image
from mammo_nb.core.files import replacing, write_csv
from mammo_nb.core.parallel import map_files
from mammo_nb.core.stages import code_of, locate, stage
from mammo_nb.core.windows import minmax, to_grey
from mammo_nb.mammo.datasets import competition, read_table
from mammo_nb.mammo.recipes import Crops, get_section

# %%
#| hide
import matplotlib.pyplot as plt

from mammo_nb.core.stages import practice
from mammo_nb.mammo import datasets, phantom

# %% tags=["parameters"]
run_dir = ""                                  # folder of the run; "" makes a small practice run
recipe = "demo"                               # a name in mammo_nb.mammo.recipes
overrides = {}                                # changes to the section `crops`
workers = 0                                   # processes; 0: one a core
reads = ["processed/cleaned_label.csv"]       # and the DICOM files that it names
writes = ["processed/crops.csv"]              # one row an image, beside cleaned_images/

# %%
#| hide
if not run_dir: run_dir, recipe = practice(phantom.run, datasets.run)
labels = read_table(locate(run_dir, reads[0]), ["file"])
folder = locate(run_dir, competition(recipe))
image = read_image(folder / labels["file"][0])

# %% [markdown]
# ## Seeing the frame
# The box is looked for in a small picture of the whole frame: minimum to maximum, bright where tissue is dense. MONOCHROME1 stores the opposite.

# %%
#| export
def frame_view(
    image: Image,     # a frame as stored
    size: int = 416,  # longest side of the result, pixels
) -> tuple[np.ndarray, float]:  # uint8 (rows, columns), and result pixels per frame pixel
    "The whole frame, small, minimum to maximum, tissue bright."
    rows, columns = image.pixels.shape
    scale = min(1.0, size / max(rows, columns))
    small = cv2.resize(image.pixels, (max(1, round(columns * scale)), max(1, round(rows * scale))), interpolation=cv2.INTER_AREA)
    grey = minmax(small)
    if image.header.photometric == "MONOCHROME1": grey = 1 - grey
    return (grey * 255).astype(np.uint8), scale

# %%
view, scale = frame_view(image)
plt.figure(figsize=(3, 4)); plt.imshow(view, cmap="gray"); plt.title(f"{image.pixels.shape} -> {view.shape}"); plt.axis("off");

# %% [markdown]
# ## Finding the breast
# Otsu's threshold separates tissue from air. Markers are brighter than tissue, so the brightest twentieth is taken out before; what remains above the threshold and is largest is the breast. The constants are the winner's fallback (facts, section 2).

# %%
#| export
@dataclass(frozen=True)
class Box:
    "A box in frame pixels, half open: rows y0..y1, columns x0..x1."
    x0: int
    y0: int
    x1: int
    y1: int
    source: str  # how it was found: otsu or full frame

def otsu_box(
    view: np.ndarray,        # uint8 (rows, columns), tissue bright
    min_area: float = 0.04,  # a contour below this share of the view is no breast
) -> tuple[int, int, int, int] | None:  # x0, y0, x1, y1 in view pixels; None if nothing is large enough
    "Bounding box of the largest contour above Otsu's threshold."
    dark = view.copy()
    dark[dark > np.percentile(dark, 95)] = dark.min()
    blurred = cv2.GaussianBlur(dark, (5, 5), 0)
    _, mask = cv2.threshold(blurred, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours: return None
    largest = max(contours, key=cv2.contourArea)
    if cv2.contourArea(largest) < min_area * view.size: return None
    x, y, w, h = cv2.boundingRect(largest)
    return x, y, x + w, y + h

def find_box(
    image: Image,               # a frame as stored
    settings: Crops = Crops(),  # box_size, min_area
) -> Box:                       # the full frame if no breast was found, and it says so
    "Where the breast is, in frame pixels."
    rows, columns = image.pixels.shape
    view, scale = frame_view(image, settings.box_size)
    found = otsu_box(view, settings.min_area)
    if found is None: return Box(0, 0, columns, rows, "full frame")
    x0, y0, x1, y1 = found
    return Box(int(x0 / scale), int(y0 / scale), min(columns, int(np.ceil(x1 / scale))), min(rows, int(np.ceil(y1 / scale))), "otsu")

# %%
box = find_box(image)
fig, ax = plt.subplots(figsize=(3, 4))
ax.imshow(view, cmap="gray"); ax.axis("off"); ax.set_title(f"{box.source}: {astuple(box)[:4]}", fontsize=9)
ax.add_patch(plt.Rectangle((box.x0 * scale, box.y0 * scale), (box.x1 - box.x0) * scale, (box.y1 - box.y0) * scale, fill=False, edgecolor="orange"));

# %% [markdown]
# An empty frame has no breast, and says so instead of inventing one:

# %%
empty = Image(image.header, np.zeros_like(image.pixels), "none")
assert find_box(empty).source == "full frame"
find_box(empty)

# %% [markdown]
# ## Cutting and windowing

# %%
#| export
def crop(
    image: Image,     # a frame as stored
    box: Box,
    window: int = 0,  # which of the header's windows
) -> np.ndarray:      # uint8 (rows, columns) of the box, tissue bright
    "Cut the box out of the stored values, then window it."
    return to_grey(image.pixels[box.y0:box.y1, box.x0:box.x1], image.header, which=window)

def fit_resize(
    grey: np.ndarray,  # uint8 (rows, columns)
    height: int,       # of the result, pixels
    width: int,
) -> np.ndarray:       # uint8 (height, width)
    "Resize to fit, keep the proportions, pad with black on both sides."
    ratio = min(height / grey.shape[0], width / grey.shape[1])
    h, w = max(1, int(grey.shape[0] * ratio)), max(1, int(grey.shape[1] * ratio))
    small = cv2.resize(grey, (w, h), interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    top, left = (height - h) // 2, (width - w) // 2
    return cv2.copyMakeBorder(small, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT, value=0)

# %%
grey = crop(image, box)
fitted = fit_resize(grey, 256, 128)
assert fitted.shape == (256, 128) and fitted.dtype == np.uint8
fig, axes = plt.subplots(1, 2, figsize=(5, 4))
for ax, (picture, title) in zip(axes, [(grey, f"crop {grey.shape}"), (fitted, f"as the network sees it {fitted.shape}")]):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255); ax.set_title(title, fontsize=9); ax.axis("off")

# %% [markdown]
# ## One file
# The worker of the stage. The PNG appears under its name only when it is whole, and its sha256 goes into the table, so that two runs can be compared without comparing pictures.

# %%
#| export
def crop_path(
    images: Path,      # cleaned_images/
    patient_id: str,
    image_id: str,
) -> Path:
    "`{patient_id}@{image_id}.png`, the name that the contract gives."
    return Path(images) / f"{patient_id}@{image_id}.png"

def write_png(
    path: Path,          # the file
    picture: np.ndarray, # uint8 (rows, columns) or (rows, columns, 3) in BGR
) -> str:                # sha256 of the file
    "Encode and write, whole or not at all."
    data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    with replacing(path) as temporary: temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()

WHOLE = ["rows", "columns", "x0", "y0", "x1", "y1"]  # columns of whole numbers, empty where a file failed

def crop_file(
    item: dict,  # file, patient_id, image_id, and folder, images, settings as set by `run`
) -> dict:       # a row of crops.csv
    "Decode, find the breast, cut, window, write."
    started = time.perf_counter()
    image = read_image(Path(item["folder"]) / item["file"])
    settings = Crops(**item["settings"])
    box = find_box(image, settings)
    windows = image.header.windows
    center, width = windows[min(settings.window, len(windows) - 1)] if windows else (None, None)
    sha = write_png(crop_path(item["images"], item["patient_id"], item["image_id"]), crop(image, box, min(settings.window, max(0, len(windows) - 1))))
    return {"patient_id": item["patient_id"], "image_id": item["image_id"], "rows": image.pixels.shape[0], "columns": image.pixels.shape[1],
            "decoder": image.decoder, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1, "box_source": box.source,
            "window_center": center, "window_width": width, "voi_function": image.header.voi_function, "sha256": sha,
            "seconds": round(time.perf_counter() - started, 3)}

# %% [markdown]
# ## Run the stage
# Every file of the table becomes a row: a crop or an error. The seconds of each file are kept apart, in `crops_seconds.csv`, since they differ from run to run and nothing else here does.

# %%
#| export
def run(
    run_dir: Path,                   # folder of the run
    recipe: str,                     # a recipe
    overrides: dict | None = None,   # changes to the section `crops`
    workers: int | None = None,      # processes; None: one a core
) -> pd.DataFrame:                   # crops.csv
    "DICOM files -> processed/cleaned_images/*.png and processed/crops.csv."
    settings = asdict(get_section(recipe, "crops", overrides))
    with stage(run_dir, "crops", reads=["processed/cleaned_label.csv"], writes=["processed/crops.csv"], parameters=settings):
        labels = read_table(locate(run_dir, "processed/cleaned_label.csv"), ["file"])
        images = locate(run_dir, "processed/cleaned_images")
        place = {"folder": str(locate(run_dir, competition(recipe))), "images": str(images), "settings": settings}
        items = [{**row, **place} for row in labels[["file", "patient_id", "image_id"]].to_dict("records")]
        work = map_files(crop_file, items, table=locate(run_dir, "processed/crops_seconds.csv"), key="file", params={**place, "code": code_of(run_dir, "crops")}, workers=workers, label="crops")
        for column in ("patient_id", "image_id"): work[column] = labels[column].values  # an error row has them too
        work = work.astype({c: "Int64" for c in WHOLE if c in work})
        write_csv(locate(run_dir, "processed/crops.csv"), work.drop(columns=["seconds"], errors="ignore"))
    return work

# %%
crops = run(run_dir, recipe, overrides, workers or None)
failed = crops[crops["error"].fillna("").ne("")]
print(f"{len(crops)} files, {len(failed)} failed")
crops.drop(columns=["sha256"]).head()

# %% [markdown]
# ## What came out
# How the boxes were found, how fast, and what they look like. A phantom knows its breast, so the boxes can be scored.

# %%
display_table = crops.groupby(["decoder", "box_source"], dropna=False).agg(files=("file", "size"), median_seconds=("seconds", "median")).reset_index()
display_table

# %%
truth = locate(run_dir, "competition/truth/boxes.csv")
if truth.exists():
    both = crops.merge(read_table(truth, ["x0"]), on=["patient_id", "image_id"], suffixes=("", "_true"))
    w = (np.minimum(both.x1, both.x1_true) - np.maximum(both.x0, both.x0_true)).clip(lower=0)
    h = (np.minimum(both.y1, both.y1_true) - np.maximum(both.y0, both.y0_true)).clip(lower=0)
    area = lambda s: (both[f"x1{s}"] - both[f"x0{s}"]) * (both[f"y1{s}"] - both[f"y0{s}"])
    both["iou"] = w * h / (area("") + area("_true") - w * h)
    plt.figure(figsize=(5, 2.5)); plt.hist(both["iou"], bins=np.linspace(0, 1, 41)); plt.xlabel("IoU of box and breast"); plt.ylabel("images")
    plt.title(f"mean {both['iou'].mean():.3f}, lowest {both['iou'].min():.3f}")

# %%
fig, axes = plt.subplots(2, 6, figsize=(11, 6))
good = crops[crops["error"].fillna("") == ""]
for ax, row in zip(axes.flat, good.iloc[np.linspace(0, len(good) - 1, 12).astype(int)].itertuples()):
    ax.imshow(cv2.imread(str(crop_path(locate(run_dir, "processed/cleaned_images"), row.patient_id, row.image_id)), cv2.IMREAD_GRAYSCALE), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{row.image_id}\n{row.box_source}", fontsize=7)
for ax in axes.flat: ax.axis("off")
fig.tight_layout()
