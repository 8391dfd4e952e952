"""Dice where tiles meet against Dice inside them, on a volume several tiles large.

    python benchmarks/seams.py DATASET --fold 0

Needs nnU-Net's three environment variables and a trained fold of LDSegTrainer (3d_fullres). The volume is a mosaic of
the fold's validation cases at target spacing. It is predicted twice, the second time shifted by half the tiles'
distance, so that what lies on a seam once lies inside a tile the other time. Three ways: nnU-Net's distance of half a
tile, tiles that hardly overlap, and half a tile with noise that tiles do not share. No mirroring. Prints a table and
writes benchmarks/results/seams_*.json.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from ldseg_auto.folders import find_dataset, model_folder
from ldseg_auto.inference import predictor as predictor_module
from ldseg_auto.inference.binding import bound
from ldseg_auto.inference.noise import noise_tile
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.tiling import padded_shape, tiles

HERE = Path(__file__).resolve().parent
_NEAR = 2  # voxels from a tile's face
_PER_AXIS = 3  # cases along each axis of the mosaic


def mosaic(dataset: str, fold: int, identifier: str, shift: list[int]) -> tuple[torch.Tensor, np.ndarray]:
    """Validation cases side by side: image (1, z, y, x) and labels (z, y, x), with `shift` empty voxels before them."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / dataset
    cases = json.loads((folder / "splits_final.json").read_text())[fold]["val"][:_PER_AXIS ** 3]
    if len(cases) < _PER_AXIS ** 3:
        raise SystemExit(f"Fold {fold} of {dataset} has {len(cases)} validation cases; {_PER_AXIS ** 3} are needed.")
    data = nnUNetDatasetBlosc2(str(folder / identifier), cases)
    loaded = [data.load_case(case)[:2] for case in cases]
    block = np.median([segmentation.shape[1:] for _, segmentation in loaded], axis=0).astype(int)

    def fitted(array: np.ndarray, fill: float) -> np.ndarray:
        start = [(n - b) // 2 for n, b in zip(array.shape[1:], block, strict=True)]
        return crop_and_pad_nd(array[:], [[a, a + b] for a, b in zip(start, block, strict=True)], fill)

    def joined(blocks: list[np.ndarray]) -> np.ndarray:
        grid = np.empty([_PER_AXIS] * 3, dtype=object)
        for index, values in enumerate(blocks):
            grid.flat[index] = values
        whole = np.block(grid.tolist())
        return np.pad(whole, [(0, 0), *((s, 0) for s in shift)])

    image = joined([fitted(image, 0) for image, _ in loaded])
    labels = joined([fitted(segmentation, 0) for _, segmentation in loaded])
    return torch.from_numpy(image).float(), np.maximum(labels[0], 0)


def near_faces(shape: tuple[int, ...], patch: list[int], stride: tuple[int, ...], step_size: float) -> np.ndarray:
    """Voxels within `_NEAR` of a tile's face that does not lie on the volume's border, bool, (z, y, x)."""
    padded = padded_shape(shape, patch, stride)
    before = [(p - n) // 2 for p, n in zip(padded, shape, strict=True)]  # as nnU-Net pads
    near = np.zeros(shape, dtype=bool)
    plan = list(tiles(padded, patch, stride, step_size))
    for axis, size in enumerate(shape):
        faces = {face - before[axis] for tile in plan for face in (tile.start[axis], tile.start[axis] + patch[axis])}
        along = np.zeros(size, dtype=bool)
        for face in faces:
            if 0 < face < size:
                along[max(0, face - _NEAR):face + _NEAR] = True
        near |= along.reshape([-1 if a == axis else 1 for a in range(3)])
    return near


def counts(prediction: np.ndarray, labels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Per class: voxels in both, in the prediction, in the truth; (classes, 3)."""
    return np.array([[np.sum(((prediction == c) & (labels == c))[where]), np.sum((prediction == c)[where]),
                      np.sum((labels == c)[where])] for c in range(1, labels.max() + 1)])


def measure(predictor: LDSegPredictor, dataset: str, fold: int, share_noise: bool) -> dict:
    """Dice on seams and inside, both shifts pooled."""
    plans, patch = predictor.configuration_manager, predictor.configuration_manager.patch_size
    stride = predictor.network.config.latent_stride
    half = [int(p * predictor.tile_step_size / 2) // s * s for p, s in zip(patch, stride, strict=True)]
    pooled = {"seam": 0, "inside": 0}
    started = monotonic()

    def unshared(seed, key, channels, start, size, slice_index=None):
        return noise_tile(seed + hash(tuple(start)) % 2 ** 32, key, channels, start, size, slice_index)

    for shift in ([0, 0, 0], half):
        image, labels = mosaic(dataset, fold, plans.data_identifier, shift)
        with bound(predictor_module, noise_tile=noise_tile if share_noise else unshared):
            prediction = predictor.mean_probabilities(image, fold).argmax(0).numpy()
        near = near_faces(labels.shape, patch, stride, predictor.tile_step_size)
        pooled["seam"] = pooled["seam"] + counts(prediction, labels, near)
        pooled["inside"] = pooled["inside"] + counts(prediction, labels, ~near)
    result = {f"dice_{place}": (2 * c[:, 0] / (c[:, 1] + c[:, 2])).tolist() for place, c in pooled.items()}
    return result | {"shape": list(labels.shape), "patch": list(patch), "seconds": monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--samples", type=int, default=5)
    arguments = parser.parse_args()
    dataset = find_dataset(arguments.dataset)
    results = {}
    for name, step, share in (("half a tile apart", 0.5, True), ("hardly overlapping", 1.0, True),
                              ("half a tile apart, noise not shared", 0.5, False)):
        predictor = LDSegPredictor(step, use_mirroring=False, device=torch.device("cpu"), samples=arguments.samples)
        predictor.initialize_from_trained_model_folder(
            str(model_folder(dataset, "LDSegTrainer", "LDSegPlans", "3d_fullres")), [arguments.fold])
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        results[name] = measure(predictor, dataset, arguments.fold, share)
        seam, inside = (" ".join(f"{d:.4f}" for d in results[name][f"dice_{p}"]) for p in ("seam", "inside"))
        print(f"| {name} | {seam} | {inside} | {results[name]['seconds']:.0f} |", flush=True)
    record = {"date": date.today().isoformat(), "dataset": dataset, "fold": arguments.fold,
              "samples": arguments.samples, "results": results}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"seams_{dataset}_{record['date']}.json").write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
