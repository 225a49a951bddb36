"core/pictures: a PNG written here is what others read."
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mammo_nb.core.pictures import encode_png, is_whole

SHAPES = [(1, 1), (1, 300), (300, 1), (63, 65), (64, 64), (65, 130), (257, 100), (70, 33, 3), (1, 1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_png_has_the_same_pixels_in_other_readers(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    soft = np.resize(np.arange(np.prod(shape)) // 3 % 256, shape).astype(np.uint8)
    for picture in (noise, soft, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
        data = encode_png(picture)
        assert is_whole(data)
        assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), picture)
        others = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(others[..., ::-1] if len(shape) == 3 else others, picture)


def test_a_part_of_a_picture_is_encoded_as_its_copy():
    whole = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    for part in (whole[5:70, 3:60], whole[5:70, 3:60, 1], whole[::2, ::-3, 0]):
        assert encode_png(part) == encode_png(part.copy())
