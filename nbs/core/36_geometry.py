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
# # Geometry
# > Where a slice lies in the patient, which slices are parallel, and how far apart they are.
#
# A scanner writes the position of every slice. The order of a volume follows from these positions and from nothing
# else: file names and instance numbers run backwards, repeat or are absent. This notebook works on headers only and
# reads no file.

# %%
#| default_exp core.geometry

# %% tags=["parameters"]
tilt = 18.5   # gantry tilt of the slices drawn below, degrees

# %%
#| export
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from mammo_nb.core.headers import Header

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

# %% [markdown]
# ## A slice
# The fields of a header that place an image, order it, and distinguish one acquisition from another.

# %%
#| export
@dataclass
class Slice:
    "One image of a series, without its pixels; notes are added while series are put together."
    file: str                    # relative to the folder
    frame: int                   # 1, 2, ... of a multi-frame file, else 0
    rows: int                    # pixels
    columns: int                 # pixels
    patient_id: str = ""
    study: str = ""
    series: str = ""             # SeriesInstanceUID
    image_id: str = ""           # SOPInstanceUID
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    acquisition_time: float | None = None    # seconds since midnight
    image_type: tuple = ()
    kernel: str = ""
    position: tuple | None = None            # centre of the first pixel, mm, LPS
    orientation: tuple | None = None         # direction along a row, direction down a column
    spacing: tuple | None = None             # between rows, between columns, mm
    thickness: float | None = None           # mm
    step: float | None = None                # SpacingBetweenSlices, mm
    location: float | None = None            # SliceLocation, mm
    mean: float | None = None                # mean HU, or mean rescaled value of another modality
    digest: str = ""                         # of the pixels in HU; "" when not read, or when all are equal
    offset: bool | None = None               # whether the values were HU + 1024
    more: dict = field(default_factory=dict) # what the caller of `read_series` found in the pixels
    error: str = ""
    notes: list = field(default_factory=list)

    @classmethod
    def of(cls,
        header: Header,  # of the image or the frame
        file: str,       # relative to the folder
        frame: int = 0,  # 1, 2, ... of a multi-frame file, else 0
    ):
        "The slice of a header."
        names = [n for n in cls.__dataclass_fields__ if n in Header.__dataclass_fields__]
        return cls(file=file, frame=frame, **{n: getattr(header, n) for n in names})

    @property
    def name(self) -> str:
        "Its file, with the number of the frame if the file has several."
        return f"{self.file}#{self.frame}" if self.frame else self.file

# %% [markdown]
# ## The normal
# ImageOrientationPatient holds the direction along a row and the direction down a column. Their cross product is the
# normal of the slice, and the position of a slice along it is one number.

# %%
#| export
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # rows run to the patient's left, columns to the back

def is_orientation(
    values: tuple | None,  # six cosines
) -> bool:
    "Whether two directions are of unit length and perpendicular, within 2 %."
    if values is None:
        return False
    row, column = np.array(values[:3]), np.array(values[3:])
    return bool(abs(row @ row - 1) < 0.04 and abs(column @ column - 1) < 0.04 and abs(row @ column) < 0.02)

def normal_of(
    orientation: tuple,  # six cosines
) -> np.ndarray:         # unit vector, LPS
    "Row x column, of length 1 (PS3.3 C.7.6.2.1.1)."
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)

def plane_name(
    orientation: tuple,  # six cosines
) -> str:                # 'axial', 'coronal tilted by 18.5 degrees', ...
    "The plane of the body that a slice lies in, and its angle to it."
    normal = np.abs(normal_of(orientation))
    angle = math.degrees(math.acos(min(1.0, normal.max())))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return f"{name} tilted by {angle:.1f} degrees" if angle > 0.5 else name

# %%
angle = np.radians(tilt)
tilted = (1, 0, 0, 0, np.cos(angle), -np.sin(angle))
assert np.allclose(normal_of(AXIAL), [0, 0, 1]) and plane_name((1, 0, 0, 0, 0, -1)) == "coronal"
plane_name(tilted)

# %% [markdown]
# ## Parallel slices
# Slices form one stack when they have the same matrix, the same pixel spacing and the same orientation. Orientations
# differ in their late digits from slice to slice, so a small difference is ignored. A slice without orientation or
# pixel spacing takes that of most slices of its series, and gets a note.

# %%
#| export
SAME_DIRECTION = 0.01  # largest difference of a cosine; 0.6 degrees
SAME_SPACING = 0.005   # largest relative difference of the pixel spacing

def fill_orientation(
    slices: list[Slice],  # of one series; changed in place
):
    "Give slices without a valid orientation or a pixel spacing those of the others, or an axial orientation."
    good = Counter(s.orientation for s in slices if is_orientation(s.orientation))
    spacings = Counter(s.spacing for s in slices if s.spacing and min(s.spacing) > 0)
    for s in slices:
        if not is_orientation(s.orientation):
            word = "that of the other slices" if good else "axial"
            s.notes.append(f"no valid ImageOrientationPatient (0020,0037); taken as {word}")
            s.orientation = good.most_common(1)[0][0] if good else AXIAL
        if not (s.spacing and min(s.spacing) > 0):
            s.spacing = spacings.most_common(1)[0][0] if spacings else None
            word = "that of the other slices is used" if spacings else "distances in the slice are unknown"
            s.notes.append(f"no valid PixelSpacing (0028,0030); {word}")

