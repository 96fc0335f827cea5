import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.ubp.training.host_reads import host_reads
from tests.ubp.training.toy import Copier, Numbers, OnNccl, Recaller, settings
from ubp.io.errors import NoUsableEvents, UserError
from ubp.training.encode import Runtime, device_batches, encode, to_device
from ubp.training.fit import fit, make_loggers
from ubp.training.kernels import kernels, random_numbers, threads_for
from ubp.training.model import as_it_is, in_micro_batches, losses_of
from ubp.training.partition import Parts, split_rows


def weights(trained):
    return torch.cat([values.flatten() for values in trained.model.state_dict().values()])


def vectors_of(trained, source=None):
    return encode(trained.model, source or Numbers(), trained.runtime)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return fit(Copier(), Numbers(), settings(), folder, seed=1), folder


def test_rows_are_split_by_purpose_each_once():
    parts = split_rows(1000, settings(), seed=0)
    assert (len(parts.held_out), len(parts.validation), len(parts.train)) == (20, 10, 970)
    together = np.concatenate([parts.train, parts.validation, parts.held_out])
    np.testing.assert_array_equal(np.sort(together), np.arange(1000))
    assert len(split_rows(3, settings(), seed=0).train) == 1
    with pytest.raises(NoUsableEvents, match="clients with events to learn from: 2; training needs at least 3"):
        split_rows(2, settings(), seed=0)


@pytest.mark.parametrize("fail_at", [2, 9, 17, 26])
def test_a_killed_run_taken_up_again_gives_the_undisturbed_result(fail_at, undisturbed, tmp_path):
    """Eight steps per epoch: the kills fall into each of the four epochs."""
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Copier(fail_at), Numbers(), settings(), tmp_path, seed=1)
    resumed = fit(Copier(), Numbers(), settings(), tmp_path, seed=1)
    assert torch.equal(weights(resumed), weights(undisturbed[0]))
    assert resumed.best_score == undisturbed[0].best_score


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(undisturbed, tmp_path):
    same = fit(Copier(), Numbers(), settings(), tmp_path / "same", seed=1)
    other = fit(Copier(), Numbers(), settings(), tmp_path / "other", seed=2)
    assert torch.equal(weights(same), weights(undisturbed[0]))
    assert not torch.equal(weights(other), weights(undisturbed[0]))


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
def test_a_step_in_micro_batches_is_the_step_as_a_whole(micro_batch, tmp_path):
    whole = fit(Copier(dropout=0), Numbers(), settings(micro_batch=8), tmp_path / "whole", seed=1)
    micro_batches = fit(
        Copier(dropout=0), Numbers(), settings(micro_batch=micro_batch), tmp_path / "micro_batches", seed=1
    )
    torch.testing.assert_close(weights(micro_batches), weights(whole), rtol=1e-4, atol=1e-6)
    assert micro_batches.best_score == pytest.approx(whole.best_score, rel=1e-4)


def test_a_model_may_bring_sparse_gradients_and_a_score_of_its_own(tmp_path):
    before = Recaller().table.weight.detach().clone()
    trained = fit(Recaller(), Numbers(), settings(micro_batch=3), tmp_path, seed=1)
    changed = (trained.model.table.weight != before).any(dim=1).nonzero().flatten().numpy()
    np.testing.assert_array_equal(changed, trained.parts.train)  # only the rows that training met
    with torch.inference_mode():
        wanted = -trained.model.eval().loss(Numbers().batch(trained.parts.validation))
    assert trained.best_score == pytest.approx(float(wanted), rel=1e-5)


class Drawing(Numbers):
    """Remembers what was drawn for its batches."""

    def batch(self, rows, generator=None):
        self.__dict__.setdefault("drawn", []).append(None if generator is None else float(generator.random()))
        return super().batch(rows)


def test_what_a_source_draws_in_training_differs_from_step_to_step_and_not_from_run_to_run(tmp_path):
    source, again = Drawing(), Drawing()
    fit(Copier(), source, settings(max_epochs=2), tmp_path / "one", seed=1)
    fit(Copier(), again, settings(max_epochs=2), tmp_path / "two", seed=1)
    drawn = [number for number in source.drawn if number is not None]
    assert source.drawn == again.drawn
    assert len(drawn) == len(set(drawn)) == 2 * 8  # steps
    assert None in source.drawn  # validation


