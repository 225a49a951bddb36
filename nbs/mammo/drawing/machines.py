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
# # Machines
# > From a drawn picture to a DICOM file, in the way of seven different machines.
#
# A `machine_id` determines how the files of a machine are written: bits stored, polarity, windows, VOI function and
# transfer syntax. Most machines write JPEG 2000 lossless, as in the real set. The others are here because other data
# sets contain their syntaxes. Site 2 reports neither density nor BI-RADS.

# %%
#| default_exp mammo.drawing.machines

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless,
                         JPEGLosslessSV1, RLELossless, generate_uid)

from mammo_nb.core.files import replacing

# %%
#| hide
import tempfile
from dataclasses import asdict

import matplotlib.pyplot as plt
import pandas as pd
import pydicom

from mammo_nb.mammo.drawing.breast import make_breast

# %% tags=["parameters"]
seed = 7   # of the drawn breast

# %%
#| export
@dataclass(frozen=True)
class Machine:
    "The properties of the files that one machine writes."
    machine_id: int
    site_id: int
    share: int                 # number of patients on this machine, out of 20
    bits_stored: int
    photometric: str           # MONOCHROME1 or MONOCHROME2
    windows: tuple             # widths of its windows, as shares of the range that tissue uses
    voi_function: str          # LINEAR or SIGMOID; "": the tag is absent
    syntax: str                # UID of the transfer syntax
    black: float               # stored value of the darkest tissue, as a share of the largest stored value

MACHINES = (
    Machine(49, 1, 6, 12, "MONOCHROME2", (1.0, 0.85, 1.2), "SIGMOID", JPEG2000Lossless, 0.50),
    Machine(48, 2, 5, 12, "MONOCHROME2", (1.0,), "", JPEG2000Lossless, 0.12),
    Machine(29, 1, 3, 16, "MONOCHROME1", (1.0,), "LINEAR", JPEG2000Lossless, 0.05),
    Machine(21, 2, 3, 12, "MONOCHROME1", (1.0, 1.3), "", JPEG2000Lossless, 0.20),
    Machine(93, 1, 1, 12, "MONOCHROME2", (1.0, 0.8, 1.2, 1.5), "LINEAR", JPEGLosslessSV1, 0.30),
    Machine(216, 2, 1, 16, "MONOCHROME2", (1.0,), "SIGMOID", RLELossless, 0.25),
    Machine(210, 2, 1, 16, "MONOCHROME1", (1.0, 1.1), "", ExplicitVRLittleEndian, 0.10),
)

def stored_values(
    pixels: np.ndarray,   # float32 (rows, columns), from 0 (air) to 1
    machine: Machine,
) -> tuple:               # stored values, uint16 (rows, columns); windows ((center, width), ...)
    "Convert a picture to the values that a machine stores, with the windows that show the picture again."
    top = 2 ** machine.bits_stored - 1
    black, white = machine.black * top, 0.94 * top
    values = np.interp(pixels, (0, 0.06, 1), (0, black, white))  # in files for presentation, air is far below tissue
    stored = np.round(values).astype(np.uint16)
    center = (black + white) / 2
    if machine.photometric == "MONOCHROME1":
        stored, center = top - stored, top - center
    return stored, tuple((round(center), round((white - black) * w)) for w in machine.windows)

# %%
pd.DataFrame([asdict(m) for m in MACHINES]).assign(syntax=[m.syntax.name.split(",")[0] for m in MACHINES])

# %% [markdown]
# ## One DICOM file
# As in the real files, there is no Modality, no date and no name. Identifiers are derived from the ids of patient and
# image, so that a file has the same bytes on every computer.

