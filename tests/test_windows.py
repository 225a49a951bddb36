"core/windows: the three VOI functions against pydicom and by hand, polarity, and windows that cannot be used."
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from mammo_nb.core.windows import WindowError, apply_window, linear, linear_exact, minmax, percentile, sigmoid, to_grey

FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}

@pytest.fixture(autouse=True)
def no_warnings():
    "An overflow or a division by zero on the way is a bug even where the result is right."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield

def header(windows=(), function="LINEAR", photometric="MONOCHROME2"):
    return SimpleNamespace(windows=windows, voi_function=function, photometric=photometric)

def pydicom_grey(x, windows, function, which, bits):
    "pydicom's answer, scaled from its output range to [0, 1]."
    ds = Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", bits, int(x.dtype.kind == "i")
    ds.WindowCenter, ds.WindowWidth = [c for c, _ in windows], [w for _, w in windows]
    ds.VOILUTFunction = function
    with np.errstate(over="ignore"):
        out = apply_windowing(x, ds, index=which)  # its exp overflows where ours does not
    low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if x.dtype.kind == "i" else (0, 2**bits - 1)
    return (out - low) / (high - low)

@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind, bits", [("uint8", 8), ("uint16", 12), ("uint16", 16), ("int16", 12), ("int16", 16)])
def test_against_pydicom(function, kind, bits):
    x = np.arange(2**bits) - (2**(bits - 1) if kind == "int16" else 0)
    x = x.astype(kind)
    middle, span = float(np.median(x)), 2.0**bits
    windows = ((middle, span), (middle + span / 5, span / 7), (middle - .25, 3.5), (middle, 2), (2653, 900))
    for which in range(len(windows)):
        ours = apply_window(x, windows, function, which)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, pydicom_grey(x, windows, function, which, bits), atol=2e-6)
        assert np.array_equal(ours, FUNCTIONS[function](x, *windows[which]))

def test_by_hand():
    x = np.array([0, 1, 2, 3, 4])
    np.testing.assert_allclose(linear(x, 2, 4), [0, 1 / 3, 2 / 3, 1, 1], atol=1e-7)  # (x - 1.5) / 3 + .5
    assert linear_exact(x, 2, 4).tolist() == [0, .25, .5, .75, 1]
    np.testing.assert_allclose(sigmoid(x, 2, 4), 1 / (1 + np.exp([2, 1, 0, -1, -2])), atol=1e-7)
    assert linear(np.arange(4096), 2048, 4096)[[0, 4095]].tolist() == [0, 1]

def test_width_of_one_is_a_threshold():
    assert linear(np.array([-1, 0, 1, 2], np.int16), 1, 1).tolist() == [0, 0, 1, 1]  # black up to center - 0.5
    assert pydicom_grey(np.array([0, 1, 2], np.uint8), ((1, 1),), "LINEAR", 0, 8).tolist() == [0, 1, 1]

@pytest.mark.parametrize("function, width", [
    ("LINEAR", 0), ("LINEAR", .5), ("LINEAR", -4), ("LINEAR_EXACT", 0), ("SIGMOID", 0), ("SIGMOID", -1),
    ("LINEAR", float("nan")), ("SIGMOID", float("inf"))])
def test_an_impossible_width_names_its_tag(function, width):
    x = np.arange(300, dtype=np.uint16)
    for use in (lambda: FUNCTIONS[function](x, 100, width), lambda: apply_window(x, ((100, width),), function),
                lambda: to_grey(x, header(((100, width),), function))):
        with pytest.raises(WindowError, match=r"WindowWidth \(0028,1051\)"):
            use()
    assert apply_window(x, ((100, 50), (100, width)), function).any()  # a bad window that is not used is no error

def test_other_windows_that_cannot_be_used():
    x = np.arange(300, dtype=np.uint16)
    with pytest.raises(WindowError, match=r"WindowCenter \(0028,1050\) is nan"):
        apply_window(x, ((float("nan"), 50),))
    with pytest.raises(WindowError, match=r"VOILUTFunction \(0028,1056\) is 'GAMMA'"):
        apply_window(x, ((100, 50),), "GAMMA")
    for which in (1, -1):
        with pytest.raises(WindowError, match="no window"):
            apply_window(x, ((100, 50),), which=which)
    assert issubclass(WindowError, ValueError)