def is_parallel(
    a: Slice,
    b: Slice,
) -> bool:
    "Whether two slices have the same matrix, pixel spacing and orientation."
    if (a.rows, a.columns) != (b.rows, b.columns):
        return False
    if max(abs(p - q) for p, q in zip(a.orientation, b.orientation)) > SAME_DIRECTION:
        return False
    if a.spacing is None or b.spacing is None:
        return a.spacing is b.spacing
    return all(abs(p - q) <= SAME_SPACING * p for p, q in zip(a.spacing, b.spacing))

def stacks_of(
    slices: list[Slice],     # of one series, with orientation
) -> list[list[Slice]]:      # the largest first
    "Split a series into stacks of parallel slices."
    stacks = []
    for s in slices:
        for stack in stacks:
            if is_parallel(stack[0], s):
                stack.append(s)
                break
        else:
            stacks.append([s])
    return sorted(stacks, key=len, reverse=True)

# %% [markdown]
# ## Places
# The place of a slice is its position along the normal of its stack. Where some positions are absent, SliceLocation
# stands in: if it follows the position linearly in the other slices, it gives the missing ones. Where all positions are
# absent or equal, SliceLocation or at last the instance number orders the slices, and each gets a note.

# %%
#| export
BY_LOCATION = "no usable ImagePositionPatient (0020,0032); ordered by SliceLocation, positions are relative"
BY_NUMBER = ("no usable ImagePositionPatient (0020,0032) and no SliceLocation; ordered by InstanceNumber, position_mm "
             "assumes the steps of the header")
NO_PLACE = "no usable ImagePositionPatient (0020,0032); its place among the other slices is unknown"

def acquired(
    s: Slice,
) -> tuple:
    "The order in which slices were acquired, as far as the header has it."
    known = (s.acquisition_number, s.acquisition_time, s.instance_number)
    return tuple(math.inf if v is None else v for v in known) + (s.frame, s.file)

def _by_header(
    stack: list[Slice],
) -> np.ndarray:  # mm
    "Places of slices without positions; adds a note to each."
    locations = [s.location for s in stack]
    if None not in locations and (len(set(locations)) > 1 or len(stack) == 1):
        for s in stack:
            s.notes.append(BY_LOCATION)
        return np.array(locations, float)
    numbers = [s.instance_number for s in stack]
    complete = None not in numbers and len(set(numbers)) == len(numbers)
    order = sorted(stack, key=lambda s: (s.instance_number,) if complete else (s.file, s.frame))
    rank = {id(s): k for k, s in enumerate(order)}
    step = abs(stack[0].step or stack[0].thickness or 1.0)
    for s in stack:
        s.notes.append(BY_NUMBER if complete else BY_NUMBER.replace("InstanceNumber", "file name"))
    return np.array([rank[id(s)] * step for s in stack])

def places_of(
    stack: list[Slice],  # parallel
) -> np.ndarray:         # mm along the normal, in the order of `stack`; nan where it is unknown
    "Positions along the normal, or what the header has instead."
    normal = normal_of(np.mean([s.orientation for s in stack], axis=0))
    known = [s for s in stack if s.position is not None]
    along = {id(s): float(normal @ np.array(s.position)) for s in known}
    stuck = len(stack) > 2 and np.ptp(list(along.values()) or [0]) < 0.01
    if not known or stuck and len({s.location for s in stack}) == len(stack):
        return _by_header(stack)
    if len(known) < len(stack):
        both = [s for s in known if s.location is not None]
        fit = None
        if len(both) > 1 and len({s.location for s in both}) > 1:
            x, y = [s.location for s in both], [along[id(s)] for s in both]
            line = np.polyfit(x, y, 1)
            fit = line if np.abs(np.polyval(line, x) - y).max() < 0.05 else None
        for s in stack:
            if s.position is None and fit is not None and s.location is not None:
                along[id(s)] = float(np.polyval(fit, s.location))
                s.notes.append("no ImagePositionPatient (0020,0032); placed by its SliceLocation")
            elif s.position is None:
                s.notes.append(NO_PLACE)
    return np.array([along.get(id(s), math.nan) for s in stack])

# %% [markdown]
# ## Same place
# Positions carry noise, and thin slices lie close together. So the distance below which two slices lie at one place is
# taken from the steps of the stack itself: a tenth of the usual step, between 0.01 and 0.1 mm.