# %%
#| export
def encode(
    pixels: np.ndarray,   # uint16 (rows, columns)
    syntax: str,          # UID of the transfer syntax
    bits_stored: int,
    dataset: Dataset,     # its PixelData is set
):
    "Encode pixels without loss. Raises ValueError for a transfer syntax that no machine writes."
    if syntax == JPEG2000Lossless:
        frame = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True,
                                          bitspersample=bits_stored)
    elif syntax == JPEGLosslessSV1:
        frame = imagecodecs.jpeg_encode(pixels, lossless=True, predictor=1, bitspersample=bits_stored)
    elif syntax == ExplicitVRLittleEndian:
        frame = pixels.astype("<u2").tobytes()
    elif syntax == RLELossless:
        dataset.PixelData = b""
        return dataset.compress(RLELossless, pixels, generate_instance_uid=False)
    else:
        raise ValueError(f"Transfer syntax {syntax} cannot be written. Use the syntax of one of MACHINES.")
    dataset.PixelData = frame if syntax == ExplicitVRLittleEndian else encapsulate([frame])
    dataset["PixelData"].VR = "OW" if syntax == ExplicitVRLittleEndian else "OB"

def write_dicom(
    path: Path,                  # the file to write
    pixels: np.ndarray,          # stored values, uint16 (rows, columns)
    *,
    patient_id: str,
    image_id: str,
    laterality: str,             # L or R
    view: str,                   # CC or MLO
    syntax: str,                 # UID of the transfer syntax
    photometric: str,            # MONOCHROME1 or MONOCHROME2
    bits_stored: int,
    windows: tuple = (),         # ((center, width), ...), in stored values
    voi_function: str = "",      # "": the tag is absent
    implant: bool = False,
    burned_in: bool = False,     # whether letters are burned into the picture
    flipped: bool = False,       # whether the picture is mirrored against the convention
    number: int = 1,             # InstanceNumber
):
    "Write a single-frame mammogram for presentation. The file is whole or absent."
    uid = lambda *what: generate_uid(entropy_srcs=[*map(str, what)])
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID = DigitalMammographyXRayImageStorageForPresentation, uid(patient_id, image_id)
    d.StudyInstanceUID, d.SeriesInstanceUID = uid(patient_id), uid(patient_id, laterality)
    d.PresentationIntentType = "FOR PRESENTATION"
    d.PatientID, d.InstanceNumber, d.BodyPartExamined = patient_id, number, "BREAST"
    d.ImageLaterality, d.ViewPosition = laterality, view
    d.FieldOfViewHorizontalFlip = "YES" if flipped else "NO"
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, photometric, 0
    d.Rows, d.Columns = pixels.shape
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, bits_stored, bits_stored - 1
    d.BurnedInAnnotation, d.BreastImplantPresent = ("YES" if burned_in else "NO"), ("YES" if implant else "NO")
    d.RescaleIntercept, d.RescaleSlope, d.LossyImageCompression = 0, 1, "00"
    if windows:
        centers, widths = zip(*windows)
        d.WindowCenter, d.WindowWidth = (list(centers), list(widths)) if len(windows) > 1 else (centers[0], widths[0])
    if voi_function:
        d.VOILUTFunction = voi_function
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    encode(pixels, syntax, bits_stored, d)
    d.file_meta.ImplementationClassUID, d.file_meta.ImplementationVersionName = uid("mammo_nb"), "MAMMO_NB"
    with replacing(path) as temporary:
        d.save_as(temporary, enforce_file_format=True)

# %% [markdown]
# ## What came out
# The same breast as each machine stores it. What is read is what was written, and some machines store the negative.

# %%
scratch = Path(tempfile.mkdtemp())
b = make_breast(np.random.default_rng(seed), "L", "MLO", (512, 416), "mass")
fig, axes = plt.subplots(1, len(MACHINES), figsize=(12, 2.6))
for ax, m in zip(axes, MACHINES):
    stored, windows = stored_values(b.pixels, m)
    write_dicom(scratch / "one.dcm", stored, patient_id="1", image_id="2", laterality="L", view="MLO", syntax=m.syntax,
                photometric=m.photometric, bits_stored=m.bits_stored, windows=windows, voi_function=m.voi_function)
    read = pydicom.dcmread(scratch / "one.dcm")
    assert np.array_equal(read.pixel_array, stored) and "Modality" not in read
    ax.imshow(read.pixel_array, cmap="gray")
    ax.set_title(f"{m.machine_id}: {m.bits_stored} bits\n{m.photometric}", fontsize=8)
    ax.axis("off")

# %% [markdown]
# ---
# [↑ Mammography](../00_system.py)
