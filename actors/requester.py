"""Asks a service for images (`synthesis.source=api`), each at most as often as its share of `synthesis.max_images` allows.

An image is stored as soon as it is here, and one that is stored is only read. How often an image was asked for is kept in
requests/ID.json, written before the request is sent: no stop or crash makes a run ask for more than it may. Shares need no
agreement between actors, since a row is with one actor at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from actors import deadline
from actors.columns import FAULT, Batch, summarize_error
from actors.synthesizer import BLANK, Synthesizer, read_images, store_images, stored_image, with_images
from syn4seg.config.images import SynthesisConfig
from syn4seg.errors import UserError
from syn4seg.models.endpoint import LONGEST_WAIT
from syn4seg.models.image_service import ImageService, MayNotAsk, ServiceImage
from syn4seg.store.files import exists, write_json
from syn4seg.store.readback import Counts, read_checked
from syn4seg.store.rundir import RunDir


class Requester:
    """Ask for the images that are missing, row by row; a refused one costs one row."""

    reads = Synthesizer.reads
    adds = Synthesizer.adds

    def __init__(self, run: str, names: tuple[str, ...], settings: SynthesisConfig):
        """Take the settings; nothing is sent yet.

        Raises:
            UserError: no usable address or key on this machine, or the plan needs more images than may be asked for.
        """
        from syn4seg.stages.plan import read_planned_samples
        from syn4seg.stages.setup import image_share

        self.run, self.names, self.timeout = RunDir(run), names, settings.timeout
        self.share = image_share(settings, read_planned_samples(self.run).num_rows)
        self.service = ImageService(
            settings.model,
            size=settings.size,
            request_size=settings.request_size,
            base_url=settings.base_url,
            key_variable=settings.key_variable,
            timeout=settings.timeout,
        )
        self.noted = False

    def __call__(self, rows: Batch) -> Batch:
        deadline.pause()
        keep = np.flatnonzero(rows["todo"])
        rows = {name: values[keep] for name, values in rows.items()}
        images, audits = read_images(self.run, self.names, rows)
        reasons, traces = ([str(text) for text in rows[name]] for name in ("reason", "traceback"))
        for i in (i for i in range(len(keep)) if images[i] is BLANK and not reasons[i]):
            (earlier,) = self.run.samples.find_written([stored_image(self.names, rows, i)])
            if earlier is not None:  # of a call whose rows were lost with their node
                images[i], audits[i] = earlier.pixels, earlier.audit
                continue
            made, traces[i] = self._ask(rows, i)
            audits[i] = {"service": made.audit} if made.audit else {}
            if made.fault or made.pixels is None:
                reasons[i] = f"{FAULT}synthesis: {made.fault}"
                continue
            images[i] = made.pixels
            store_images(self.run, self.names, rows, [i], images, audits)
            if not self.noted:
                self.run.note_generator(self.service.facts())
                self.noted = True
        return with_images(rows, reasons, traces, np.arange(len(keep)), images, audits)

    def _ask(self, rows: Batch, i: int) -> tuple[ServiceImage, str]:
        """Return what became of one image, and a traceback if it was an error of this program.

        Raises:
            UserError: of the service or the run directory; it concerns every other row too.
        """
        sample = str(rows["sample_id"][i])

        def before() -> None:
            deadline.pause()
            asked = self._asked(sample)
            if asked >= self.share:
                raise MayNotAsk(
                    f"asked for {asked} times, its share of synthesis.max_images; raise that and delete the note to ask again"
                )
            self._note(sample, asked + 1)
            deadline.tick(extra=self.timeout + LONGEST_WAIT)

        def undo() -> None:
            self._note(sample, self._asked(sample) - 1)

        try:
            return self.service.make(str(rows["prompt"][i]), int(rows["noise_seed"][i]), before, undo), ""
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - it costs the row at fault, not the run
            line, trace = summarize_error(error)
            return ServiceImage(None, line, {}), trace

    def _asked(self, sample: str) -> int:
        path = self.run.requests(sample)
        counts: dict[str, Any] = read_checked(path, Counts) if exists(path) else {}
        return counts.get("asked", 0)

    def _note(self, sample: str, asked: int) -> None:
        write_json(self.run.requests(sample), {"asked": asked})
