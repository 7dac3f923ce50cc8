"""TRL's trainer on several ranks: what Trainer and accelerate do there otherwise than with one process, put right."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trl import SFTTrainer

from finetune_trainer.parallel.distributed import world
from finetune_trainer.parallel.order import EvenOrder, TellEpoch, with_filler


class RankedTrainer(SFTTrainer):  # type: ignore[misc]  # untyped
    """SFTTrainer whose ranks take the examples in the order of one process."""

    _order: EvenOrder | None = None

    def share_batches(self, examples: int) -> None:
        """Deal the examples out to the ranks, if there are several."""
        ranks, micro_batch = world().size, self.args.per_device_train_batch_size
        if ranks == 1:
            return
        # In an epoch's last step accelerate would leave out what it takes twice there: here is nothing such.
        self.accelerator.gather_for_metrics = lambda value, *_, **__: self.accelerator.gather(value)
        self._order = EvenOrder(examples, multiple=micro_batch * ranks, seed=self.args.data_seed)
        batch_size = micro_batch * ranks * self.args.gradient_accumulation_steps
        self.add_callback(TellEpoch(self._order, steps_per_epoch=math.ceil(examples / batch_size)))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order or super()._get_train_sampler(train_dataset)

    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        wrapped = super()._wrap_model(model, *args, **kwargs)
        if self.accelerator.ddp_handler is not None:
            # Gradients lie in the buckets that are sent, not beside them.
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        return wrapped

    def random_states(self) -> dict[str, bytes]:
        """Return the files of all ranks' random states."""
        with TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            mine = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return {name: content for files in world().gather(mine) for name, content in files.items()}


def shareable(rows: Any, *, pad_token_id: int) -> Any:
    """Return the rows, and where there are several ranks the one that fills an epoch's last batches."""
    return rows if world().size == 1 else with_filler(rows, pad_token_id=pad_token_id)
