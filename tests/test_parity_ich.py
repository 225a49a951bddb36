"""The head-CT system against figures that the original code computed: pixels, crops, loader, folds and slice order.

`PARITY=FOLDER pytest tests/test_parity_ich*.py` runs another set of figures; see tests/parity.py.
"""
import numpy as np

from parity import figures, filled, integers, needs_parity, picture_input, seed, tensor

pytestmark = needs_parity


def test_the_formulas_give_the_numbers_of_fill_check():
    check = figures("fill_check")
    name = next(key for key in check if key.startswith("integers_of_")).removeprefix("integers_of_")
    assert integers(name, 5).tolist() == check[f"integers_of_{name}"]
    for stated in check["tensors"]:
        values = tensor(stated["name"], stated["shape"], stated["gain"]).astype(np.float64).ravel()
        np.testing.assert_allclose(values[:len(stated["first"])], stated["first"], rtol=1e-6)
        np.testing.assert_allclose([values[-1], values.sum()], [stated["last"], stated["sum"]], rtol=1e-6)
    stated = check["picture_input"]
    x = picture_input(stated["name"], stated["shape"], stated["kind"])
    np.testing.assert_allclose(x.ravel(), stated["values"], rtol=1e-6, atol=1e-9)


def test_a_shared_tensor_is_filled_under_its_first_name_and_whole_numbers_are_zero():
    state = filled([["module.a.weight", [3, 4], "float32"], ["b.weight", [3, 4], "float32", "module.a.weight"],
                    ["n.num_batches_tracked", [], "int64"]], 1.0)
    assert state["b.weight"].equal(state["module.a.weight"]) and state["n.num_batches_tracked"] == 0
    other = integers("a.weight", 12, start=seed() + 1)
    assert not np.array_equal(other, integers("a.weight", 12)), "another seed gives other numbers"