# %%
#| export
def place_groups(
    places: np.ndarray,  # mm, finite
) -> list[list[int]]:    # indices, ascending along the normal; several in a group lie at one place
    "Group slices that lie at the same place."
    order = np.argsort(places, kind="stable")
    steps = np.diff(places[order])
    usual = np.percentile(steps[steps > 0.01], 80) if (steps > 0.01).any() else 0.0
    near = min(0.1, max(0.01, 0.1 * usual))
    groups = []
    for i in order:
        if groups and places[i] - places[groups[-1][0]] <= near:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    return groups

# %%
assert place_groups(np.array([10, 0, 5, 5.0001])) == [[1], [2, 3], [0]]
assert len(place_groups(np.arange(12) * 0.6)) == 12

# %% [markdown]
# ## Spacing
# Neighbours are compared with the usual step, the median. Where most steps are equal and a few are larger, slices are
# missing, and both neighbours of a gap are named. Where no step is usual, the spacing is uneven, and the slices are
# named at which it changes.

# %%
#| export
def spacing_of(
    places: np.ndarray,  # mm, ascending
) -> tuple[float | None, dict[int, str], str]:  # mm or None; notes by index; a note on the whole
    "The step between slices, None where it is uneven or unknown, and what is irregular."
    gaps = np.diff(places)
    if not len(gaps):
        return None, {}, "one slice; the spacing is unknown"
    usual = float(np.median(gaps))
    near = max(0.02, 0.01 * usual)
    odd = np.flatnonzero(np.abs(gaps - usual) > near)
    if not len(odd):
        return float(gaps.mean()), {}, ""
    notes = {}
    if len(odd) < 0.4 * len(gaps) and (gaps[odd] > 1.5 * usual).all():
        whole = True
        for i in odd:
            times = round(gaps[i] / usual)
            fits = times > 1 and abs(gaps[i] - times * usual) <= near * times
            whole &= fits
            missing = f", {times - 1} missing" if fits else ""
            notes[int(i)] = f"gap of {gaps[i]:.2f} mm to the next slice instead of {usual:.2f} mm{missing}"
            before = f"gap of {gaps[i]:.2f} mm from the slice before instead of {usual:.2f} mm{missing}"
            notes[int(i) + 1] = "; ".join(filter(None, [before, notes.get(int(i) + 1, "")]))
        count = "one gap" if len(odd) == 1 else f"{len(odd)} gaps"
        return usual if whole else None, notes, f"{count} among steps of {usual:.2f} mm"
    for i in range(1, len(gaps)):
        if abs(gaps[i] - gaps[i - 1]) > near:
            notes[i] = f"the step changes here from {gaps[i - 1]:.2f} to {gaps[i]:.2f} mm"
    return None, notes, f"uneven spacing, {gaps.min():.2f} to {gaps.max():.2f} mm"

# %%
steps = {"even": np.arange(6) * 5., "one missing": np.array([0, 5, 10, 20, 25, 30]),
         "noise": np.arange(6) * 5 + np.array([0, 1, -1, 0, 1, 0]) * 1e-4,
         "fine, then coarse": np.array([0, 4, 8, 12, 13, 20, 27, 34.])}
assert [spacing_of(p)[0] for p in steps.values()] == [5, 5, 5, None]
assert list(spacing_of(steps["one missing"])[1]) == [2, 3]
pd.DataFrame({name: [*spacing_of(p)] for name, p in steps.items()}, index=["spacing, mm", "slices", "series"]).T

# %% [markdown]
# With a tilted gantry the table moves along z and the slices lean. The first pixel then moves down the columns from
# slice to slice, so the volume is a sheared box.

# %%
#| export
def shear_of(
    stack: list[Slice],  # in order
    places: np.ndarray,  # mm
) -> float:              # mm that the first pixel moves in the plane per mm along the normal; 0 when unknown
    "How much a stack is sheared."
    points = np.array([s.position for s in stack if s.position is not None])
    if len(points) < len(stack) or len(stack) < 2 or np.ptp(places) < 0.01:
        return 0.0
    normal = normal_of(np.mean([s.orientation for s in stack], axis=0))
    across = points - np.outer(points @ normal, normal)
    return float(np.linalg.norm(np.polyfit(places, across, 1)[0]))

# %%
leaning = [Slice(f"{i}.dcm", 0, 4, 4, position=(0, 0, 4.22 * i), orientation=tilted) for i in range(8)]
at = places_of(leaning)
assert np.allclose(np.diff(at), 4.22 * np.cos(angle)) and np.isclose(shear_of(leaning, at), np.tan(angle))
fig, ax = plt.subplots(figsize=(4, 3))
for s in leaning:
    start = np.array(s.position)[1:]
    ax.plot(*np.stack([start, start + 40 * np.array(tilted)[4:]]).T, color="0.3")
ax.set(xlabel="y, mm", ylabel="z, mm", aspect="equal",
       title=f"4.22 mm along the table, {np.diff(at)[0]:.2f} mm along the normal")
ax.title.set_fontsize(9);

# %% [markdown]
# ---
# [← Parallel](35_parallel.py) · [Volumes →](37_volumes.py)
