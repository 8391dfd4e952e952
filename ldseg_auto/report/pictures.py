"""Arrays as pictures within the page: grey or colour images, label maps that lie over them, uncertainty."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldseg_auto.demo.pictures import COLOURS, fullest_slice
from ldseg_auto.report.volumes import Volumes

MAX_EDGE = 384  # pixels; longer edges are halved, thirded, ...
_LOSSLESS_PIXELS = 20_000  # larger images become JPEG
_JPEG_QUALITY = 88
_OPACITY = 150  # of 255
_IGNORED = "#8a8a8a"
_GOLDEN_ANGLE = 0.61803  # of a turn: hues far from each other, however many
_WINDOW_PERCENT = (0.5, 99.5)
_SAMPLE = 1_000_000  # values
_LEAST_NATS = 0.05  # shown brightest where a whole case has less: next to nothing must not glow
_COLOUR_CHANNELS = 3


@dataclass(frozen=True)
class Palette:
    """What a label value is called and looks like."""

    names: Mapping[int, str]  # in the order of the legend; without the background
    ignore_label: int | None

    @property
    def colours(self) -> dict[int, str]:
        """#rrggbb of each value."""
        found = {value: _colour(i) for i, value in enumerate(self.names)}
        return found if self.ignore_label is None else {**found, self.ignore_label: _IGNORED}

    def legend(self) -> list[dict[str, str | int]]:
        """For the page."""
        names = {**self.names, **({} if self.ignore_label is None else {self.ignore_label: "ignored"})}
        return [{"value": value, "name": name, "colour": self.colours[value]} for value, name in names.items()]


def palette(labels: Mapping[str, int | list[int]]) -> Palette:
    """Of dataset.json's labels. A value that is part of several regions is named after all of them; where several
    values then have one name, it is followed by the value."""
    names: dict[int, list[str]] = {}
    for name, value in labels.items():
        if name not in ("background", "ignore"):
            for each in value if isinstance(value, list) else [value]:
                names.setdefault(each, []).append(name)
    joined = {value: ", ".join(names[value]) for value in sorted(names)}
    number = Counter(joined.values())
    ignore = labels.get("ignore")
    return Palette({value: f"{name} ({value})" if number[name] > 1 else name for value, name in joined.items()},
                   ignore if isinstance(ignore, int) else None)


def _colour(index: int) -> str:
    if index < len(COLOURS):
        return COLOURS[index]
    from matplotlib.colors import hsv_to_rgb, to_hex

    return to_hex(tuple(hsv_to_rgb((index * _GOLDEN_ANGLE % 1, 0.75, 0.9))))


def window(image: np.ndarray, where: tuple[slice, slice, slice]) -> np.ndarray:
    """A part of (C, z, y, x) as uint8: (z, y, x) of the first channel, black and white at two percentiles of the whole
    image, or (3, z, y, x) of a colour picture as it is."""
    if is_colour(image):
        return image[(slice(_COLOUR_CHANNELS), *where)].astype(np.uint8)
    return grey(image[0][where], *limits(image[0]))


def limits(values: np.ndarray) -> tuple[float, float]:
    """The two percentiles that become black and white; of a sample of many values."""
    step = -(-values.size // _SAMPLE) | 1  # odd: an even one would meet the same few columns of most images
    sample = values.ravel()[::step]
    low, high = np.percentile(np.nan_to_num(sample), _WINDOW_PERCENT)
    return float(low), float(high)


def grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Any numbers -> uint8 of the same shape."""
    return ((np.nan_to_num(values) - low) * (255 / (high - low) if high > low else 0)).clip(0, 255).astype(np.uint8)


def is_colour(image: np.ndarray) -> bool:
    """Whether (C, z, y, x) is a flat picture with red, green and blue from 0 to 255."""
    return (image.shape[0] >= _COLOUR_CHANNELS and image.shape[1] == 1
            and bool(np.all(image == image.round()) and image.min() >= 0 and 1 < image.max() <= 255))


def slice_pictures(volumes: Volumes, colours: Palette, with_errors: bool) -> list[dict]:
    """The slice that shows the most structure and, if wanted and another one, the slice with the most wrong voxels.

    Returns:
        For the page: pictures as data URLs, the slice's index and number, and width over height.
    """
    assert volumes.image is not None
    known = volumes.truth != colours.ignore_label
    wrong = np.count_nonzero((volumes.truth != volumes.prediction) & known, axis=(1, 2))
    shown = [fullest_slice(volumes.truth * known if ((volumes.truth > 0) & known).any() else volumes.prediction)]
    if with_errors and wrong.max() > 0 and wrong.argmax() not in shown:
        shown.append(int(wrong.argmax()))
    height_mm, width_mm = (n * mm for n, mm in zip(volumes.truth.shape[1:], volumes.spacing[1:], strict=True))
    information = volumes.mutual_information
    most = _LEAST_NATS if information is None else max(_LEAST_NATS, float(information.max()))
    pictures = []
    for index in shown:
        plane = (slice(index, index + 1), slice(None), slice(None))
        uncertainty = volumes.uncertainty(plane)
        pictures.append({
            "slice": index + 1, "of": len(wrong), "wrong": int(wrong[index]), "aspect": round(width_mm / height_mm, 4),
            "image": image_url(window(volumes.image, plane)[..., 0, :, :]),
            "truth": labels_url(volumes.truth[index], colours),
            "prediction": labels_url(volumes.prediction[index], colours),
            "entropy": None if uncertainty is None else heat_url(uncertainty[0]),
            "mutual_information": None if information is None else heat_url(information[index] / most),
            "most_mutual_information": round(most, 2)})
    return pictures


def image_url(pixels: np.ndarray) -> str:
    """(y, x) or (3, y, x) uint8 -> data URL."""
    picture = Image.fromarray(np.ascontiguousarray(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1)))
    step = _step(pixels.shape[-2:])
    picture = picture.reduce(step) if step > 1 else picture
    if picture.width * picture.height > _LOSSLESS_PIXELS:
        return _url(picture, "jpeg", quality=_JPEG_QUALITY)
    return _url(picture, "png")


def labels_url(labels: np.ndarray, colours: Palette) -> str:
    """(y, x) -> data URL of a picture that lets the background through."""
    step = _step(labels.shape)
    labels = labels[::step, ::step]
    rgba = np.zeros((*labels.shape, 4), np.uint8)
    for value, colour in colours.colours.items():
        rgba[labels == value] = (*bytes.fromhex(colour[1:]), _OPACITY)
    return _url(Image.fromarray(rgba), "png", optimize=True)


def heat_url(values: np.ndarray) -> str:
    """(y, x) from 0 to 1 -> data URL, from dark to bright."""
    from matplotlib import colormaps

    step = _step(values.shape)
    picture = Image.fromarray((values[::step, ::step].clip(0, 1) * 255).round().astype(np.uint8))
    picture.putpalette((colormaps["magma"](np.arange(256), bytes=True)[:, :3]).tobytes())
    return _url(picture, "png", optimize=True)


def _step(shape: Sequence[int]) -> int:
    return -(-max(shape) // MAX_EDGE)


def _url(picture: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
