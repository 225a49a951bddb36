"Graphs that were changed after their export: numbers by hand, types node by node, and what is refused."
import numpy as np
import onnx
import pytest

from mammo_nb.core.backends import open_graph
from mammo_nb.core.graphs import KEPT, PRODUCTS, keep_columns, to_mixed, write_mixed
from mammo_nb.core.sidecars import EngineError, read_sidecar, write_graph

GRAPH = '''<ir_version: 10, opset_import: ["": 20]> blocks (uint8[n, 1, 16, 12] images) => (float[n, 2] probabilities) {
    grey = Cast<to = 1>(images)
    white = Constant<value_float = 255.0>()
    x = Div(grey, white)
    maps = Conv<strides = [2, 2]>(x, kernels)
    rectified = Relu(maps)
    deeper = Conv(rectified, more)
    sum = Add(deeper, shift)
    last = Transpose<perm = [0, 2, 3, 1]>(sum)
    normal = LayerNormalization<axis = -1>(last, scale)
    product = MatMul(normal, square)
    residual = Add(product, last)
    shares = Softmax(residual)
    means = ReduceMean<keepdims = 0>(shares, area)
    first = MatMul(means, w0)
    second = MatMul(means, w1)
    logits = Concat<axis = 1>(first, second)
    probabilities = Sigmoid(logits)
}'''
rng = np.random.default_rng(5)
WEIGHTS = {
    "kernels": rng.normal(size=(4, 1, 5, 5)) / 5, "more": rng.normal(size=(6, 4, 3, 3)) / 6,
    "shift": rng.normal(size=(1, 6, 1, 1)), "scale": rng.uniform(.5, 2, 6), "square": rng.normal(size=(6, 6)) / 2,
    "w0": rng.normal(size=(6, 1)) * 5, "w1": rng.normal(size=(6, 1)) * 5
}
PICTURES = rng.integers(0, 256, (8, 1, 16, 12), dtype=np.uint8) * (np.arange(8)[:, None, None, None] > 1)


def blocks() -> onnx.ModelProto:
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.extend([
        *(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in WEIGHTS.items()),
        onnx.numpy_helper.from_array(np.array([1, 2]), "area")
    ])
    return model


def by_hand() -> np.ndarray:
    "The same in NumPy, in double precision."
    def conv(x, k, stride):
        windows = np.lib.stride_tricks.sliding_window_view(x, k.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        return np.einsum("ncyxij,kcij->nkyx", windows, k)
    w = WEIGHTS
    last = (conv(np.maximum(conv(PICTURES / 255, w["kernels"], 2), 0), w["more"], 1) + w["shift"]).transpose(0, 2, 3, 1)
    normal = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-5) * w["scale"]
    residual = normal @ w["square"] + last
    shares = np.exp(residual) / np.exp(residual).sum(-1, keepdims=True)
    return 1 / (1 + np.exp(-shares.mean((1, 2)) @ np.concatenate([w["w0"], w["w1"]], 1)))


def types(model: onnx.ModelProto) -> dict:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    names = {1: "float32", 10: "float16"}
    return {
        v.name: names.get(v.type.tensor_type.elem_type, "other")
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
    }


def run(model: onnx.ModelProto, folder) -> np.ndarray:
    write_graph(model, folder / "g.onnx", {})
    return open_graph(folder / "g.onnx")(PICTURES)


def test_mixed_precision_is_near_the_numbers_by_hand(tmp_path):
    model, exact = blocks(), by_hand()
    assert np.abs(run(model, tmp_path) - exact).max() < 1e-6 and np.ptp(exact) > .02
    to_mixed(model)
    onnx.checker.check_model(model, full_check=True)
    assert 1e-7 < np.abs(run(model, tmp_path) - exact).max() < 2e-3


