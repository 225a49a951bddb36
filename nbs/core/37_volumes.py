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
# # Volumes
# > From the slices of a folder to volumes in the order of the patient, with every slice that belongs to none named.
#
# Files that a scanner sent together have one SeriesInstanceUID, but they need not form one volume: a localizer, a
# second acquisition, a copied file or a reformat may carry the same one. Each of these is found from the geometry of
# the slices, and each gets a note. No slice is dropped.

# %%
#| default_exp core.volumes

# %%
#| export
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from mammo_nb.core.geometry import (Slice, acquired, fill_orientation, is_parallel, place_groups, places_of,
                                    plane_name, shear_of, spacing_of, stacks_of)

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from mammo_nb.core.geometry import AXIAL

# %%
#| export
@dataclass
class Volume:
    "Slices of one size and orientation, ascending along their normal."
    name: str                   # SeriesInstanceUID; with /2, /3, ... when it holds several volumes
    slices: list[Slice]
    places: np.ndarray          # mm along the normal, ascending
    spacing: float | None = None  # mm; None where uneven or unknown
    notes: list = field(default_factory=list)

    @property
    def gaps(self) -> list:     # mm to the next slice; None for the last
        "Distances between neighbours."
        return [*np.diff(self.places).tolist(), None]

    @property
    def plane(self) -> str:     # 'axial', 'coronal tilted by 12.0 degrees'
        "The plane of the body."
        return plane_name(self.slices[0].orientation)

# %% [markdown]
# ## Slices to arrange
# Drawn series need no pixels: a header and a digest of the pixels are enough.

# %%
def drawn(n, series="1.2.3", start=0.0, step=5.0, first=1, **fields):
    "n axial slices, ascending; `fields` are the same in all."
    base = dict(patient_id="P1", study="1.2", series=series, orientation=AXIAL, spacing=(0.5, 0.5))
    return [Slice(**{"file": f"{series}_{first + i:02d}.dcm", "frame": 0, "rows": 64, "columns": 64,
                     "image_id": f"{series}.{first + i}", "instance_number": first + i,
                     "position": (0.0, 0.0, start + i * step), "digest": f"{series} {first + i}", **base, **fields})
            for i in range(n)]

# %% [markdown]
# ## Series
# A series is one patient, one study and one SeriesInstanceUID, wherever its files lie. Without a SeriesInstanceUID the
# series number decides. Some exports give every slice a SeriesInstanceUID of its own: three or more single slices of
# one study and series number, parallel and at different places, are put together again.

# %%
#| export
OWN_UID = "a SeriesInstanceUID of its own; put together with the others by study, series number and geometry"
NO_UID = "no SeriesInstanceUID (0020,000E); grouped by study and SeriesNumber"

def _joined(
    groups: dict,   # key -> slices
) -> dict:
    "Groups of one slice that belong together, put together."
    single = defaultdict(list)
    for key, slices in groups.items():
        if len(slices) == 1 and slices[0].position is not None and slices[0].orientation is not None:
            single[key[0], key[1], slices[0].series_number].append((key, slices[0]))
    for members in single.values():
        for stack in stacks_of([s for _, s in members]):
            if len(stack) < 3 or len(place_groups(places_of(stack))) < len(stack):
                continue
            own = set(map(id, stack))
            keys = [key for key, s in members if id(s) in own]
            for key in keys:
                del groups[key]
            groups[keys[0]] = stack
            for s in stack:
                s.notes.append(OWN_UID)
    return groups

def series_of(
    slices: list[Slice],
) -> list[list[Slice]]:  # one list a series
    "Group slices by patient, study and SeriesInstanceUID."
    groups = defaultdict(list)
    for s in slices:
        if not s.series:
            s.notes.append(NO_UID)
        groups[s.patient_id, s.study, s.series or f"number {s.series_number}"].append(s)
    return list(_joined(groups).values())

