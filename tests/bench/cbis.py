"""What each choice of the recipe `cbis` is worth, on the same crops and folds of CBIS-DDSM masses.

    make reproduce RECIPE=cbis                                    # makes runs/cbis: crops and folds
    .venv/bin/python tests/bench/cbis.py runs/cbis   # every row, folds 2 and 3: four to five hours of one core
    .venv/bin/python tests/bench/cbis.py runs/cbis --rows "frozen features" "plain torch" --folds 0 1 2 3
    .venv/bin/python tests/bench/cbis.py runs/cbis_long --rows "this run"   # the run's own predictions, no training
    .venv/bin/python tests/bench/cbis.py runs/cbis --lost                   # how much of the lesions a turn cuts off

The first three rows are yardsticks. `plain torch` has our folds, initial weights and light augmentation, and nothing
else of ours: pictures of 256x256 as they are, shuffled, AdamW with one cycle to 8e-4, no EMA. The next row has our
crops at 256x144 instead. From `plain fine-tune` on each row changes something against the row above it. The rows after
`cbis_long` change one thing of `cbis`: another seed, which shows what a repetition alone does, weights without EMA,
crops that are made smaller where a turn would push the breast out of the picture, and larger inputs for fewer epochs.
AUC is per breast, the mean over its views, malignant against benign, of the folds held back, after the last epoch, so
that nothing is chosen on what is scored; with its 95 % interval, bootstrapped over patients, and for comparison the AUC
per image, without averaging, and with the best epoch of each fold. One thread. A row that trains by our stages goes on
where it was stopped, in runs/cbis/ablation, where the predictions of each row are kept, too. If those of `cbis` are
there for the same folds, the difference of the AUC from `cbis` has an interval from the same draws of patients, and a p
by DeLong. Results are added to tests/bench/results/cbis.csv.
"""
import argparse
import platform
import subprocess
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from tqdm.auto import trange

from mammo_nb.core.comparison import differences
from mammo_nb.core.files import read_json
from mammo_nb.core.metrics import auc
from mammo_nb.core.networks import create_network
from mammo_nb.core.settings import find_dataset
from mammo_nb.core.runs import locate
from mammo_nb.core.uncertainty import auc_interval
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.learning import augment as policies
from mammo_nb.mammo.learning.augment import augment
from mammo_nb.mammo.recipes import Train
from mammo_nb.mammo.system import system
from mammo_nb.mammo.train import BreastCrops, train_fold

RESULTS = Path(__file__).parent / "results" / "cbis.csv"
# where the ladder starts: Lite0, sixteen epochs of a cosine from 8e-4, the light augmentation
PLAIN = dict(network="tf_efficientnet_lite0", lesion_weight=0.0, freeze=0, mirrored=False, augment="light", epochs=16,
             lr=8e-4, min_lr=1e-5, warmup_epochs=2, drop_rate=0.2, drop_path_rate=0.0, label_smoothing=0.0,
             weight_decay=1e-2, height=256, width=144)
STEPS = {
    "plain fine-tune": {}, "broad augmentation, mirror image, first blocks frozen": dict(
        augment="broad", mirrored=True, freeze=27, epochs=12, lr=1e-3, warmup_epochs=1,
        drop_rate=0.3), "where the lesion is": dict(lesion_weight=10.0), "320x192, 7 epochs (cbis)": dict(
            height=320, width=192, epochs=7), "Lite2": dict(network="tf_efficientnet_lite2", freeze=36,
                                                            drop_path_rate=0.1), "448x256, 6 epochs (cbis_long)": dict(
                                                                height=448, width=256, epochs=6)
}
CBIS, INSIDE = "320x192, 7 epochs (cbis)", "cbis, turned breasts kept inside"
OTHERS = {"cbis, another seed": {"seed": 43}, "cbis, without EMA": {"ema_decay": 0.0}, INSIDE: {},
          "cbis, 448x256, 4 epochs": {"height": 448, "width": 256, "epochs": 4}}
ROWS = ["frozen features", "plain torch", "plain torch, our crops", *STEPS, *OTHERS, "this run"]


def changed(settings: Train, changes: dict) -> Train:
    "A section with fields of its own and of its loop replaced."
    loop = {name: value for name, value in changes.items() if name not in Train.__dataclass_fields__}
    own = {name: value for name, value in changes.items() if name in Train.__dataclass_fields__}
    return replace(settings, loop=replace(settings.loop, **loop), **own)


