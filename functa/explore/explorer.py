"""What can be asked of a run, and the answers as arrays.

Nothing here knows of pages and requests. One thread at a time: programs and latents are kept between calls.
"""

from typing import Any, NamedTuple

import numpy as np

from functa.data.functaset.format import float32_latents
from functa.evaluation.analysis.latent_space import bicubic
from functa.explore import collection, decoding, drawing, imputing
from functa.explore.drawing import Encoded, Sample, Settings
from functa.explore.imputing import Imputed
from functa.explore.opened import Opened


class Record(NamedTuple):
    """A record of the functaset by its place in a split."""

    split: str
    row: int


class Browsed(NamedTuple):
    """A page of records.

    Attributes:
      page: which ones; images: [n, h, w, c] float32, decoded.
      originals: [n, h, w, c] uint8, None where they are missing; note: why, a sentence or "".
    """

    page: collection.Page
    images: np.ndarray
    originals: np.ndarray | None
    note: str


class Decoded(NamedTuple):
    """One image at a scale s.

    Attributes:
      image: [s h, s w, c] float32, of the field.
      bicubic: the same size, enlarged from the original, or from what the field makes at scale 1.
      original: [h, w, c] uint8, None where there is none; note: why, a sentence or "".
      label: its class, -1 for none; psnr: dB, as it was stored, None for a sample.
    """

    image: np.ndarray
    bicubic: np.ndarray
    original: np.ndarray | None
    note: str
    label: int
    psnr: float | None


class Explorer:
    """A run, opened.

    Attributes:
      opened: what it has.
      doing: what is going on at the moment, for who waits.
    """

    def __init__(self, opened: Opened):
        self.opened, self.doing = opened, ""
        self._collection = collection.Collection(opened.functaset)
        self._decode = decoding.Decoder(opened.field, opened.field_params)
        self._drawing = self._imputing = None
        if opened.generator is not None:
            self._drawing = drawing.Drawing(opened.generator, self._say)
            self._imputing = imputing.Imputing(opened.generator, self._say)

    def facts(self) -> dict[str, Any]:
        """What a page has to know to ask, JSON values."""
        manifest, config = self.opened.functaset.manifest, self.opened.config
        facts = {
            "name": config.name,
            "image_shape": list(self.opened.field.image_shape),
            "latent_shape": manifest.latent_shape,
            "dtype": manifest.dtype,
            "class_names": manifest.class_names,
            "splits": {
                name: {"examples": split["examples"], "psnr": split["psnr"]}
                for name, split in manifest.splits.items()
            },
            "largest_scale": self._decode.largest_scale,
            "most_pixels": decoding.MOST_PIXELS,
            "most_on_a_page": collection.MOST_ON_A_PAGE,
            "originals": {"missing": self.opened.originals.missing},
            "generator": {"missing": self.opened.no_generator},
        }
        facts["originals"]["num_test"] = self.opened.originals.num_test
        if self._drawing is not None:
            facts["generator"] |= {
                "solvers": list(self._drawing.solvers),
                "usual": self._drawing.usual._asdict(),
                "seed": config.seed,
                "any_class": config.generate.label_dropout > 0,
                "largest_guidance": self._drawing.largest_guidance
                if config.generate.label_dropout
                else 1,
                "most_samples": drawing.MOST_SAMPLES,
                "most_steps": self._drawing.most_steps,
                "most_on_a_strip": drawing.MOST_ON_A_STRIP,
                "most_draws": imputing.MOST_DRAWS,
                "most_imputing_steps": imputing.MOST_STEPS,
            }
        return facts

    def browse(self, split: str, *, start: int, count: int, label: int | None) -> Browsed:
        """A page of a split from row `start` on, with label None of all classes.

        Raises:
          ValueError: see Collection.page.
        """
        page = self._collection.page(split, start=start, count=count, label=label)
        if not len(page.rows):
            empty = np.zeros((0, *self.opened.field.image_shape), np.float32)
            return Browsed(page, empty, None, "")
        records = page.records
        images = self._decode(float32_latents(records), 1)
        try:
            originals = self.opened.originals.read(
                split, ids=records["id"], copies=records["copy"], labels=records["label"]
            )
        except ValueError as error:
            return Browsed(page, images, None, str(error))
        return Browsed(page, images, originals, "")

    def decode(self, of: Record | Sample, *, scale: int) -> Decoded:
        """One image at `scale` times the resolution of training.

        Raises:
          ValueError: it is not there, cannot be drawn, or is too large.
        """
        if isinstance(of, Sample):
            latents = self._need_drawing().draw([of])
            original, note, psnr = None, "a sample has no original", None
            label = -1 if of.label == self._need_drawing().num_classes else of.label
        else:
            record = self._collection.record(of.split, of.row)
            latents, label, psnr = record["latents"][None], record["label"], record["psnr"]
            original, note = self._original(of.split, record)
        image = self._decode(latents, scale)[0]
        small = self._decode(latents, 1)[0]
        source = small if original is None else original.astype(np.float32) / np.float32(255)
        enlarged = np.clip(np.asarray(bicubic(source[None], scale)), 0, 1)[0]
        return Decoded(image, enlarged, original, note, label, psnr)

    def sample(self, asked: list[Sample], *, scale: int) -> np.ndarray:
        """Images [n, scale h, scale w, c] float32 of samples of one seed with the same settings.

        Raises:
          ValueError: no generator, or what cannot be drawn.
        """
        return self._decode(self._need_drawing().draw(asked), scale)

    def strip(
        self,
        ends: tuple[Record | Sample, Record | Sample],
        *,
        count: int,
        settings: Settings,
        scale: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(images [count, ...] from end to end, both ends [2, ...] as they were chosen), at a scale.

        Raises:
          ValueError: no generator, or what cannot be drawn.
        """
        draw = self._need_drawing()

        def found(end: Record | Sample) -> Encoded | Sample:
            if isinstance(end, Sample):
                return end
            record = self._collection.record(end.split, end.row)
            label = record["label"] if record["label"] >= 0 else draw.num_classes
            return Encoded(record["latents"], label)

        first, last = map(found, ends)
        strip = draw.strip((first, last), count=count, settings=settings)
        chosen = [
            draw.draw([end])[0] if isinstance(end, Sample) else end.latents for end in (first, last)
        ]
        return self._decode(strip, scale), self._decode(np.stack(chosen), scale)

    def test_image(self, row: int) -> tuple[np.ndarray, int]:
        """Image [h, w, c] uint8 and class of a test image, by its row in the data set.

        Raises:
          ValueError: it is not there.
        """
        return self.opened.originals.test_image(row)

    def impute(self, row: int, hidden: np.ndarray, *, draws: int, steps: int, seed: int) -> Imputed:
        """Fills in pixels `hidden` [h, w] bool of a test image.

        Raises:
          ValueError: no generator, no such image, or what Imputing.impute refuses.
        """
        if self._imputing is None:
            raise ValueError(self.opened.no_generator)
        image, _ = self.test_image(row)
        return self._imputing.impute(image, hidden, draws=draws, steps=steps, seed=seed)

    def _original(self, split: str, record: dict[str, Any]) -> tuple[np.ndarray | None, str]:
        ids, copies, labels = (np.array([record[name]]) for name in ("id", "copy", "label"))
        try:
            originals = self.opened.originals
            return originals.read(split, ids=ids, copies=copies, labels=labels)[0], ""
        except ValueError as error:
            return None, str(error)

    def _need_drawing(self) -> drawing.Drawing:
        if self._drawing is None:
            raise ValueError(self.opened.no_generator)
        return self._drawing

    def _say(self, doing: str) -> None:
        self.doing = doing