# %%
flat = drawn(3) + drawn(4, series="1.2.4", series_number=1) + drawn(2, series="")
assert [len(g) for g in series_of(flat)] == [3, 4, 2]
own = [s for i in range(4) for s in drawn(1, series=f"1.2.3.{i}", start=5 * i)]
assert [len(g) for g in series_of(own)] == [4] and own[0].notes == [OWN_UID]

# %% [markdown]
# ## The same place twice
# Two slices at one place are copies, when they have the same pixels, or the same SOPInstanceUID where pixels were not
# read. The file with the shortest name is kept, and the notes of the copies name it.

# %%
#| export
def _same(
    a: Slice,
    b: Slice,
) -> bool:
    "Whether two slices at one place are copies of each other."
    if a.digest and b.digest:
        return a.digest == b.digest
    return bool(a.image_id) and a.image_id == b.image_id

def without_copies(
    group: list[Slice],        # at one place
) -> tuple[list[Slice], list[Slice]]:  # kept, copies
    "Keep one of each set of copies."
    kept, copies = [], []
    for s in sorted(group, key=lambda s: (s.file.count("/"), len(s.file), s.file, s.frame)):
        twin = next((k for k in kept if _same(k, s)), None)
        if twin is None:
            kept.append(s)
        else:
            copies.append(s)
            s.notes.append(f"duplicate of {twin.name}; left out")
            twin.notes.append(f"{s.name} is a duplicate of it")
    return kept, copies

# %% [markdown]
# What differs at one place was acquired twice. If only a few places are doubled, a slice was scanned again: the later
# one is kept, and the earlier one gets a note. If many are doubled, there are several volumes. A tag separates them
# when it splits the slices into sets without a doubled place; otherwise the order of acquisition does.

# %%
#| export
TAGS = {"ConvolutionKernel": "kernel", "ImageType": "image_type", "AcquisitionNumber": "acquisition_number",
        "AcquisitionTime": "acquisition_time", "SliceThickness": "thickness"}
FEW = 0.3  # share of the places that may be doubled in a volume of which slices were scanned again

def _by_tag(
    slices: list[Slice],
    places: list[int],    # number of the place of each
) -> tuple[str, list[list[Slice]]]:  # keyword, sets of slices; '' and [] when no tag does it
    "Split slices by the first tag whose values have no doubled place."
    most = max(Counter(places).values())
    for keyword, name in TAGS.items():
        sets = defaultdict(list)
        for s, place in zip(slices, places):
            sets[getattr(s, name)].append((s, place))
        clean = all(len({p for _, p in members}) == len(members) for members in sets.values())
        large = len(sets) <= most or min(map(len, sets.values())) > 2
        if len(sets) > 1 and clean and large:
            return keyword, [[s for s, _ in members] for members in sets.values()]
    return "", []

def _by_order(
    slices: list[Slice],
    places: list[int],    # number of the place of each
) -> list[list[Slice]]:
    "Split slices in the order of acquisition: a new set where a place comes back, else the k-th at each place."
    most = max(Counter(places).values())
    ordered = sorted(zip(slices, places), key=lambda pair: acquired(pair[0]))
    runs, here = [[]], set()
    for s, place in ordered:
        if place in here:
            runs.append([])
            here = set()
        runs[-1].append(s)
        here.add(place)
    if len(runs) <= most:
        return runs
    sets, count = defaultdict(list), Counter()
    for s, place in ordered:
        sets[count[place]].append(s)
        count[place] += 1
    return list(sets.values())

