"""Recipe `verified` and its controls, or `repair`, on two third-party models: data/results/peers.csv.

    python tests/benchmarks/peers_table.py [seeds] [spc] [models]     # a run takes one to three minutes
    python tests/benchmarks/peers_table.py [seeds] [spc] [models] repair     # about eight minutes of a core

Every row is one draw of the defender's images; the test images only measure. All settings are the defaults. The models
(I-BAU's published checkpoints, CIFAR-10) lie beside the repository only in development: their defence images are drawn
from test images 0..4999, and every second one of 5000..9999 measures.
"""

import platform
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from shared_data import decoded
from torch import nn

import gradprune as gp
from gradprune.attacks import BadNets
from gradprune.base.paths import write_atomic
from gradprune.datasets import Dataset, ImageSet
from gradprune.defenses import ft_distilled, ft_unlearn
from gradprune.evaluation import der
from gradprune.models import SmallVGG
from gradprune.victims import Victim

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "data/results/peers.csv"
SHARED = ROOT.parent / "shared"
PEERS = {"badnets": "badnets_8_02_ckpt.pth", "trojan_wm": "trojan_wm_2_02_ckpt.pth"}


class Watermark(nn.Module):
    """Adds a picture to the image and clips."""

    def __init__(self, path):
        super().__init__()
        mark = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
        self.register_buffer("mark", mark.float() / 255)

    def forward(self, images):
        return (images + self.mark).clamp(0, 1)


def peer(name):
    """A third-party model with its trigger and data; there is no training set."""
    packed = np.load(SHARED / "data/cifar10_all_jpeg90.npz", allow_pickle=False)
    images = torch.from_numpy(decoded(packed, slice(50_000, None)))
    everything = ImageSet(images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(packed["y_test"].astype(np.int64)),
                          tuple(map(str, packed["classes"])))
    pool, test = everything.subset(torch.arange(5000)), everything.subset(torch.arange(5000, 10_000, 2))
    model = SmallVGG(10)
    weights = torch.load(SHARED / "peers/ibau" / PEERS[name], weights_only=True, map_location="cpu")["net"]
    model.load_state_dict(weights)
    trigger, target = ((BadNets(size=4, color="white", margin=1), 8) if name == "badnets"
                       else (Watermark(SHARED / "peers/ibau/trojan_wm.png"), 2))
    return Victim(model.eval(), trigger, target, Dataset(pool, pool, test), {})


def row_of(name, spc, seed, stage, given, figures, result, filters=0):
    print(name, spc, seed, f"{stage:12}", figures, f"{filters} filters", result.seconds, result.stopped, flush=True)
    return {"model": name, "spc": spc, "seed": seed, "stage": stage, "filters": filters,
            "stopped": result.stopped if stage in ("verified", "repair") else "",
            **{key: round(value, 4) for key, value in figures._asdict().items()},
            "der": round(der(given, figures), 4), "gradprune": gp.__version__,
            **{f"{key}_seconds": round(value, 1) for key, value in result.seconds.items()},
            "torch": torch.__version__.split("+")[0], "machine": platform.machine(), "threads": torch.get_num_threads()}


def repairs(seeds, spcs, models):
    for name in models:
        victim = peer(name)
        for seed in seeds:
            for spc in spcs:
                result = gp.repair(victim.model, victim.data.defense, spc=spc, seed=seed, progress=False)
                yield row_of(name, spc, seed, "repair", victim.evaluate(), victim.evaluate(result.model), result)


def rows(seeds, spcs, models):
    for name in models:
        victim = peer(name)
        given = victim.evaluate()
        for seed in seeds:
            for spc in spcs:
                settings = {"spc": spc, "seed": seed, "progress": False}
                result = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, recipe="verified", **settings)
                alone, unlearned = (method(victim.model, victim.data.defense, victim.trigger, **settings)
                                    for method in (ft_distilled, ft_unlearn))
                pruned = [row["round"] for row in result.rows("prune") if row.get("kept")]
                removed = {"pruned": pruned[0], "verified": len(result.mask.positions)}
                for stage, model in {"before": None, "pruned": result.pruned, "verified": result.model,
                                     "ft_distilled": alone.model, "ft_unlearn": unlearned.model}.items():
                    figures = given if model is None else victim.evaluate(model)
                    yield row_of(name, spc, seed, stage, given, figures, result, removed.get(stage, 0))


def main(seeds="0,1,2", spcs="2,10", models="badnets,trojan_wm", method="verified"):
    """Measure, and put the rows in the place of earlier ones for the same model, spc and seed."""
    keys = ["model", "spc", "seed", "stage"]
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=keys)
    measured = repairs if method == "repair" else rows
    for row in measured(list(map(int, seeds.split(","))), list(map(int, spcs.split(","))), models.split(",")):
        table = pd.concat([table, pd.DataFrame([row])]).drop_duplicates(keys, keep="last")
        write_atomic(OUT, lambda temporary, table=table: table.to_csv(temporary, index=False))
    means = table.groupby(["model", "spc", "stage"], sort=False)[["acc", "asr", "ra", "der"]].mean()
    print((100 * means).round(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
