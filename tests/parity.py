"""The fixtures of numerical parity: numbers by formula, weights by formula, and the folder with the figures.

The formulas are those of the README beside the figures. `PARITY` names another folder; the seed is that of its
`fill_check.json`, so a set with other inputs is tested by the same tests.
"""
import json
import os
from functools import cache
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

FOLDER = Path(os.environ.get("PARITY") or Path(__file__).parents[2] / "shared/facts/parity")
needs_parity = pytest.mark.skipif(not (FOLDER / "fill_check.json").is_file(),
                                  reason=f"needs the figures of the original in {FOLDER} (PARITY names another folder)")


def figures(name: str) -> dict:
    "A JSON file of the set; the test is skipped where the set has no such file."
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {FOLDER}")
    return json.loads(path.read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    "The arrays of an NPZ file of the set; the test is skipped where the set has no such file."
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {FOLDER}")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@cache
def seed() -> int:
    "The seed of the set."
    return int(figures("fill_check")["seed"])


def integers(name: str, count: int, start: int | None = None) -> np.ndarray:
    "uint32 numbers of a name: a counter from crc32(name) + seed * 0x9E3779B1, mixed. `start` is a seed, for tests."
    first = crc32(name.encode()) + (seed() if start is None else start) * 0x9E3779B1
    x = ((np.arange(count, dtype=np.uint64) + np.uint64(first % 2**32)) % 2**32).astype(np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x = x * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def uniform(name: str, count: int) -> np.ndarray:
    "float64 numbers in [0, 1) of a name."
    return integers(name, count) / 2.0**32


def tensor(name: str, shape, gain: float, depthwise: float = 1.0, dtype="float32") -> np.ndarray:
    "The values that fill an entry of a state dict."
    name, shape = name.removeprefix("module."), tuple(shape)
    if "int" in str(dtype):
        return np.zeros(shape, np.int64)
    u = uniform(name, int(np.prod(shape, dtype=np.int64))).reshape(shape)
    if name.endswith("running_mean"):
        values = 0.2 * (u - 0.5)
    elif name.endswith("running_var"):
        values = 0.75 + 0.5 * u
    elif len(shape) <= 1:
        values = 0.8 + 0.4 * u if name.endswith("weight") else 0.2 * (u - 0.5)
    else:
        if len(shape) > 3 and shape[1] == 1:
            gain = gain * depthwise
        values = gain * np.sqrt(3 / np.prod(shape[1:])) * (2 * u - 1)
    return values.astype(np.float32)


def filled(rows: list, gain: float, depthwise: float = 1.0) -> dict[str, torch.Tensor]:
    "A state dict from the rows [name, shape, dtype(, name under which a shared tensor was filled)] of a fixture."
    return {name: torch.from_numpy(tensor(first[0] if first else name, shape, gain, depthwise, dtype))
            for name, shape, dtype, *first in rows}


def fill(network: torch.nn.Module, gain: float, depthwise: float = 1.0, rename=lambda name: name) -> torch.nn.Module:
    "Fill a network in place, in evaluation mode; `rename` gives the original's name of an entry."
    state = {name: torch.from_numpy(tensor(rename(name), value.shape, gain, depthwise, value.dtype))
             for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def picture_input(name: str, shape, kind: str) -> np.ndarray:
    "float32 input of a network; `kind` is unit (0 to 1) or signed (-2 to 2)."
    shape = tuple(shape)
    u = uniform(name, int(np.prod(shape))).reshape(shape)
    planes = shape[:-2]
    share = uniform(name + "/amplitude", int(np.prod(planes))).reshape(planes + (1, 1))
    amplitude = 0.25 + 0.75 * share
    return (u * amplitude if kind == "unit" else 4 * u * amplitude - 2).astype(np.float32)


def given_input(stated: dict) -> np.ndarray:
    "The input that a fixture states as name, shape, kind (and reshape); its digest and its first values are checked."
    x = picture_input(stated["name"], stated["shape"], stated["kind"])
    if "first" in stated:
        np.testing.assert_allclose(x.ravel()[:len(stated["first"])], stated["first"], rtol=1e-6, atol=1e-9)
    if "sha256" in stated:
        assert sha256(x.tobytes()).hexdigest() == stated["sha256"], f"{stated['name']} is another input"
    return x.reshape(stated["reshape"]) if "reshape" in stated else x


def frame(name: str, rows: int, columns: int, marker: bool = False, monochrome1: bool = False) -> np.ndarray:
    "A mammography frame by formula, int16 (rows, columns)."
    u = uniform(name, 4)
    middle, across, down = rows * (.35 + .3 * u[0]), columns * (.35 + .4 * u[1]), rows * (.25 + .2 * u[2])
    blocks = -(-rows // 16), -(-columns // 16)
    grain = uniform(f"{name}/grain", blocks[0] * blocks[1]).reshape(blocks)
    y, x = np.arange(rows)[:, None], np.arange(columns)
    inside = 1 - ((x / across) * (x / across) + ((y - middle) / down) * ((y - middle) / down))
    grain = grain.repeat(16, 0)[:rows].repeat(16, 1)[:, :columns]
    values = np.floor(120 + (inside > 0) * (600 + 2600 * inside * (.5 + .5 * grain))) + (7 * y + 13 * x) % 11
    if marker:
        values[int(.02 * rows):int(.08 * rows), int(.85 * columns):int(.97 * columns)] = 4095
    return (4095 - values if monochrome1 else values).astype(np.int16)


def picture(name: str, rows: int, columns: int, **options) -> np.ndarray:
    "A picture by formula, uint8 (rows, columns): the frame of that name in grey levels."
    return np.minimum(255, frame(name, rows, columns, **options).astype(int) * 255 // 3600).astype(np.uint8)