def acquisitions_of(
    groups: list[list[Slice]],  # slices at each place, copies removed
) -> tuple[list[list[Slice]], list[Slice]]:  # sets of slices without a doubled place; slices left out
    "Split a stack into its acquisitions."
    doubled = [g for g in groups if len(g) > 1]
    if not doubled:
        return [[g[0] for g in groups]], []
    if len(groups) > 2 and len(doubled) < max(1.5, FEW * len(groups)):
        left = []
        for g in doubled:
            *earlier, last = sorted(g, key=acquired)
            for s in earlier:
                s.notes.append(f"scanned again as {last.name}, at the same place with other pixels; left out")
                last.notes.append(f"same place as {s.name}, with other pixels; this later one is kept")
            left += earlier
        return [[max(g, key=acquired) for g in groups]], left
    slices = [s for g in groups for s in g]
    places = [i for i, g in enumerate(groups) for _ in g]
    keyword, sets = _by_tag(slices, places)
    sets = sorted(sets or _by_order(slices, places), key=lambda part: min(map(acquired, part)))
    how = f"told apart by {keyword}" if keyword else "told apart by the order of acquisition"
    for k, part in enumerate(sets, 1):
        for s in part:
            s.notes.append(f"acquisition {k} of {len(sets)} at the same places; {how}")
    return sets, []

# %%
for s in (twice := drawn(4) + drawn(4, first=11)):
    s.acquisition_number = 1 if s.instance_number < 10 else 2
sets, left = acquisitions_of([[twice[i], twice[i + 4]] for i in range(4)])
assert [[s.instance_number for s in part] for part in sets] == [[1, 2, 3, 4], [11, 12, 13, 14]] and not left
sets[1][0].notes

# %% [markdown]
# Two acquisitions whose places do not coincide interleave: the stack is uneven, and each acquisition alone is even.

# %%
#| export
def interleaved(
    slices: list[Slice],   # in order, no doubled place
    places: np.ndarray,    # mm
) -> list[list[Slice]]:    # one list, or one an acquisition
    "Split an uneven stack whose acquisitions are even and overlap."
    if len(slices) < 6 or not spacing_of(places)[1]:
        return [slices]
    at = {id(s): p for s, p in zip(slices, places)}
    for keyword, name in TAGS.items():
        sets = defaultdict(list)
        for s in slices:
            sets[getattr(s, name)].append(s)
        ranges = [[at[id(part[0])], at[id(part[-1])]] for part in sets.values()]
        overlap = max(low for low, _ in ranges) < min(high for _, high in ranges)
        even = all(len(part) > 2 and spacing_of(np.array([at[id(s)] for s in part]))[0] for part in sets.values())
        if len(sets) > 1 and overlap and even:
            for k, part in enumerate(sets.values(), 1):
                for s in part:
                    s.notes.append(f"acquisition {k} of {len(sets)} in the same range; told apart by {keyword}")
            return list(sets.values())
    return [slices]

# %% [markdown]
# ## Arrange
# The largest stack of a series is its volume and keeps its name. Other stacks become volumes of their own. Localizers
# and slices without a place belong to none.

# %%
#| export
LOCALIZER = "a localizer, no slice of a volume; left out"

def _difference(
    s: Slice,
    main: Slice,   # of the largest stack
) -> str:
    "In what a slice differs from the largest stack of its series."
    if not is_parallel(replace(s, rows=main.rows, columns=main.columns), main):
        same = all(abs(p - q) < 0.01 for p, q in zip(s.orientation, main.orientation))
        return "other pixel spacing" if same else "other orientation"
    return f"other matrix, {s.rows} x {s.columns} instead of {main.rows} x {main.columns}"

def _volumes_of(
    series: list[Slice],
) -> tuple[list[list[Slice]], list[Slice]]:  # sets of slices that are a volume each, the main one first; left out
    "The volumes of one series."
    is_localizer = lambda s: any(word in ("LOCALIZER", "SCOUT", "TOPOGRAM") for word in map(str.upper, s.image_type))
    left = [s for s in series if is_localizer(s)]
    for s in left:
        s.notes.append(LOCALIZER)
    rest = [s for s in series if not is_localizer(s)]
    fill_orientation(rest)
    volumes = []
    stacks = stacks_of(rest)
    for number, stack in enumerate(stacks):  # the first is the largest
        places = places_of(stack)
        unknown = np.isnan(places)
        left += [s for s, lost in zip(stack, unknown) if lost]
        stack = [s for s, lost in zip(stack, unknown) if not lost]
        places = places[~unknown]
        groups = []
        for indices in place_groups(places):
            kept, copies = without_copies([stack[i] for i in indices])
            groups.append(kept)
            left += copies
        sets, again = acquisitions_of(groups)
        left += again
        at = {id(s): p for s, p in zip(stack, places)}
        for part in sets:
            part.sort(key=lambda s: at[id(s)])
            volumes += [[(s, at[id(s)]) for s in p] for p in interleaved(part, np.array([at[id(s)] for s in part]))]
        if number:
            for s in stack:
                s.notes.append(f"{_difference(s, stacks[0][0])} than most slices of its series; a volume of its own")
    return [v for v in volumes if v], left