def test_each_node_computes_in_the_type_that_is_right_for_it():
    model = blocks()
    to_mixed(model)
    found, first = types(model), next(n for n in model.graph.node if n.op_type == "Conv")
    for node in model.graph.node:
        if node.op_type in ("Cast", "Concat"):
            continue
        used = {
            found[n] if n in found else onnx.helper.tensor_dtype_to_np_dtype(
                next(i.data_type for i in model.graph.initializer if i.name == n)).name for n in node.input
        } - {"other", "int64"}
        low = node.op_type in PRODUCTS and node is not first or node.op_type in ("Add", "Transpose")
        assert used == {"float16" if low else "float32"}, node
    assert {n.op_type
            for n in model.graph.node} & (KEPT | {"ReduceMean"}) == {"LayerNormalization", "Softmax", "ReduceMean"}
    stored = {i.name: i.data_type for i in model.graph.initializer}
    # those lie there in float16 only
    assert stored["scale"] == stored["kernels"] == onnx.TensorProto.FLOAT and {"more", "square", "w0", "w1"
                                                                               }.isdisjoint(stored)


def test_sums_of_squares_do_not_overflow(tmp_path):
    text = '''<ir_version: 10, opset_import: ["": 20]> squares (uint8[n, 1, 16, 12] images) => (float[n] mean) {
        grey = Cast<to = 1>(images)
        maps = Conv(grey, one)
        again = Conv(maps, one)
        sums = ReduceSumSquare<keepdims = 0>(again, area)
        roots = Sqrt(sums)
        mean = Div(roots, many)
    }'''
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend([
        onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one"),
        onnx.numpy_helper.from_array(np.float32(10.), "many"),
        onnx.numpy_helper.from_array(np.array([1, 2, 3]), "area")
    ])
    to_mixed(model)
    expected = np.sqrt((PICTURES.astype(float)**2).sum((1, 2, 3))) / 10
    assert expected.max()**2 * 100 > 65504   # which float16 could not hold
    np.testing.assert_allclose(run(model, tmp_path), expected, rtol=1e-6)


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path):
    model = blocks()
    next(i for i in model.graph.initializer if i.name == "square").CopyFrom(
        onnx.numpy_helper.from_array(np.full((6, 6), 1e5, np.float32), "square"))
    write_graph(model, tmp_path / "g.onnx", {})
    with pytest.raises(EngineError, match="g.onnx: square has values beyond 65504"):
        write_mixed(tmp_path / "g.onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_graph_with_branches_is_refused():
    text = '''<ir_version: 10, opset_import: ["": 20]> branches (float[n] x, bool c) => (float[n] y) {
        y = If (c) <then_branch = a () => (float[n] p) { p = Identity(x) },
                    else_branch = b () => (float[n] q) { q = Neg(x) }>
    }'''
    with pytest.raises(EngineError, match="branches"):
        to_mixed(onnx.parser.parse_model(text))


def test_the_json_of_a_converted_graph(tmp_path):
    written = write_graph(blocks(), tmp_path / "g.onnx", {"threshold": .3, "precision": "float32"})
    mixed = write_mixed(tmp_path / "g.onnx", tmp_path / "g.fp16.onnx")
    assert mixed == read_sidecar(tmp_path / "g.fp16.onnx") and read_sidecar(tmp_path / "g.onnx") == written
    assert (mixed["precision"], mixed["threshold"], mixed["fp32_sha256"],
            mixed["outputs"]) == ("mixed", .3, written["sha256"],
                                  written["outputs"]) and mixed["sha256"] != written["sha256"]
    again = write_mixed(tmp_path / "g.onnx", tmp_path / "h.fp16.onnx")
    assert again["sha256"] == mixed["sha256"]


@pytest.mark.parametrize("kept", [[1], [1, 0], [0, 0]])
def test_networks_are_left_out(tmp_path, kept):
    model = blocks()
    keep_columns(model, kept)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, tmp_path), by_hand()[:, kept], atol=1e-6)
    assert ("w0" in {i.name for i in model.graph.initializer}) == (0 in kept)


def test_what_is_no_ensemble_is_not_cut():
    for wrong in ([2], [-1], []):
        with pytest.raises(EngineError, match="networks 0 to 1"):
            keep_columns(blocks(), wrong)
    model = blocks()
    del model.graph.node[-1]
    model.graph.node[-1].op_type = "Add"
    model.graph.output[0].name = "logits"
    with pytest.raises(EngineError, match="This is no ensemble"):
        keep_columns(model, [0])
