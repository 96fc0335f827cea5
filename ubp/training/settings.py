"""The numbers of a training, checked."""

from dataclasses import dataclass

from ubp.io.errors import require, require_positive

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")  # Lightning's, those that keep weights in float32
# Rows of a batch that a CPU works through at a time: more of them only fill its memory.
_CPU_MICRO_BATCH = 64
# Processes that gather batches for a GPU: it waits for none of them, and this one is free to give it work.
_CUDA_WORKERS = 2


@dataclass(frozen=True)
class TrainerSettings:
    """How a model is trained.

    Attributes:
        max_epochs: at the most.
        patience: epochs without a better value of the model's monitor before training stops.
        batch_size: sequences per step, on each device or worker.
        micro_batch: sequences of a step that are worked through at a time, their gradients added up: less memory for
            the same step. None: 64 on a CPU, all at once elsewhere.
        learning_rate: of Adam.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        devices: how many of one machine; with several, ``strategy=ddp``.
        ray_workers: of a Ray cluster, each with a device of its own, that train together (``engine=ray``); 1: none.
        strategy: Lightning's.
        accelerator: Lightning's; ``auto`` takes the GPU where there is one.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``; ``auto`` is bf16-mixed on CUDA, 32-true elsewhere.
        workers: processes that gather batches; 0: the training process. None: 2 on CUDA, 0 elsewhere.
        threads: of a CPU, at the most ``OMP_NUM_THREADS`` where that is set; None: see `threads_for`. Their number
            may change the last bits of what comes out.
        held_out: share of the sequences kept apart, to report quality on.
        validation: share of the rest that drives early stopping.
        progress: show a bar on a terminal.
    """

    max_epochs: int
    patience: int
    batch_size: int
    micro_batch: int | None = None
    learning_rate: float = 0.001
    gradient_clip: float = 1.0
    devices: int = 1
    ray_workers: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    threads: int | None = None
    held_out: float = 0.02
    validation: float = 0.01
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "trainer", "max_epochs", "patience", "batch_size", "devices", "ray_workers")
        alone = self.ray_workers == 1 or self.devices == 1
        require(alone, "trainer.devices", self.devices, "1 where there are trainer.ray_workers: each has one device")
        for name, least in {"micro_batch": 1, "threads": 1, "workers": 0}.items():
            value = getattr(self, name)
            require(value is None or value >= least, f"trainer.{name}", value, f"at least {least}, or null")
        require(self.learning_rate >= 0, "trainer.learning_rate", self.learning_rate, "0 or more")
        for name in ("held_out", "validation"):
            require(0 < getattr(self, name) < 0.5, f"trainer.{name}", getattr(self, name), "between 0 and 0.5")
        require(self.precision in PRECISIONS, "trainer.precision", self.precision, " or ".join(PRECISIONS))
        # Its gradients are scaled up until the optimizer steps, and would be clipped as they are then.
        half = self.precision == "16-mixed" and self.gradient_clip > 0
        require(not half, "trainer.precision", self.precision, "bf16-mixed or 32-true, or trainer.gradient_clip=0")

    @property
    def ranks(self) -> int:
        """Devices or workers that train together."""
        return self.devices * self.ray_workers

    def micro_batch_on(self, device: str) -> int | None:
        """Rows that are worked through at a time on a kind of device; None: all."""
        return self.micro_batch or (_CPU_MICRO_BATCH if device == "cpu" else None)

    def workers_on(self, device: str) -> int:
        """Processes that gather batches for a kind of device."""
        return (_CUDA_WORKERS if device == "cuda" else 0) if self.workers is None else self.workers