def _name_twins(
    volume: list[Slice],
):
    "Add a note to slices at different places that have the same pixels or the same SOPInstanceUID."
    for name, what in (("digest", "the same pixels"), ("image_id", "the same SOPInstanceUID")):
        first = {}
        for s in volume:
            value = getattr(s, name)
            if not value or name == "image_id" and s.frame:
                continue
            if value in first:
                s.notes.append(f"{what} as {first[value].name}, at another place")
            first.setdefault(value, s)

def arrange(
    slices: list[Slice],  # of a folder, in any order; notes are added
) -> tuple[list[Volume], list[Slice]]:  # volumes; slices that belong to none, each with a note
    "Group slices into volumes, ascending along their normals."
    volumes, left, names = [], [], Counter()
    for series in series_of(sorted(slices, key=lambda s: (s.file, s.frame))):
        parts, others = _volumes_of(series)
        left += others
        for part in parts:
            members = [s for s, _ in part]
            places = np.array([p for _, p in part])
            name = members[0].series or f"{members[0].study}/number-{members[0].series_number}"
            names[name] += 1
            spacing, notes, whole = spacing_of(places)
            _name_twins(members)
            for i, note in notes.items():
                members[i].notes.append(note)
            volume = Volume(name if names[name] == 1 else f"{name}/{names[name]}", members, places, spacing)
            if names[name] > 1:
                volume.notes.append(f"volume {names[name]} of this SeriesInstanceUID")
            if whole:
                volume.notes.append(whole)
            if (shear := shear_of(members, places)) > 0.02:
                volume.notes.append(f"sheared by {shear:.3f} mm in the plane per mm along the normal")
            volumes.append(volume)
    return volumes, left

# %% [markdown]
# A folder with common faults: a series in random order with a file copied, a slice of another size, a localizer and a
# second acquisition.

# %%
order = np.random.default_rng(0).permutation(10)
folder = [drawn(10)[i] for i in order]
folder += [replace(folder[3], file="copy of it.dcm", notes=[])]
folder += drawn(1, start=50, first=11, rows=80)
folder += drawn(1, first=12, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), orientation=(0, 1, 0, 0, 0, -1))
folder += drawn(6, series="1.2.9", acquisition_number=1) + drawn(6, series="1.2.9", first=7, acquisition_number=2)
volumes, left = arrange(folder)
assert [len(v.slices) for v in volumes] == [10, 1, 6, 6] and [v.spacing for v in volumes] == [5, None, 5, 5]
assert [s.instance_number for s in volumes[0].slices] == list(range(1, 11)) and len(left) == 2
pd.DataFrame([{"volume": v.name, "slices": len(v.slices), "spacing": v.spacing, "plane": v.plane,
               "first slice's notes": "; ".join(v.slices[0].notes), "notes": "; ".join(v.notes)} for v in volumes])

# %%
pd.DataFrame([{"file": s.name, "notes": "; ".join(s.notes)} for s in left])

# %%
fig, ax = plt.subplots(figsize=(6, 2.4))
for k, v in enumerate(volumes):
    ax.plot(v.places, np.full(len(v.places), k), "s", ms=5)
ax.set(xlabel="mm along the normal", yticks=range(len(volumes)), yticklabels=[v.name for v in volumes])
fig.tight_layout()

# %% [markdown]
# ---
# [← Geometry](36_geometry.py) · [Series →](38_series.py)
