"""Shapes of the phantom: an organ of several lobes, a lesion inside it, a vessel that runs along it.

Positions are in mm relative to the centre of the image; every surface is the zero of a smooth function that is
positive inside and changes by about one per mm near the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABELS = {"background": 0, "organ": 1, "lesion": 2, "vessel": 3}
_LOBE_BLEND_MM = 2.5


@dataclass(frozen=True)
class Ellipsoid:
    """Centre (3,), radii (3,) in mm, and a rotation matrix (3, 3) from the image's axes to the ellipsoid's."""

    centre_mm: np.ndarray
    radii_mm: np.ndarray
    rotation: np.ndarray

    def depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """Approximate distance to the surface, positive inside. Points (..., 3) -> (...)."""
        scaled = (points_mm - self.centre_mm) @ self.rotation.T / self.radii_mm
        return (1 - np.linalg.norm(scaled, axis=-1)) * float(self.radii_mm.min())


@dataclass(frozen=True)
class Tube:
    """A bent tube along the third axis: the centre line is a sine in each of the other two.

    Offsets, amplitudes and phases are (2,): mm, mm, radians; the wavelength and the radius are in mm.
    """

    offset_mm: np.ndarray
    amplitude_mm: np.ndarray
    phase: np.ndarray
    wavelength_mm: float
    radius_mm: float

    def depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """Distance to the surface, positive inside. Points (..., 3) -> (...)."""
        angle = 2 * np.pi * points_mm[..., 2:] / self.wavelength_mm
        centre = self.offset_mm + self.amplitude_mm * np.sin(angle + self.phase)
        return self.radius_mm - np.linalg.norm(points_mm[..., :2] - centre, axis=-1)


@dataclass(frozen=True)
class Anatomy:
    """One patient."""

    lobes: tuple[Ellipsoid, ...]
    lesion: Ellipsoid
    vessel: Tube

    def depths_mm(self, points_mm: np.ndarray) -> dict[str, np.ndarray]:
        """Depth below the surface of each structure, before one hides another. Points (..., 3) -> (...)."""
        # lobes are joined smoothly: a log-sum-exp is a maximum with a rounded edge
        lobes = np.stack([lobe.depth_mm(points_mm) for lobe in self.lobes])
        organ = _LOBE_BLEND_MM * np.log(np.exp(lobes / _LOBE_BLEND_MM).sum(axis=0))
        return {"organ": organ, "lesion": np.minimum(self.lesion.depth_mm(points_mm), organ - 1),
                "vessel": self.vessel.depth_mm(points_mm)}

    def occupancy(self, points_mm: np.ndarray, edge_mm: float) -> np.ndarray:
        """Share of each label at each point: (labels, ...), summing to 1; edges are `edge_mm` wide.

        The vessel displaces the lesion, and the lesion the organ.
        """
        share = {name: 1 / (1 + np.exp(-np.clip(4 * depth / edge_mm, -30, 30)))
                 for name, depth in self.depths_mm(points_mm).items()}
        vessel = share["vessel"]
        lesion = share["lesion"] * (1 - vessel)
        organ = share["organ"] * (1 - share["lesion"]) * (1 - vessel)
        return np.stack([1 - organ - lesion - vessel, organ, lesion, vessel])

    def labels(self, points_mm: np.ndarray) -> np.ndarray:
        """The label at each point, uint8 of `LABELS`. Points (..., 3) -> (...)."""
        depths = self.depths_mm(points_mm)
        labels = np.zeros(points_mm.shape[:-1], dtype=np.uint8)
        for name in ("organ", "lesion", "vessel"):
            labels[depths[name] > 0] = LABELS[name]
        return labels


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient at random: size, pose and lobes of the organ, place and size of the lesion, course of the vessel."""
    centre = rng.normal(0, 1.5, 3)
    size = rng.uniform(0.9, 1.15)
    tilt = rotation(rng.normal(0, 0.25, 3))
    # two main lobes side by side and a smaller one below; their offsets and radii vary by about a tenth
    offsets = np.array([[-5.0, 0, 0], [5.0, 2, 2], [0, -5.0, -6]]) + rng.normal(0, 0.8, (3, 3))
    radii = np.array([[9.0, 8, 11], [8.0, 9, 10], [7.0, 6, 8]]) * rng.normal(1, 0.08, (3, 3))
    lobes = tuple(Ellipsoid(centre + size * offset @ tilt, size * radius, tilt)
                  for offset, radius in zip(offsets, radii, strict=True))
    host = lobes[int(rng.integers(2))]
    towards = rng.normal(0, 1, 3)
    towards /= np.linalg.norm(towards)
    lesion = Ellipsoid(host.centre_mm + towards * rng.uniform(0, 3), rng.uniform(5.4, 7.6) * rng.uniform(0.85, 1.15, 3),
                       rotation(rng.normal(0, 1, 3)))
    # behind the organ and touching it
    vessel = Tube(offset_mm=centre[:2] + np.array([rng.normal(0, 2), 12 * size + rng.normal(0, 1)]),
                  amplitude_mm=rng.uniform(1, 3, 2), phase=rng.uniform(0, 2 * np.pi, 2),
                  wavelength_mm=rng.uniform(50, 80), radius_mm=rng.uniform(3.6, 4.6))
    return Anatomy(lobes, lesion, vessel)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z by angles in radians (3,)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