def test_narrow_and_far_windows_neither_overflow_nor_leave_the_unit_interval():
    x = np.array([-32768, 0, 32767], np.int16)
    for f, c, w in ((sigmoid, 0, 1e-3), (sigmoid, 1e6, 1), (linear, -1e6, 2), (linear_exact, 0, 1e-6)):
        out = f(x, c, w)
        assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1 and (np.diff(out) >= 0).all()
    assert sigmoid(x, 0, 1e-3).tolist() == [0, .5, 1]

def test_wide_integers_keep_their_precision():
    x = 2**30 + np.arange(5, dtype=np.int32)
    np.testing.assert_allclose(linear_exact(x, 2**30 + 2, 4), [0, .25, .5, .75, 1])

@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_minmax_and_percentile(kind):
    x = np.array([[3, 5], [7, 103]], kind)
    assert minmax(x).tolist() == [[0, np.float32(.02)], [np.float32(.04), 1]] and minmax(x).dtype == np.float32
    assert percentile(x, 0, 100).tolist() == minmax(x).tolist()
    low, high = np.percentile([3, 5, 7, 103], [10, 50])
    np.testing.assert_allclose(percentile(x, 10, 50), np.clip((np.array([[3, 5], [7, 103]]) - low) / (high - low), 0,
                                                              1), atol=1e-6)

def test_minmax_of_the_whole_range_of_int16_does_not_wrap():
    assert minmax(np.array([-32768, 32767], np.int16)).tolist() == [0, 1]

def test_a_constant_image_is_black_and_holds_no_nan():
    for value in (0, 7, 65535):
        x = np.full((300, 300), value, np.uint16)
        assert not minmax(x).any() and not percentile(x, 1, 99).any() and not apply_window(x, ()).any()
        assert not to_grey(x, header()).any()
        assert (to_grey(x, header(photometric="MONOCHROME1")) == 255).all()

def test_values_that_are_no_numbers_are_an_error():
    with pytest.raises(WindowError, match="nan"):
        minmax(np.array([0, np.nan, 1]))

@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", [">i2", "<u2", "int16", "uint8", "int8", "int32", "float32"])
@pytest.mark.parametrize("windows", [((60.5, 90),), ()])
def test_the_table_gives_what_the_formula_gives(function, kind, windows):
    dtype = np.dtype(kind)
    low = 0 if dtype.kind == "u" else -100
    x = np.random.default_rng(0).integers(low, 128, (400, 300)).astype(dtype)  # large enough for the table
    f = (lambda v: FUNCTIONS[function](v, *windows[0])) if windows else minmax
    assert np.array_equal(apply_window(x, windows, function), f(x))
    assert np.array_equal(apply_window(x.T[::2, ::-1], windows, function), f(x.T[::2, ::-1]))  # not contiguous
    assert np.array_equal(to_grey(x, header(windows, function)),
                          np.floor(f(x).astype(np.float64) * 255 + 1e-4).astype(np.uint8))

def test_monochrome1_is_inverted_after_the_window():
    x = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for function in FUNCTIONS:
        window = header(((1000, 800),), function)
        inverted = to_grey(x, header(((1000, 800),), function, "MONOCHROME1"))
        grey = apply_window(x, window.windows, function).astype(np.float64)
        assert np.abs(inverted - (1 - grey) * 255).max() < 1 and inverted[0, 0] >= 250 and inverted[-1, -1] <= 5
        assert (inverted.astype(int) + to_grey(x, window) >= 254).all()  # both cut off

def test_levels_are_cut_off_but_exact_ones_stay():
    x = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_grey(x, header(((128, 256),))), x)  # 256 values onto 256 levels
    assert np.array_equal(to_grey(x, header(((128, 256),), photometric="MONOCHROME1")), 255 - x)
    sixteen = np.arange(65536, dtype=np.uint16)
    # 65535 / 255 = 257 values a level
    assert np.array_equal(to_grey(sixteen, header(((32768, 65536),))), sixteen // 257)

def test_which_window():
    x = np.arange(5000, dtype=np.uint16)
    windows = ((2653, 900), (2713, 750), (2569, 1050))
    greys = [to_grey(x, header(windows, "SIGMOID"), which=i) for i in range(3)]
    assert np.array_equal(greys[0], to_grey(x, header(windows, "SIGMOID")))
    assert not np.array_equal(greys[0], greys[1]) and np.array_equal(greys[2], to_grey(
        x, header(windows[2:], "SIGMOID")))
