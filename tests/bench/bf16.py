"""How far bfloat16 moves an ensemble's probabilities, by the part of each network that computes in it.

    .venv/bin/python tests/bench/bf16.py --run runs/demo

It shows why openvino-bf16 is refused. The parts are stem, blocks and head of an EfficientNet in their order: from one
of them on, all compute in bfloat16 and pass on float32. The limit of a provider in reduced precision is 5e-3.
Results go to tests/bench/results/bf16.csv.
"""
import argparse
import copy
from pathlib import Path

import pandas as pd
import timm
import torch
from timm.models import EfficientNet

from mammo_nb.core.files import read_json
from mammo_nb.core.providers import LIMITS
from mammo_nb.core.runs import Run
from mammo_nb.mammo.engines import load_ensemble, sample_crops


def parts(network: EfficientNet) -> list:
    return [
        network.conv_stem, network.bn1, *(block for stage in network.blocks for block in stage), network.conv_head,
        network.bn2
    ]


def lower(ensemble: torch.nn.Module, first: int) -> None:
    "Compute everything from a part on, up to the pooling, in bfloat16."
    for network in (m for m in ensemble.modules() if isinstance(m, EfficientNet)):
        for part in parts(network)[first:]:
            part.bfloat16()
            part.register_forward_pre_hook(lambda _, given: tuple(x.bfloat16() for x in given))
            part.register_forward_hook(lambda _, __, made: made.float())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    run = Run.open(parser.parse_args().run)
    ensemble = load_ensemble(run).eval()
    size = tuple(read_json(run.path("weights/ensemble.json"))["size"])
    pictures = torch.from_numpy(sample_crops(run, size)[:, None])
    count, rows = len(parts(next(m for m in ensemble.modules() if isinstance(m, EfficientNet)))), []
    with torch.inference_mode():
        reference = ensemble(pictures)
        for first in sorted({*range(0, count - 2, 3), count - 5, count - 2}):
            lowered = copy.deepcopy(ensemble)
            lower(lowered, first)
            moved = (lowered(pictures) - reference).abs().max().item()
            rows.append({
                "parts_in_bfloat16": count - first, "of": count, "difference": float(f"{moved:.1e}"),
                "within": moved <= LIMITS["bf16"], "torch": torch.__version__, "timm": timm.__version__
            })
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).parent / "results" / "bf16.csv", index=False)
    print(table.iloc[:, :4].to_string(index=False))


if __name__ == "__main__":
    main()