def test_the_best_epoch_is_the_one_that_is_used(tmp_path):
    """With a huge learning rate the first epoch is the best; its weights come back, not the last ones."""
    trained = fit(Copier(), Numbers(), settings(learning_rate=0.5, max_epochs=6, patience=6), tmp_path, seed=1)
    batch = Numbers().batch(trained.parts.validation)
    with torch.inference_mode():
        assert float(trained.model.eval().loss(batch)) == pytest.approx(trained.best_score, rel=1e-5)
    last = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert not torch.equal(last["model.down.weight"], trained.model.down.weight)


def test_parts_that_are_given_are_used(tmp_path):
    """Rows that are in none of them are never asked for."""
    parts = Parts(np.arange(30), np.arange(35, 40), np.arange(40, 45))

    class Asked(Numbers):
        def batch(self, rows, generator=None):
            self.__dict__.setdefault("asked", {}).setdefault(generator is None, set()).update(rows.tolist())
            return super().batch(rows)

    source = Asked()
    trained = fit(Copier(), source, settings(max_epochs=1), tmp_path, seed=1, parts=parts)
    assert source.asked == {False: set(range(30)), True: set(range(35, 40))}
    assert trained.parts is parts
    assert [row for batch in trained.held_out_batches(Numbers()) for row in batch["rows"].tolist()] == [*range(40, 45)]


@pytest.mark.parametrize("patience", [1, 9])
def test_the_last_epochs_weights_are_taken_where_it_is_asked_for(patience, tmp_path):
    """With a huge learning rate they are worse than the first epoch's, and training does not stop for that."""
    restless = settings(learning_rate=0.5, max_epochs=5, patience=patience)
    trained = fit(Copier(), Numbers(), restless, tmp_path, seed=1, keep_last=True)
    assert (trained.epochs, trained.kept_epoch) == (5, 5)
    last = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(last["model.down.weight"], trained.model.down.weight)
    with torch.inference_mode():
        loss = float(trained.model.eval().loss(Numbers().batch(trained.parts.validation)))
    assert loss > trained.best_score * 1.01
    again = fit(Copier(), Numbers(), restless, tmp_path, seed=1, keep_last=True)  # killed afterwards, given again
    assert torch.equal(weights(again), weights(trained))


def test_training_stops_when_the_validation_loss_does_not_fall(tmp_path):
    trained = fit(Copier(), Numbers(), settings(learning_rate=0.0, max_epochs=50, patience=2), tmp_path, seed=1)
    assert trained.epochs == 3


def test_a_run_that_had_stopped_early_trains_no_further(tmp_path):
    """Killed while it encoded or saved, and given again."""
    patient = settings(learning_rate=0.1, max_epochs=60, patience=2)
    first = fit(Copier(), Numbers(), patient, tmp_path, seed=1)
    assert first.epochs < 60
    again = fit(Copier(), Numbers(), patient, tmp_path, seed=1)
    assert again.epochs == first.epochs
    assert torch.equal(weights(again), weights(first))
    np.testing.assert_array_equal(vectors_of(again), vectors_of(first))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch_size": 0}, "trainer.batch_size=0: must be at least 1"),
        ({"max_epochs": 0}, "trainer.max_epochs=0: must be at least 1"),
        ({"micro_batch": 0}, "trainer.micro_batch=0: must be at least 1, or null"),
        ({"threads": 0}, "trainer.threads=0: must be at least 1, or null"),
        ({"workers": -1}, "trainer.workers=-1: must be at least 0, or null"),
        ({"held_out": 1.5}, "trainer.held_out=1.5: must be between 0 and 0.5"),
        ({"learning_rate": -1.0}, "trainer.learning_rate=-1.0: must be 0 or more"),
        ({"precision": "16-mixed"}, "trainer.precision=16-mixed: must be bf16-mixed or 32-true"),
        ({"precision": "foo"}, "trainer.precision=foo: must be auto or 32-true or bf16-mixed or 16-mixed"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(change, line):
    with pytest.raises(UserError, match=re.escape(line)):
        settings(**change)


@pytest.mark.parametrize("change", [{"strategy": "foo"}, {"accelerator": "foo"}])
def test_what_lightning_refuses_is_one_line(change, tmp_path):
    with pytest.raises(UserError, match=r"^trainer: [^\n]+$"):
        fit(Copier(), Numbers(), settings(**change), tmp_path, seed=1)


def test_every_row_is_encoded_at_its_place_whatever_the_batches(undisturbed):
    trained, _ = undisturbed
    vectors = vectors_of(trained, Numbers(41))
    np.testing.assert_array_equal(vectors[:, 0], np.arange(41))
    with torch.inference_mode():
        alone = [trained.model.eval().encode(Numbers().batch(np.array([row])))[0].numpy() for row in range(41)]
    np.testing.assert_allclose(vectors, alone, atol=1e-6)


def test_no_row_at_all_gives_no_vector(undisturbed):
    assert vectors_of(undisturbed[0], Numbers(0)).shape == (0, 4)


def test_batches_that_are_given_up_leave_torch_as_it_was(undisturbed):
    """By an error, or by a reader who has seen enough: gradients are there again, the model is on the CPU."""
    trained, _ = undisturbed
    batches = device_batches(trained.model, Numbers(), [np.arange(3), np.arange(3)], trained.runtime)
    next(batches)
    assert torch.is_inference_mode_enabled()
    batches.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("runtime", "dtype"), [(Runtime(8, precision="bf16-mixed"), torch.bfloat16), (Runtime(8), torch.float32)]
)
def test_encoding_computes_in_the_precision_of_its_runtime(runtime, dtype):
    seen = set()

    class Watched(Copier):
        def encode(self, batch):
            seen.add(self.down(batch["values"]).dtype)
            return super().encode(batch)

    assert encode(Watched(), Numbers(9), runtime).dtype == np.float32
    assert seen == {dtype}