def frozen_features(table: pd.DataFrame, images: Path, folds: list, settings) -> pd.DataFrame:
    """ImageNet's Lite0 as it is: mean and maximum of a late stage, mean of image and mirror image, and a logistic
    regression. Stage and C are the best on these very folds of 5 stages and C = 1e-4 to 1e-2."""
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
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=3000)).fit(
            features[~held], table["cancer"][~held])
        parts.append(table[held].assign(probability=model.predict_proba(features[held])[:, 1]))
    return pd.concat(parts)


def plain_torch(pictures: list, table: pd.DataFrame, folds: list, epochs: int = 16, batch: int = 16) -> pd.DataFrame:
    """What one would write first, without this package's sampler, schedule or average of weights; no mirror image, last
    epoch."""
    parts = []
    labels = torch.tensor(table["cancer"].to_numpy(), dtype=torch.float32)
    for k in folds:
        held, rest = np.flatnonzero(table["fold"] == k), np.flatnonzero(table["fold"] != k)
        rng, steps = np.random.default_rng(k), -(-len(rest) // batch)
        torch.manual_seed(k)
        network = create_network("tf_efficientnet_lite0", weights="imagenet_lite", drop_rate=.2,
                                 seed=k).to(memory_format=torch.channels_last)
        tensor = lambda chosen: (torch.from_numpy(np.stack(chosen)).float().div(255)[:, None].expand(-1, 3, -1, -1) - .5
                                 ).div(.5).contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-4, total_steps=epochs * steps)
        for epoch in trange(epochs, desc=f"plain torch, fold {k}"):
            for chosen in np.array_split(rng.permutation(rest), steps):
                x = tensor([augment(pictures[i], rng, "light") for i in chosen])
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network.train()(x)[:, 0], labels[chosen]).backward()
                optimizer.step()
                schedule.step()
        with torch.inference_mode():
            said = torch.cat(
                [network.eval()(tensor([pictures[i] for i in part])).sigmoid() for part in np.array_split(held, 10)])
        parts.append(table.iloc[held].assign(probability=said.numpy()))
    return pd.concat(parts)


@contextmanager
def kept_inside():
    "The policy `broad` with a smaller scale where a turned breast would leave the picture by more than its corners."
    def broad(image, rng):
        grey, turned = image if image.ndim == 2 else image[..., 0], cv2.getRotationMatrix2D
        high, wide = (np.ptp(np.flatnonzero(grey.any(axis))) + 1 if grey.any() else 1 for axis in (1, 0))

        def matrix(centre, turn, scale):
            w, h = 2 * centre[0], 2 * centre[1]
            cosine, sine = np.cos(np.deg2rad(abs(turn))), np.sin(np.deg2rad(abs(turn)))
            fits = min(h / (high * cosine + wide * sine), w / (high * sine + wide * cosine))
            return turned(centre, turn, min(scale, max(.6, 1.15 * fits)))

        with mock.patch.object(cv2, "getRotationMatrix2D", matrix):
            return policies.broad(image, rng)

    with mock.patch.dict(policies.POLICIES, broad=broad):
        yield


def lost_lesions(table: pd.DataFrame, images: Path, settings: Train) -> str:
    "What the policy `broad` moves out of the picture, with one draw for each picture."
    data = BreastCrops(table, images, settings, {"mean": .5, "std": .5}, masks=True)
    lost, grown = [], []
    turned = cv2.getRotationMatrix2D

    def noted(centre, turn, scale):
        grown.append(scale)
        return turned(centre, turn, scale)

    for i in range(len(table)):
        before = (data.picture(i, -1)[..., 1] > 127).sum()
        with mock.patch.object(cv2, "getRotationMatrix2D", noted):
            after = (policies.augment(data.picture(i, -1), np.random.default_rng(i), "broad")[..., 1] > 127).sum()
        if before:   # a lesion may lie outside of the crop
            lost.append(1 - after / (before * grown[-1]**2))
    lost = np.array(lost)
    return (f"{lost.clip(0).mean():.1%} of the area of the lesions; more than half of the lesion in "
            f"{(lost > .5).mean():.1%} of {len(lost)} pictures; mean scale {np.mean(grown):.2f}")


def against(reference: pd.DataFrame, predictions: pd.DataFrame) -> dict:
    "The difference of the AUC per breast from that of other predictions of the same breasts."
    keys = ["patient_id", "laterality", "cancer"]
    both = per_breast(reference).merge(per_breast(predictions), on=keys, suffixes=("_1", "_2"), validate="one_to_one")
    both = both.rename(columns={"cancer": "label"}).assign(threshold_1=None, threshold_2=None)
    row = differences(both).set_index("metric").loc["AUC"]
    return {"less_cbis": row["difference"], "less_from": row["difference low"], "less_to": row["difference high"],
            "p": row["p"]}


