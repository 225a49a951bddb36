"""What the Makefile's malloc settings are worth for training on a CPU: a step of EfficientNet-Lite0, 16 images of
256x128, with and without them, in turn.

    .venv/bin/python tests/bench/malloc.py > tests/bench/results/malloc.csv
"""
import os
import platform
import subprocess
import sys

import numpy as np

SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "67108864"}
STEP = """
import time, torch, timm
net = timm.create_model("tf_efficientnet_lite0", num_classes=1).to(memory_format=torch.channels_last).train()
optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
x, y = torch.randn(16, 3, 256, 128).to(memory_format=torch.channels_last), torch.zeros(16, 1)
for i in range(8):
    started = time.perf_counter()
    torch.nn.functional.binary_cross_entropy_with_logits(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if i >= 2:
        print(time.perf_counter() - started)
"""

seconds = {"glibc's own": [], "Makefile's": []}
for turn in range(3):
    for name, extra in (("glibc's own", {}), ("Makefile's", SETTINGS)):
        clean = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        seconds[name] += map(
            float,
            subprocess.run([sys.executable, "-c", STEP], env={**clean, **extra}, capture_output=True, text=True,
                           check=True).stdout.split())

import torch  # after the subprocesses, which must not share this one's memory

print("malloc,steps,median_img_per_s,best_img_per_s,ratio_of_medians,cores,torch,machine")
base = np.median(seconds["glibc's own"])
for name, s in seconds.items():
    figures = [len(s), f"{16 / np.median(s):.1f}", f"{16 / min(s):.1f}", f"{base / np.median(s):.2f}"]
    print(*[name, *figures, os.cpu_count(), torch.__version__, platform.platform()], sep=",")
