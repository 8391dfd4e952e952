"""Dice where tiles meet against Dice inside them, on a volume several tiles large.

    python benchmarks/seams.py DATASET --fold 0

Needs nnU-Net's three environment variables and a trained fold of LDSegTrainer (3d_fullres). The volume is a mosaic of
the fold's validation cases at target spacing. It is predicted twice, the second time shifted by about half the tiles'
distance; only voxels that lie on a seam in one of the two predictions and inside a tile in the other are counted, so
that both places have the same anatomy. Three ways: nnU-Net's distance of half a
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


def mosaic(dataset: str, fold: int, identifier: str, per_axis: int) -> tuple[torch.Tensor, np.ndarray]:
    """Validation cases side by side, `per_axis` along each axis: image (1, z, y, x) and labels (z, y, x)."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / dataset
    cases = json.loads((folder / "splits_final.json").read_text())[fold]["val"][:per_axis ** 3]
    if len(cases) < per_axis ** 3:
        raise SystemExit(f"Fold {fold} of {dataset} has {len(cases)} validation cases; {per_axis ** 3} are needed.")
    data = nnUNetDatasetBlosc2(str(folder / identifier), cases)
    loaded = [data.load_case(case)[:2] for case in cases]
    block = np.median([segmentation.shape[1:] for _, segmentation in loaded], axis=0).astype(int)

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        grid = np.empty([per_axis] * 3, dtype=object)
        for index, array in enumerate(arrays):
            start = [(n - b) // 2 for n, b in zip(array.shape[1:], block, strict=True)]
            grid.flat[index] = crop_and_pad_nd(array[:], [[a, a + b] for a, b in zip(start, block, strict=True)], 0)
        return np.block(grid.tolist())

    labels = joined([segmentation for _, segmentation in loaded])
    return torch.from_numpy(joined([image for image, _ in loaded])).float(), np.maximum(labels[0], 0)


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


def measure(predictor: LDSegPredictor, image: torch.Tensor, labels: np.ndarray, fold: int, share_noise: bool) -> dict:
    """Dice on seams and inside tiles, of the same voxels."""
    patch, stride = predictor.configuration_manager.patch_size, predictor.network.config.latent_stride
    half = [int(p * predictor.tile_step_size / 2) // s * s for p, s in zip(patch, stride, strict=True)]
    started = monotonic()

    def unshared(seed, key, channels, start, size, slice_index=None):
        return noise_tile(seed + hash(tuple(start)) % 2 ** 32, key, channels, start, size, slice_index)

    predictions, near = [], []
    for shift in ([0, 0, 0], half):
        shifted = np.pad(image.numpy(), [(0, 0), *((s, 0) for s in shift)])
        with bound(predictor_module, noise_tile=noise_tile if share_noise else unshared):
            predicted = predictor.mean_probabilities(torch.from_numpy(shifted), fold).argmax(0).numpy()
        back = tuple(slice(s, None) for s in shift)
        predictions.append(predicted[back])
        near.append(near_faces(predicted.shape, patch, stride, predictor.tile_step_size)[back])
    pooled = {"seam": np.zeros(()), "inside": np.zeros(())}
    for first, second in ((0, 1), (1, 0)):
        where = near[first] & ~near[second]
        pooled["seam"] = pooled["seam"] + counts(predictions[first], labels, where)
        pooled["inside"] = pooled["inside"] + counts(predictions[second], labels, where)
    result = {f"dice_{place}": (2 * c[:, 0] / (c[:, 1] + c[:, 2])).tolist() for place, c in pooled.items()}
    return result | {"shape": list(labels.shape), "patch": list(patch), "seconds": monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--per_axis", type=int, default=3, help="cases along each axis of the mosaic")
    arguments = parser.parse_args()
    dataset = find_dataset(arguments.dataset)
    results = {}
    for name, step, share in (("half a tile apart", 0.5, True), ("hardly overlapping", 1.0, True),
                              ("half a tile apart, noise not shared", 0.5, False)):
        predictor = LDSegPredictor(step, use_mirroring=False, device=torch.device("cpu"), samples=arguments.samples)
        predictor.initialize_from_trained_model_folder(
            str(model_folder(dataset, "LDSegTrainer", "LDSegPlans", "3d_fullres")), [arguments.fold])
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        identifier = predictor.configuration_manager.data_identifier
        image, labels = mosaic(dataset, arguments.fold, identifier, arguments.per_axis)
        results[name] = measure(predictor, image, labels, arguments.fold, share)
        seam, inside = (" ".join(f"{d:.4f}" for d in results[name][f"dice_{p}"]) for p in ("seam", "inside"))
        print(f"| {name} | {seam} | {inside} | {results[name]['seconds']:.0f} |", flush=True)
    record = {"date": date.today().isoformat(), "dataset": dataset, "fold": arguments.fold,
              "samples": arguments.samples, "per_axis": arguments.per_axis, "results": results}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"seams_{dataset}_{record['date']}.json").write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