@pytest.mark.full
@pytest.mark.parametrize("model", [pytest.param("copier", marks=pytest.mark.long), "nccl"])
def test_two_processes_train_and_the_first_one_encodes_every_row(model, tmp_path):
    """One of the models has a table with sparse gradients, which an exchange by NCCL would refuse."""
    script = Path(__file__).with_name("toy.py")
    line = [sys.executable, str(script), str(tmp_path), model]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    vectors = np.load(tmp_path / "vectors.npy")
    np.testing.assert_array_equal(vectors[:, 0], np.arange(53))
    assert np.isfinite(vectors).all()


def test_the_toy_refuses_sparse_gradients_as_nccl_does(tmp_path):
    with pytest.raises(RuntimeError, match="must be CUDA and dense"):
        fit(OnNccl(), Numbers(), settings(), tmp_path, seed=1)


def test_a_model_that_insists_on_sparse_gradients_cannot_meet_several_devices(tmp_path):
    class Stubborn(Recaller):
        def use_dense_gradients(self):
            pass

    with pytest.raises(UserError, match=r"^trainer\.strategy=ddp: Stubborn has sparse gradients.*trainer\.devices=1"):
        fit(Stubborn(), Numbers(), settings(strategy="ddp"), tmp_path, seed=1)
    torch.distributed.destroy_process_group()


def test_a_loss_that_is_no_number_says_what_to_do(tmp_path):
    class Broken(Copier):
        def loss(self, batch):
            return super().loss(batch) * float("nan")

    with pytest.raises(UserError, match=r"trainer\.learning_rate"):
        fit(Broken(), Numbers(), settings(), tmp_path, seed=1)


def test_a_logger_that_is_not_installed_says_what_to_do():
    with pytest.raises(UserError, match="install its package or choose logger=csv"):
        make_loggers({"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger"}})


@pytest.mark.full
def test_batches_by_two_spawned_processes_give_the_same_bits(undisturbed, tmp_path):
    spawned = fit(Copier(), Numbers(), settings(workers=2), tmp_path, seed=1)
    assert torch.equal(weights(spawned), weights(undisturbed[0]))
    assert spawned.best_score == undisturbed[0].best_score


def test_workers_are_two_for_a_gpu_unless_their_number_is_said():
    assert (settings().workers_on("cuda"), settings().workers_on("cpu")) == (2, 0)
    assert (settings(workers=0).workers_on("cuda"), settings(workers=5).workers_on("cpu")) == (0, 5)


class Remembering(Copier):
    """Weighs rows by their values, and remembers the loss and the weight of each step and of each validation batch."""

    def __init__(self, fail_at=None):
        super().__init__(fail_at, dropout=0.0)
        self.seen = {True: [], False: []}

    def weight(self, batch):
        return (batch["values"] != 0).sum().float()

    def loss(self, batch):
        loss = super().loss(batch)
        self.seen[self.training].append((float(loss.detach()), float(self.weight(batch))))
        return loss


