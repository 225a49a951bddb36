"""How often the hottest place of a cancer that was found lies inside of its lesion.

    .venv/bin/python tests/bench/heat_maps.py runs/demo runs/cbis   # runs with weights, and with masks or drawn lesions

Each image is explained by the network of its fold, which has not seen it in training, and a hit has no tolerance. The
yardstick of the last column is a peak at a random place of the breast: the mean share of the crop's tissue that the
lesion covers. Results are added to tests/bench/results/heat_maps.csv.
"""
import argparse
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np

from mammo_nb.core.runs import Run
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.tools.heat_maps import lesion_hits, true_positives

RESULTS = Path(__file__).parent / "results" / "heat_maps.csv"


def by_chance(run: Run) -> float:
    "Share of the tissue of a crop that its lesion covers, the mean over the images."
    shares = []
    for row in true_positives(run).itertuples():
        crop = cv2.imread(str(crop_path(run.path("processed/cleaned_images"), row.patient_id, row.image_id)), 0)
        shares.append((row.mask > 127).sum() / max(1, (crop > 20).sum()))
    return float(np.mean(shares))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs of the system mammo")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for folder in parser.parse_args().runs:
        run, started = Run.open(folder), time.perf_counter()
        found = lesion_hits(run)
        if not len(found):
            print(f"{folder.name}: no cancer that was found has a known lesion")
            continue
        found.insert(0, "recipe", run.recipe)
        found = found.assign(by_chance=by_chance(run), seconds=round(time.perf_counter() - started, 1), commit=commit)
        print(found.round(3).to_string(index=False))
        found.round(4).to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)


if __name__ == "__main__":
    main()