def scores(predictions: pd.DataFrame) -> dict:
    breasts = per_breast(predictions)
    low, high = auc_interval(breasts["cancer"], breasts["probability"], breasts["patient_id"])
    return {
        "breasts": len(breasts), "auc": auc(breasts["cancer"], breasts["probability"]), "from": low, "to": high,
        "auc_images": auc(predictions["cancer"], predictions["probability"])
    }


def trained(folders: list[Path], histories: list[pd.DataFrame]) -> tuple[pd.DataFrame, float]:
    "Predictions of the held-back folds after the last epochs, and the AUC after the best ones."
    best, last = [], []
    for place, history in zip(folders, histories):
        for part, epoch in ((best, history.loc[history["auc"].idxmax(), "epoch"]), (last, history["epoch"].iloc[-1])):
            part.append(read_table(place / f"pred_{int(epoch)}.csv", ["probability"]))
    return pd.concat(last), scores(pd.concat(best))["auc"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rows", nargs="+", default=ROWS[:-1], choices=ROWS)
    parser.add_argument("--lost", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cpu = next((line.split(":")[1].strip()
                for line in subprocess.run(["lscpu"], capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Model name")), platform.processor())
    table, images = read_table(locate(args.run_dir, "folds.csv"), ["fold"]), locate(args.run_dir,
                                                                                    "processed/cleaned_images")
    settings, ways = changed(system.recipe("cbis").section(Train), PLAIN), {}
    for name, changes in STEPS.items():
        ways[name] = settings = changed(settings, changes)
    ways |= {name: changed(ways[CBIS], changes) for name, changes in OTHERS.items()}
    if args.lost:
        for name, way in (("as it is", nullcontext), ("kept inside", kept_inside)):
            with way():
                print(f"{name}: {lost_lesions(table, images, ways[CBIS])}", flush=True)
        return
    kept = args.run_dir / "ablation"
    for name in args.rows:
        started, best = time.process_time(), None
        folder = kept / name.replace(" ", "_")
        if name == "this run":
            folder = locate(args.run_dir, "checkpoints/history.csv").parent
        places = [folder / f"fold_{k}" for k in args.folds]
        if name == "frozen features":
            said = frozen_features(table, images, args.folds, ways["plain fine-tune"])
        elif name == "plain torch":
            whole = locate(args.run_dir, find_dataset("cbis_ddsm_mass_256")) / "img"
            pictures = [cv2.imread(str(whole / f"{i}.png"), cv2.IMREAD_GRAYSCALE) for i in table["image_id"]]
            said = plain_torch(pictures, table, args.folds)
        elif name == "plain torch, our crops":
            crops = BreastCrops(table, images, ways["plain fine-tune"], {"mean": .5, "std": .5})
            said = plain_torch([crops.picture(i, -1) for i in range(len(crops))], table, args.folds)
        elif name == "this run":
            said, best = trained(places, [pd.DataFrame(read_json(p / "done.json")["history"]) for p in places])
        else:
            with kept_inside() if name == INSIDE else nullcontext():
                said, best = trained(places, [train_fold(table, k, images, p, ways[name], {"row": name})
                                              for k, p in zip(args.folds, places)])
        predictions = [kept / f"{row}_{'_'.join(map(str, args.folds))}.csv".replace(" ", "_") for row in (name, CBIS)]
        kept.mkdir(exist_ok=True)
        said.to_csv(predictions[0], index=False)
        row = {**scores(said), **({} if best is None else {"auc_best_epochs": best})}
        if name != CBIS and predictions[1].exists():
            row |= against(read_table(predictions[1], ["probability"]), read_table(predictions[0], ["probability"]))
        row = {
            "row": args.run_dir.resolve().name + ", as made" if name == "this run" else name, "folds": " ".join(
                map(str, args.folds)), **{k: round(v, 3) for k, v in row.items()}, "minutes_of_a_core": round(
                (time.process_time() - started) / 60, 1), "cpu": cpu, "torch": torch.__version__,
            "timm": version("timm"), "numpy": np.__version__
        }
        known = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=["row", "folds"])
        known = known[(known["row"] != row["row"]) | (known["folds"].astype(str) != row["folds"])]
        pd.concat([known, pd.DataFrame([row])]).to_csv(RESULTS, index=False)
        print(f"{name}: AUC {row['auc']:.3f} ({row['from']:.3f} to {row['to']:.3f})", flush=True)


if __name__ == "__main__":
    main()
