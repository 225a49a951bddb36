"mammo/reading/tissue: a box found roughly ends where the breast ends, whatever lies beside the breast."
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammo_nb.core.detection import iou
from mammo_nb.core.dicom import Image, read_frame
from mammo_nb.core.headers import Header
from mammo_nb.mammo.crops import cut_breast
from mammo_nb.mammo.drawing.breast import mask_box
from mammo_nb.mammo.reading.boxes import Box, find_box
from mammo_nb.mammo.reading.tissue import refine_box
from mammo_nb.mammo.recipes import Crops

ROWS, COLUMNS = 416, 320
SHARED = Path(__file__).parents[1].parent / "shared/data/mammo"


def breast() -> tuple[np.ndarray, np.ndarray]:
    "Half an ellipse at the left edge with a nipple, thin tissue darker; grey levels from 0 to 1 and the mask."
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    cv2.ellipse(mask, (0, 200), (150, 120), 0, -90, 90, 1, -1)
    cv2.ellipse(mask, (150, 205), (9, 7), 0, 0, 360, 1, -1)
    depth = cv2.distanceTransform(cv2.copyMakeBorder(mask, 0, 0, 200, 0, cv2.BORDER_REPLICATE), cv2.DIST_L2, 5)[:, 200:]
    return np.float32(mask * (.25 + .45 * np.clip(depth / 30, 0, 1))), mask > 0


def marker(picture: np.ndarray):
    "Letters in the air that a scratch links to the skin."
    ink = np.zeros(picture.shape, np.uint8)
    cv2.putText(ink, "L CC", (190, 120), cv2.FONT_HERSHEY_SIMPLEX, 1, 1, 4)
    cv2.line(ink, (120, 140), (200, 115), 1, 1)
    picture[ink > 0] = 1

def abdomen(picture: np.ndarray):
    "Tissue as bright as the breast, which touches it at the chest wall below the fold."
    y, x = np.mgrid[:ROWS, :COLUMNS]
    picture[(y > 318) & (x < 8 + .35 * (y - 318))] = .5

def wide_abdomen(picture: np.ndarray):
    "The same, half as wide as the breast."
    picture[330:, :75] = .5
    picture[300:335, :6] = .5

def collimator(picture: np.ndarray):
    "A bright strip at the upper and the lower edge and a grey one along the chest wall, all joined to the breast."
    picture[:6] = picture[-6:] = 1
    picture[:, :7] = np.maximum(picture[:, :7], .3)

def skin_line(picture: np.ndarray):
    "A rim of 7 pixels at 6 % of the contrast, which the mask already contains."
    inside = cv2.erode(np.uint8(picture > 0), np.ones((15, 15), np.uint8))
    picture[(picture > 0) & (inside == 0)] = .042

def noise(picture: np.ndarray):
    picture += np.random.default_rng(3).normal(.05, .01, picture.shape).astype(np.float32)

def grey_air(picture: np.ndarray):
    np.maximum(picture, .15, out=picture)

def outside(mask: np.ndarray, box) -> int:
    "Pixels of the breast outside a box."
    x0, y0, x1, y1 = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]).astype(int)
    return int(mask.sum() - mask[y0:y1, x0:x1].sum())


ROUGH = {"cut on all sides": (10, 95, 140, 300), "too large": (0, 60, 180, 345), "too low": (5, 105, 150, 335)}

@pytest.mark.parametrize("rough", ROUGH.values(), ids=ROUGH.keys())
@pytest.mark.parametrize("besides", [(), (marker,), (abdomen,), (wide_abdomen,), (collimator,), (skin_line,), (noise,),
                                     (grey_air,), (marker, abdomen, noise)],
                         ids=lambda b: "+".join(f.__name__ for f in b) or "bare")
def test_the_refined_box_holds_the_breast_and_nothing_else(besides, rough):
    picture, mask = breast()
    for add in besides:
        add(picture)
    true = mask_box(mask)
    assert true == (0, 80, 160, 321)
    refined = refine_box(picture, rough)
    assert outside(mask, refined) == 0
    assert np.abs(refined - true).max() <= 12 and iou([refined], [true]).item() > .9


def test_a_negative_and_another_scale_of_grey_levels_give_the_same_box():
    picture, _ = breast()
    expected = refine_box(picture, ROUGH["cut on all sides"])
    for other in (1 - picture, picture * 5000 + 300, np.round(picture * 60_000).astype(np.uint16)):
        assert np.abs(refine_box(other, ROUGH["cut on all sides"]) - expected).max() <= 1


def test_an_axilla_is_not_cut_off():
    "In MLO the breast is narrower towards the upper edge, and wider again at the arm."
    picture, mask = breast()
    y, x = np.mgrid[:ROWS, :COLUMNS]
    axilla = (y < 200) & (x < 70 + np.abs(y - 60) * .3)
    picture[axilla], mask[axilla] = np.maximum(picture[axilla], .5), True
    refined = refine_box(picture, (8, 30, 140, 300))
    assert refined[1] == 0 and outside(mask, refined) == 0


