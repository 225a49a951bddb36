"Small mammograms, to be spoiled by the tests: a shaded half disc of 12 bits, uncompressed."
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"


def breast(rows=320, columns=256, seed=0) -> np.ndarray:
    "uint16 (rows, columns): a half disc at the left edge, thick in the middle, with a soft texture."
    y, x = np.mgrid[:rows, :columns]
    distance = np.hypot(x / (.7 * columns), (y - rows / 2) / (.42 * rows))
    thick = np.sqrt(np.clip(1 - distance**2, 0, 1))
    texture = np.kron(np.random.default_rng(seed).normal(0, 60, (rows // 8, columns // 8)), np.ones((8, 8)))
    texture = np.pad(texture, ((0, rows - texture.shape[0]), (0, columns - texture.shape[1])))
    return np.where(thick > 0, 1200 + 1800 * thick + texture, 60).astype(np.uint16)


def dataset(pixels=None, patient="P1", side="R", view="CC", **tags) -> Dataset:
    "A mammogram for presentation; None removes a tag."
    pixels = breast() if pixels is None else pixels
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    bits = 8 * pixels.dtype.itemsize
    values = {
        "SOPClassUID": PRESENTATION, "SOPInstanceUID": generate_uid(), "StudyInstanceUID": f"1.2.3.{len(patient)}",
        "Modality": "MG", "PatientID": patient, "PresentationIntentType": "FOR PRESENTATION", "ImageLaterality": side,
        "ViewPosition": view, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else bits, "HighBit": 11 if bits == 16 else bits - 1, "PixelRepresentation": 0,
        "WindowCenter": 2000, "WindowWidth": 3000, "PixelData": pixels.tobytes()}
    for name, value in (values | tags).items():
        if value is not None:
            setattr(d, name, value)
    d["PixelData"].VR = "OW" if bits > 8 else "OB"
    return d


def save(d: Dataset, path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, d, enforce_file_format=True)
    return path


def code(value, modifiers=(), scheme="SCT") -> Dataset:
    "A code with its modifiers, as in ViewCodeSequence."
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "named"
    if modifiers:
        item.ViewModifierCodeSequence = [code(m, scheme=scheme) for m in modifiers]
    return item
