"""What each choice of the recipe `cbis` is worth, on the same crops and folds of CBIS-DDSM masses.

    make reproduce RECIPE=cbis                                    # makes runs/cbis: crops and folds
    .venv/bin/python tests/bench/cbis.py runs/cbis                # every row, folds 2 and 3: three hours of one core
    .venv/bin/python tests/bench/cbis.py runs/cbis --rows "frozen features" "plain fine-tune" --folds 0 1 2 3

Each row changes something against the row above it. AUC is per breast, the mean over its views, malignant against benign, of the folds
held back, after the last epoch, so that nothing is chosen on what is scored; with its 95 % interval, bootstrapped over
patients, and for comparison the AUC per image, without averaging, and with the best epoch of each fold. One thread. A row that is stopped goes on where it was, in
runs/cbis/ablation. Results are added to tests/bench/results/cbis.csv.
"""
import argparse
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_nb.core.metrics import auc, bootstrap_interval
from mammo_nb.core.networks import create_network
from mammo_nb.core.stages import locate
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.recipes import get_section
from mammo_nb.mammo.train import BreastCrops, train_fold

RESULTS = Path(__file__).parent / "results" / "cbis.csv"
# Lite0, sixteen epochs of a cosine from 8e-4, the light augmentation: what one would write first
PLAIN = dict(network="tf_efficientnet_lite0", lesion_weight=0.0, freeze=0, mirrored=False, augment="light", epochs=16, lr=8e-4, min_lr=1e-5, warmup_epochs=2,
             drop_rate=0.2, drop_path_rate=0.0, label_smoothing=0.0, weight_decay=1e-2, height=256, width=144)
STEPS = {"plain fine-tune": {}, "broad augmentation, mirror image, first blocks frozen": dict(augment="broad", mirrored=True, freeze=27, epochs=12, lr=1e-3, warmup_epochs=1, drop_rate=0.3),
         "where the lesion is": dict(lesion_weight=10.0), "320x192, 7 epochs (cbis)": dict(height=320, width=192, epochs=7), "Lite2": dict(network="tf_efficientnet_lite2", freeze=36, drop_path_rate=0.1),
         "448x256, 6 epochs (cbis_long)": dict(height=448, width=256, epochs=6)}


def frozen_features(table: pd.DataFrame, images: Path, folds: list, settings) -> pd.DataFrame:
    "ImageNet's Lite0 as it is: mean and maximum of a late stage, mean of image and mirror image, and a logistic regression. Stage and C are the best on these very folds of 5 stages and C = 1e-4 to 1e-2."
    network = create_network("tf_efficientnet_lite0", weights="imagenet_lite").eval()
    data, features = BreastCrops(table, images, settings, network.normalization), []
    with torch.inference_mode():
        for start in range(0, len(data), 32):
            x = torch.stack([data[(i, -1)][0] for i in range(start, min(start + 32, len(data)))])
            maps = [network.forward_intermediates(v, indices=[-2], intermediates_only=True)[0] for v in (x, x.flip(-1))]
            features.append(sum(torch.cat([m.mean((2, 3)), m.amax((2, 3))], 1) for m in maps) / 2)
    features, parts = torch.cat(features).numpy(), []
    for k in folds:
        held = (table["fold"] == k).to_numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=3000)).fit(features[~held], table["cancer"][~held])
        parts.append(table[held].assign(probability=model.predict_proba(features[held])[:, 1]))
    return pd.concat(parts)


def scores(predictions: pd.DataFrame) -> dict:
    breasts = per_breast(predictions)
    low, high = bootstrap_interval(auc, breasts["cancer"], breasts["probability"], breasts["patient_id"])
    return {"breasts": len(breasts), "auc": auc(breasts["cancer"], breasts["probability"]), "from": low, "to": high, "auc_images": auc(predictions["cancer"], predictions["probability"])}


def trained(name: str, settings, table: pd.DataFrame, images: Path, folds: list, folder: Path) -> dict:
    "Scores of one way to train."
    best, last = [], []
    for k in folds:
        place = folder / name.replace(" ", "_") / f"fold_{k}"
        history = train_fold(table, k, images, place, settings, {})
        for part, epoch in ((best, history.loc[history["auc"].idxmax(), "epoch"]), (last, history["epoch"].iloc[-1])): part.append(read_table(place / f"pred_{int(epoch)}.csv", ["probability"]))
    return {**scores(pd.concat(last)), "auc_best_epochs": scores(pd.concat(best))["auc"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rows", nargs="+", default=["frozen features", *STEPS], choices=["frozen features", *STEPS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, images = read_table(locate(args.run_dir, "folds.csv"), ["fold"]), locate(args.run_dir, "processed/cleaned_images")
    settings = replace(get_section("cbis", "train"), **PLAIN)
    ways = {}
    for name, changes in STEPS.items(): ways[name] = settings = replace(settings, **changes)
    for name in args.rows:
        started = time.process_time()
        row = scores(frozen_features(table, images, args.folds, ways["plain fine-tune"])) if name == "frozen features" else trained(name, ways[name], table, images, args.folds, args.run_dir / "ablation")
        row = {"row": name, "folds": " ".join(map(str, args.folds)), **{k: round(v, 3) for k, v in row.items()}, "minutes_of_a_core": round((time.process_time() - started) / 60, 1),
               "cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "timm": version("timm"), "numpy": np.__version__}
        known = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=["row", "folds"])
        known = known[(known["row"] != row["row"]) | (known["folds"].astype(str) != row["folds"])]
        pd.concat([known, pd.DataFrame([row])]).to_csv(RESULTS, index=False)
        print(f"{name}: AUC {row['auc']:.3f} ({row['from']:.3f} to {row['to']:.3f})", flush=True)


if __name__ == "__main__": main()