def test_a_narrow_axilla_of_constant_width_is_no_strip_of_film():
    picture, mask = breast()
    picture[:120, :40], mask[:120, :40] = np.maximum(picture[:120, :40], .5), True
    refined = refine_box(picture, (0, 30, 140, 300))
    assert refined[1] == 0 and outside(mask, refined) == 0


def test_a_box_that_is_far_too_small_grows_in_several_rounds():
    picture, mask = breast()
    small = 0, 100, 115, 300
    assert outside(mask, refine_box(picture, small)) == 0


@pytest.mark.parametrize("picture", [
    np.zeros((ROWS, COLUMNS), np.uint8), np.full((ROWS, COLUMNS), 3.5), np.random.default_rng(0).random((ROWS, COLUMNS))
], ids=["black", "grey", "noise"])
def test_without_tissue_the_box_stays(picture):
    for rough in ROUGH.values():
        assert refine_box(picture, rough).tolist() == list(rough)


def test_the_margin_is_a_share_of_the_longer_side_and_stays_in_the_picture():
    picture, _ = breast()
    tight, wide = (refine_box(picture, ROUGH["too large"], margin=m) for m in (0, .05))
    added = .05 * (tight[3] - tight[1])
    assert np.allclose(wide - tight, [0, -added, added, added]) and wide[0] == 0


# ---- in a frame
class Constant:
    "A detector of 96 pixels that predicts one box for every picture: cx, cy, w, h, objectness, class."
    metadata = {"size": 96}

    def __init__(self, x0, y0, x1, y1):
        self.output = np.array([[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, .9, .9]], np.float32)

    def __call__(self, squares):
        return np.tile(self.output, (len(squares), 1, 1))


def frame_of(photometric: str = "MONOCHROME2") -> Image:
    "The breast in a frame of 832 x 640, 12 bits, with a label of 65535 that darkens the picture of a detector."
    grey = np.uint16(cv2.resize(breast()[0], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) * 4095)
    grey[20:60, 560:620] = 65_535
    fields = dict.fromkeys(Header.__dataclass_fields__)
    header = Header(**{**fields, "rows": 832, "columns": 640, "photometric": photometric, "windows": (),
                          "aspect": 1.0})
    return Image(header, 65_535 - grey if photometric == "MONOCHROME1" else grey, "none")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_detector_that_cuts_the_nipple_is_mended_but_not_in_a_faithful_recipe(photometric):
    image, graph = frame_of(photometric), Constant(2, 20, 32, 70)  # 832 rows are 96 pixels
    plain = find_box(image, Crops(growth=0), graph)
    assert (plain.x1, plain.y0, plain.y1) == (277, 173, 607) and plain.source == "detector"
    box = find_box(image, graph=graph)
    assert box.source == "detector" and box.score == plain.score
    assert outside(cv2.resize(np.uint8(breast()[1]), None, fx=2, fy=2) > 0, (box.x0, box.y0, box.x1, box.y1)) == 0
    assert np.abs(np.subtract((box.x0, box.y0, box.x1, box.y1), (0, 160, 320, 642))).max() <= 14
    faithful = find_box(image, Crops(faithful=True), graph)
    assert faithful == Box(17, 173, 277, 606, "detector", plain.score)   # truncated, and not moved


def test_a_small_detector_does_not_make_the_picture_of_the_tissue_small(tmp_path):
    from mammo_nb.mammo.drawing.machines import write_dicom
    large = cv2.resize(breast()[0], (1280, 1664), interpolation=cv2.INTER_LINEAR)
    write_dicom(tmp_path / "a.dcm", np.uint16(large * 4095), patient_id="1", image_id="2", laterality="L", view="CC",
                syntax="1.2.840.10008.1.2.4.90", photometric="MONOCHROME2", bits_stored=12, windows=((2048, 4096),),
                voi_function="")
    found = cut_breast(read_frame(tmp_path / "a.dcm"), Crops(height=64, width=32), Constant(2, 20, 32, 70))
    assert found.image.pixels.shape == (416, 320)   # a quarter: the detector alone needs less
    assert np.abs(np.subtract((found.box.x0, found.box.y0, found.box.x1, found.box.y1), (0, 320, 640, 1284))).max() < 28


# x0, y0, x1, y1 in pixels of the file, drawn by hand: the breast with its axillary tail down to the fold, and with the
# nipple, which is faint on the film
BY_HAND = {"ge_senographe_RMLO_GH133.dcm": (1163, 0, 2394, 2252), "ddsm_P_00173_benign_L_CC.dcm": (0, 666, 1560, 3889)}

@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("share", [-.06, .06])
def test_real_frames_end_where_a_hand_drew_the_box(name, share):
    if not (SHARED / name).is_file():
        pytest.skip("../shared/data is not there")
    image, true = read_frame(SHARED / name).decode(.25), np.array(BY_HAND[name], float)
    rows, columns = image.header.rows, image.header.columns
    grown = share * np.array([-1, -1, 1, 1]) * np.tile(true[2:] - true[:2], 2)
    square = np.clip(true + grown, 0, [columns, rows, columns, rows]) * 96 / max(rows, columns)
    box = find_box(image, graph=Constant(*square))
    assert iou([(box.x0, box.y0, box.x1, box.y1)], [true]).item() > .93