def slow_means(seen, epochs):
    """Each epoch's mean over all of its values."""
    return [sum(loss * weight for loss, weight in part) / sum(weight for _, weight in part) for part in
            (seen[at * len(seen) // epochs : (at + 1) * len(seen) // epochs] for at in range(epochs))]  # fmt: skip


def lines_of(caplog, name):
    return [float(value) for value in re.findall(rf"\b{name} ([\d.]+)", caplog.text)]


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_an_epochs_line_and_its_row_in_the_csv_have_the_epochs_means(micro_batch, tmp_path, caplog):
    """Each batch weighs as many values as its loss is a mean over; one of validation as of training."""
    model = Remembering()
    loggers = make_loggers({"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path)}})
    few = settings(max_epochs=2, learning_rate=0.05, validation=0.3, micro_batch=micro_batch)
    with caplog.at_level("INFO", logger="ubp.training.lightning_loop"):
        fit(model, Numbers(), few, tmp_path / "run", seed=1, loggers=loggers)
    curve = pl.read_csv(next(tmp_path.rglob("metrics.csv")))
    for training, name in ((True, "train_loss"), (False, "validation_loss")):
        seen = model.seen[training]
        assert len(seen) >= 2 * 2
        wanted = slow_means(seen, epochs=2)
        assert lines_of(caplog, name) == pytest.approx(wanted, abs=6e-5)
        assert curve[name].drop_nulls().to_list() == pytest.approx(wanted, rel=1e-5)
        first = [loss for loss, _ in seen[: len(seen) // 2]]
        assert abs(wanted[0] - np.mean(first)) > 1e-3  # weights matter, and it is not the last batch's
        assert abs(wanted[0] - first[-1]) > 1e-3


def test_a_killed_run_says_the_means_of_an_undisturbed_one(tmp_path, caplog):
    """Eight steps per epoch: it is killed in the midst of the third, which begins anew."""
    caplog.set_level("INFO", logger="ubp.training.lightning_loop")
    fit(Remembering(), Numbers(), settings(), tmp_path / "undisturbed", seed=1)
    wanted = lines_of(caplog, "train_loss")
    caplog.clear()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Remembering(fail_at=21), Numbers(), settings(), tmp_path / "killed", seed=1)
    fit(Remembering(), Numbers(), settings(), tmp_path / "killed", seed=1)
    assert lines_of(caplog, "train_loss") == wanted
    assert len(set(wanted)) == 4


class Evil:
    def __init__(self, touched):
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def test_a_checkpoint_that_cannot_be_used_is_named_and_its_code_not_run(tmp_path):
    """One that somebody changed, and ones that were cut."""
    folder = tmp_path / "run"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Remembering(fail_at=21), Numbers(), settings(), folder, seed=1)
    (checkpoint,) = folder.glob("last.ckpt")
    whole = checkpoint.read_bytes()
    torch.save({"epoch": Evil(tmp_path / "touched")}, checkpoint)
    for content in (checkpoint.read_bytes(), b"", whole[:100], whole[: len(whole) // 2]):
        checkpoint.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.ckpt: not a usable checkpoint .*; delete .* to train"):
            fit(Remembering(), Numbers(), settings(), folder, seed=1)
    assert not (tmp_path / "touched").exists()


class Threaded(Copier):
    """Remembers how many threads its losses and vectors were worked out with."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def loss(self, batch):
        self.seen.add(torch.get_num_threads())
        return super().loss(batch)

    def encode(self, batch):
        self.seen.add(torch.get_num_threads())
        return super().encode(batch)


@pytest.fixture
def three_threads():
    """As on a machine with three cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(
    ("asked", "allowed", "seen"), [(None, None, 1), (2, None, 2), (2, "1", 1), (1, "4", 1), (16, None, 3)]
)
def test_training_and_encoding_take_their_threads_and_give_them_back(asked, allowed, seen, tmp_path, monkeypatch):
    if allowed is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    model = Threaded()
    trained = fit(model, Numbers(), settings(threads=asked, max_epochs=1), tmp_path, seed=1)
    assert model.seen == {seen}
    model.seen.clear()
    vectors_of(trained)
    assert model.seen == {seen}
    assert torch.get_num_threads() == 3


class Wide(Copier):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer


@pytest.mark.usefixtures("three_threads")
def test_threads_are_chosen_by_the_size_of_the_products():
    """Rows 64, tokens 4; a recurrent layer goes token by token, a table of vectors is no product."""
    sizes = settings(batch_size=256)
    chosen = {
        name: threads_for(Wide(layer), Numbers(), sizes)
        for name, layer in {
            "small": torch.nn.Linear(256, 256),
            "large": torch.nn.Linear(512, 512),
            "recurrent": torch.nn.GRU(256, 256),
            "wide recurrent": torch.nn.GRU(512, 512),
            "table": torch.nn.Embedding(10_000, 64),
        }.items()
    }
    assert chosen == {"small": 1, "large": 3, "recurrent": 1, "wide recurrent": 3, "table": 1}
    assert threads_for(Wide(torch.nn.Linear(512, 512)), Numbers(), settings(batch_size=4)) == 1
    assert Wide(torch.nn.GRU(256, 128)).product(rows=32, time=99) == 32 * 128 * 3 * 128


def torch_flags():
    """What torch keeps for the whole process, as far as training touches it."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize(("device", "deterministic", "precision"), [("cpu", True, "highest"), ("cuda", False, "high")])
def test_kernels_are_deterministic_on_a_cpu_and_the_fastest_elsewhere(device, deterministic, precision):
    before = torch_flags()
    with kernels(torch.device(device)):
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.get_float32_matmul_precision() == precision
    assert torch_flags() == before


@pytest.fixture
def others_flags():
    """Flags that are not torch's defaults, as a library's user may have set them."""
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.set_float32_matmul_precision("medium")
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("others_flags")
def test_training_and_encoding_leave_torchs_flags_and_random_numbers_alone(tmp_path):
    torch.manual_seed(7)
    wanted = torch.rand(3)
    model, flags = Copier(), torch_flags()
    torch.manual_seed(7)
    trained = fit(model, Numbers(), settings(max_epochs=1), tmp_path, seed=1)
    vectors_of(trained)
    assert torch_flags() == flags
    assert torch.equal(torch.rand(3), wanted)


def test_a_failed_training_leaves_them_alone_too(tmp_path):
    flags, state = torch_flags(), torch.get_rng_state()
    model = Copier(fail_at=2)
    torch.set_rng_state(state)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(model, Numbers(), settings(), tmp_path, seed=1)
    assert torch_flags() == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_whatever_was_drawn_before_training_gives_the_same_bits(undisturbed, tmp_path):
    model = Copier()
    torch.manual_seed(12345)
    assert torch.equal(weights(fit(model, Numbers(), settings(), tmp_path, seed=1)), weights(undisturbed[0]))


def test_random_numbers_of_a_seed_and_then_those_of_before():
    torch.manual_seed(1)
    wanted = torch.rand(4)
    torch.manual_seed(1)
    first = torch.rand(2)
    with random_numbers(5):
        inside = torch.rand(2)
    with random_numbers(5):
        assert torch.equal(torch.rand(2), inside)
    assert torch.equal(torch.cat([first, torch.rand(2)]), wanted)


def step(model, micro_batches, optimizers):
    """What `fit` does in a step."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    losses = []
    for loss, _ in losses_of(model, micro_batches):
        loss.backward()
        losses.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return torch.stack(losses).sum()


def test_a_step_reads_nothing_back_from_the_device():
    model = Copier()
    micro_batches = in_micro_batches(Numbers().batch(np.arange(20)), 8, as_it_is)
    optimizers = model.optimizers(0.01)
    with host_reads() as reads:
        step(model, micro_batches, optimizers)
    assert reads == []
    with host_reads() as reads:
        micro_batches[0]["values"][micro_batches[0]["rows"] > 2]
        int(micro_batches[0]["rows"].max())
    assert len(reads) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_on_a_gpu_makes_nobody_wait():
    device = torch.device("cuda")
    model = Copier().to(device)
    optimizers = model.optimizers(0.01)
    micro_batches = [
        to_device(micro_batch, device)
        for micro_batch in in_micro_batches(Numbers().batch(np.arange(20)), 8, model.on_host)
    ]
    step(model, micro_batches, optimizers)  # the first one sets things up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, micro_batches, optimizers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
