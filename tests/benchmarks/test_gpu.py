"""The GPU's benchmark, on a CPU: what it measures, how it compares, what a failed block costs."""

import copy
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from ALS.model import AlsSettings, factorise
from benchmarks import gpu, gpu_blocks
from benchmarks.gpu_blocks import (
    SINGLE,
    Check,
    Figures,
    GpuSettings,
    UsedMemory,
    curves_apart,
    kept_models,
    predicted_scores,
    scores_apart,
    some_texts,
    vectors_apart,
)
from benchmarks.measuring import last_word, run_apart
from benchmarks.steps import (
    UNCOUNTED,
    Clock,
    Curve,
    DrawnOnCpu,
    gathered,
    load,
    operations_counter,
    pace,
    recurrent_operations,
    trained,
)
from gru_autoencoder.model import GruAutoencoder
from tests import tiny
from ubp.blocks.registry import block
from ubp.cli.config import composed, parse
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, REPOSITORY
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TargetRules, make_targets
from ubp.io.errors import UserError
from ubp.training.encode import Runtime, encode
from ubp.training.model import LENGTHS, SequenceModel, SomeRows
from ubp.training.settings import TrainerSettings

CPU = torch.device("cpu")


def settings_of(*words: str) -> GpuSettings:
    return gpu.parse_settings(composed(CONFIGS / "scripts", "gpu", list(words)))


@pytest.fixture
def settings() -> GpuSettings:
    return settings_of()


# Operations --------------------------------------------------------------------------------------------------


def test_a_recurrent_layers_operations_are_those_that_torch_counts_step_by_step():
    """On a CPU torch's own layer is made of products that its counter knows."""
    time_, rows, inputs, hidden, layers = 5, 3, 8, 6, 2
    layer = nn.GRU(inputs, hidden, layers)
    with operations_counter() as counter:
        layer(torch.randn(time_, rows, inputs))
    by_hand = time_ * rows * 2 * 3 * hidden * ((inputs + hidden) + (hidden + hidden))
    formula = recurrent_operations((time_, rows, inputs), [weight.shape for weight in layer.parameters()])
    assert counter.get_total_flops() == by_hand == formula


def test_cudnns_layer_is_counted_forward_and_back():
    """The operation as CUDA calls it, its arguments in the order of torch's own signature, on tensors without data."""
    layer = nn.GRU(8, 6, device="meta")
    x, state = torch.empty(5, 3, 8, device="meta"), torch.empty(1, 3, 6, device="meta")
    weights = list(layer.parameters())
    shape = {"mode": 3, "hidden_size": 6, "proj_size": 0, "num_layers": 1, "batch_first": False, "dropout": 0.0}
    shape |= {"train": True, "bidirectional": False, "batch_sizes": [], "dropout_state": None}
    with torch.no_grad(), operations_counter() as counter:
        torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, None, *shape.values())
    forward = 5 * 3 * 2 * 3 * 6 * (8 + 6)
    assert counter.get_total_flops() == forward
    for name, times in (("_cudnn_rnn", 1), ("_cudnn_rnn_backward", 2)):
        operation = getattr(torch.ops.aten, name)
        arguments = [argument.name for argument in operation.default._schema.arguments]
        assert arguments[:2] == ["input", "weight"]
        given = [x.shape, [weight.shape for weight in weights], *[None] * (len(arguments) - 2)]
        assert UNCOUNTED[operation](*given, out_shape=None) == times * forward


def test_the_rate_of_a_product_is_positive():
    assert gpu_blocks.matrix_rate(CPU, torch.float32, 64, products=2, rounds=2) > 1e6


# Waiting -----------------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """Sequences whose batches take a while to gather."""

    seconds: float = 0.0
    rows: int = 32

    @property
    def lengths(self):
        return np.arange(self.rows) % 5 + 2

    @property
    def clients(self):
        return np.arange(self.rows)

    def batch(self, rows, generator=None):  # noqa: ARG002
        time.sleep(self.seconds)
        values = np.random.default_rng(int(rows[0])).normal(size=(len(rows), 8)).astype(np.float32)
        return {"values": torch.from_numpy(values), LENGTHS: torch.from_numpy(self.lengths[rows])}


class Slow(SequenceModel):
    """One product of matrices, and a pause."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width, self.seconds, self.layer = 4, seconds, nn.Linear(8, 4)

    def loss(self, batch):
        time.sleep(self.seconds)
        return (self.layer(batch["values"]) ** 2).mean()

    def encode(self, batch):
        return self.layer(batch["values"])


TRAINER = TrainerSettings(max_epochs=2, patience=2, batch_size=8, accelerator="cpu", workers=0)


@pytest.mark.full
@pytest.mark.parametrize(("gathering", "step", "low", "high"), [(0.1, 0.0, 0.6, 1.0), (0.0, 0.1, 0.0, 0.2)])
def test_waiting_is_told_from_work(gathering, step, low, high):
    found = pace(Slow(step), Numbers(gathering), TRAINER, CPU, share=0.5, least=6, warm=2)
    assert low <= found.waiting <= high
    assert 6 * 0.1 <= found.seconds < 10


def test_a_share_of_an_epoch_is_counted_and_an_epoch_is_all_of_it():
    source = Numbers()
    found = pace(Slow(), source, TRAINER, CPU, share=1.0, least=1, warm=2)
    assert found.events == found.epoch_events == source.lengths.sum()
    # Forward and the weights' slopes: 2 operations each a weight and row; an event's share of its row.
    assert found.operations == pytest.approx(2 * 2 * 8 * 4 * 32 / source.lengths.sum(), rel=0.3)
    twice = pace(Slow(), source, TRAINER, CPU, share=0.1, least=8, warm=2)
    assert twice.events == 2 * source.lengths.sum()  # a short epoch begins again
    assert twice.epoch_events == source.lengths.sum()


def test_workers_are_those_of_the_trainer_and_start_by_spawn():
    batches = [np.arange(4), np.arange(4, 8)]
    for device, workers in ((CPU, 0), (torch.device("cuda"), 2)):
        found = gathered(Slow(), Numbers(), batches, replace(TRAINER, workers=None), device)
        assert found.num_workers == workers
    assert found.multiprocessing_context.get_start_method() == "spawn"


def test_moments_on_a_cpu_are_the_clocks():
    clock = Clock(CPU)
    begin = clock.now()
    time.sleep(0.01)
    assert 0.01 <= clock.between(begin, clock.now()) < 1


def test_moments_on_cuda_are_events_in_its_stream(monkeypatch):
    recorded = iter([10.0, 35.0])  # milliseconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(recorded)

        def elapsed_time(self, later: "Event") -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda"))
    begin, end = clock.now(), clock.now()
    assert clock.between(begin, end) == pytest.approx(0.025)


def test_the_most_memory_in_use_is_kept(monkeypatch):
    used = iter([3e9, 5e9, 9e9, *[4e9] * 1000])  # at first, while it works, afterwards
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80e9 - next(used), 80e9))
    with UsedMemory(cuda=True) as memory:
        time.sleep(0.2)
    assert memory.megabytes == pytest.approx(6000)


@pytest.mark.parametrize(
    ("told", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19\nGCC version: 12.2",
            "535.129.03",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("nothing of the kind", None),
    ],
)
def test_the_driver_is_read_from_what_the_kernel_tells(told, version):
    assert gpu_blocks.driver_in(told) == version


def test_without_cuda_there_is_no_memory_to_look_at():
    with UsedMemory(cuda=False) as memory:
        pass
    assert memory.megabytes is None


# Agreement ---------------------------------------------------------------------------------------------------


def short_training(tmp_path, model=None, **changes):
    run, curve = trained(model or Slow(), Numbers(), replace(TRAINER, **changes), tmp_path / "run", "cpu", "32-true")
    return run, curve.points


def test_a_like_training_agrees_and_a_deliberately_different_one_does_not(tmp_path, settings):
    allowed = settings.agreement.loss["32-true"]
    _, wanted = short_training(tmp_path)
    assert {name for name, _ in wanted} >= {"validation_loss"}
    assert curves_apart(short_training(tmp_path)[1], wanted) == 0.0
    # The weights' gradients are added up in another order.
    assert curves_apart(short_training(tmp_path, micro_batch=3)[1], wanted) <= allowed
    assert curves_apart(short_training(tmp_path, learning_rate=0.1)[1], wanted) > allowed
    other = Slow()
    nn.init.normal_(other.layer.weight)
    assert curves_apart(short_training(tmp_path, other)[1], wanted) > allowed


def test_the_model_to_train_stays_as_it_is(tmp_path):
    model = Slow()
    before = model.layer.weight.clone()
    run, _ = short_training(tmp_path, model)
    assert torch.equal(model.layer.weight, before)
    assert not torch.equal(run.model.layer.weight, before)


class EarlyState(GruAutoencoder):
    """A fault: the state is read one event early."""

    def encode(self, batch):
        return super().encode(dict(batch) | {LENGTHS: (batch[LENGTHS] - 1).clamp(min=1)})


@pytest.mark.full
def test_faults_of_a_real_model_lie_outside_the_bands(history, tmp_path, settings):
    """The bands would be worth little if they were wide enough for these."""
    data, bands = ChallengeData(history, submit=True), settings.agreement
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    local = ChallengeData(history, submit=False)
    first = load("gru_autoencoder/gru_ae_day_event", local, tmp_path, ["preset=demo"], dropout=False)
    model, source = first.model, first.encoded
    assert (model.encoder.dropout.p, model.word_dropout) == (0.0, 0.0)
    few = replace(first.trainer, max_epochs=5, patience=5, batch_size=16, learning_rate=0.01)

    def run(**changes):
        changed, folder = replace(few, **changes), tmp_path / "run"
        precision = changes.get("precision", SINGLE)
        own, curve = trained(model, first.source, changed, folder, "cpu", precision)
        return own, curve.points

    right, wanted = run()
    vectors = encode(right.model, source, right.runtime)
    assert curves_apart(run(learning_rate=0.011)[1], wanted) > bands.loss[SINGLE]
    early = copy.deepcopy(right.model)
    early.__class__ = EarlyState
    assert vectors_apart(encode(early, source, right.runtime), vectors) > 0.1
    low, _ = run(precision="bf16-mixed", max_epochs=1)
    rounded = encode(right.model, source, low.runtime)
    assert vectors_apart(rounded, vectors) == 0.0  # the encoder computes in float32 whatever the precision


def test_curves_that_cannot_be_compared_do_not_agree():
    one = {("train_loss", 1): 2.0, ("train_loss", 2): 1.0}
    assert curves_apart({("train_loss", 1): 2.0, ("train_loss", 2): 1.02}, one) == pytest.approx(0.02)
    assert curves_apart({("train_loss", 1): 2.0}, one) == float("inf")
    assert curves_apart({**one, ("train_loss", 2): float("nan")}, one) == float("inf")
    assert curves_apart({}, {}) == float("inf")
    assert not Check("loss", float("nan"), 1.0).holds


def test_what_is_logged_of_other_things_is_no_point():
    curve = Curve()
    curve.log_metrics({"epoch": 1.0, "train_loss": 2.5}, step=9)
    assert curve.points == {("train_loss", 9): 2.5}


def test_vectors_lie_apart_as_a_share_of_their_spread_not_of_what_they_share():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(50, 6))
    noise = rng.normal(size=(50, 6)) * 0.1
    assert vectors_apart(wanted + noise, wanted) == pytest.approx(0.1, rel=0.2)
    # A hundred in every column: cosines are near 1, whatever the clients are like.
    assert vectors_apart(wanted[::-1] + 100, wanted + 100) > 1
    assert vectors_apart(np.full((50, 6), np.nan), wanted) == float("inf")
    assert vectors_apart(np.ones((50, 6)), np.ones((50, 6))) == float("inf")


def test_predicted_scores_tell_another_confidence_from_another_seed(settings):
    """Clients of eight tastes, a handful of events each: what two seeds make is near, half the confidence is not."""
    rng = np.random.default_rng(0)
    client, taste = np.repeat(np.arange(600), 6), np.repeat(rng.integers(0, 8, 600), 6)
    item = (taste * 10 + rng.integers(0, 12, len(client))) % 80
    matrix = csr_matrix((np.ones(len(client), np.float32), (client, item)), (600, 80))

    def scores(seed: int = 0, **changes: float):
        als = AlsSettings(
            factors=16, confidence=3.0, shrinkage=0.8, alpha=4.0, regularization=0.1, iterations=15, threads=1
        )
        with kept_models() as models:
            factorise(matrix, replace(als, **changes), seed)
        return predicted_scores(models, matrix)

    wanted = scores()
    assert scores_apart(wanted, scores()) == 0.0
    near = scores_apart(scores(seed=1), wanted)
    assert near > 0
    assert scores_apart(scores(seed=2), wanted) <= settings.agreement.scores * near
    assert scores_apart(scores(alpha=2.0), wanted) > settings.agreement.scores * near
    assert scores_apart(wanted, np.ones_like(wanted)) == float("inf")
    assert scores_apart(np.full_like(wanted, np.nan), wanted) == float("inf")
    with pytest.raises(UserError, match="made 0 models"):
        predicted_scores([], matrix)


def test_random_numbers_are_the_cpus_on_every_device():
    with DrawnOnCpu():
        torch.manual_seed(1)
        drawn, elsewhere = torch.randint(9, (4,), device=CPU), torch.rand(3, device="meta")
        after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.randint(9, (4,)))
    assert elsewhere.device.type == "meta"
    torch.rand(3)  # what was drawn for the other device
    assert torch.equal(after, torch.rand(2))


def test_rows_of_a_source_are_those_that_were_drawn():
    some = SomeRows(Numbers(), np.array([3, 9, 30]))
    assert some.lengths.tolist() == Numbers().lengths[[3, 9, 30]].tolist()
    assert some.batch(np.array([2]))[LENGTHS].tolist() == [Numbers().lengths[30]]


# The command -------------------------------------------------------------------------------------------------


def test_every_block_has_its_config_and_its_way(settings):
    for name in settings.blocks:
        folder = name.partition("/")[0]
        assert (CONFIGS / f"{name}.yaml").is_file()
        assert folder in gpu_blocks._MEASURED or composed(CONFIGS / folder, name.partition("/")[2]).model
    assert len(settings.blocks) == len(set(settings.blocks)) == 12


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("share=0", "share=0.0: must be more than 0"),
        ("device=tpu", "device=tpu: must be auto, cuda or cpu"),
        ("blocks=[nothing/there]", "blocks=nothing/there: must be folder/config"),
        ("warm_steps=1", "warm_steps=1: must be at least 2"),
        ("agreement.loss={32-true:0.1}", "agreement.loss=.*must be of 32-true and bf16-mixed"),
    ],
)
def test_settings_that_make_no_sense(word, says):
    words = ["~agreement.loss.bf16-mixed"] if word.startswith("agreement") else [word]
    with pytest.raises(UserError, match=says):
        settings_of(*words)


def test_the_row_of_a_block_and_of_one_that_failed():
    checks = [Check("loss 32-true", 0.001, 0.01), Check("profiles 32-true", 0.5, 0.02)]
    figures = Figures(12_345.6, 3.21, 0.25, 2e12, 1000.0, 2000.0, checks)
    row = gpu.table_row("next_sku/next_sku", figures, 4e12)
    assert len(row) == len(gpu.HEADINGS)
    told = ["12,346", "3.2", "25%", "2.00", "50.0%", "1,000", "2,000", "0.10%", "50.00%", "NO"]
    assert row == ["next_sku", *told]
    failed = gpu.table_row("LLM/get_embeddings", Figures(fault="no memory"), 4e12)
    assert failed == ["get_embeddings", *[""] * 9, "no memory"]
    assert not Figures(fault="no memory").agrees


def test_the_words_below_the_table_name_this_runs_numbers(settings):
    about = {"device": "cuda", "name": "NVIDIA H100", "cores": 16, "driver": "580.1", "cuda": "13.0", "cudnn": 91002}
    about |= {"torch": "2.13.0", "dtype": "bfloat16", "size": 8192, "rate": 7.5e14}
    assert gpu.title_of(about, settings) == (
        "NVIDIA H100, 16 CPU cores, driver 580.1, CUDA 13.0, cuDNN 91002, torch 2.13.0; scale 0.1, full size"
    )
    words = gpu.legend(about, settings)
    for told in ("750.0 TFLOP/s", "8,192 rows", "bfloat16", "LightFM", "2 times"):
        assert told in words


def test_the_report_has_a_place_for_the_table(settings):
    report = (REPOSITORY / settings.report).read_text()
    assert [report.count(mark) for mark in gpu.MARKS] == [1, 1]
    assert report.index(gpu.MARKS[0]) < report.index(gpu.MARKS[1])


def test_cuda_that_is_not_there_is_said(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    task = gpu_blocks.Task(gpu.ABOUT, None, replace(settings, device="cuda"), None, cuda=True)
    with pytest.raises(UserError, match=r"device=cuda: torch .* finds no CUDA device"):
        gpu_blocks.about_device(task)


def test_a_block_that_takes_too_long_is_ended_with_what_it_began(tmp_path):
    started = time.perf_counter()
    with pytest.raises(UserError, match="took longer than 1 s and was ended"):
        run_apart(REPOSITORY / "benchmarks" / "gpu.py", [], tmp_path, tmp_path / "log", limit=1)
    assert time.perf_counter() - started < 20


@pytest.fixture
def runner(tmp_path):
    return gpu.Runner(settings_of("minutes=1", "device=cpu"), tmp_path, ["share=0.5", "cuda_visible_devices=1"])


def test_a_block_that_fails_costs_its_row_and_keeps_what_it_measured(runner, monkeypatch):
    def half(step: str, **_: object) -> None:
        gpu.note(gpu.figures_file(runner.folder, step), Figures(speed=5.0, checks=[Check("loss", 0.0, 1.0)]))
        raise UserError("benchmarks/gpu.py here=x: failed with exit code 1 (error: out | of memory); see /some/log")

    monkeypatch.setattr(runner, "here", half)
    figures = runner.block("next_sku/next_sku")
    assert figures == Figures(speed=5.0, checks=[Check("loss", 0.0, 1.0)], fault="out / of memory")
    monkeypatch.setattr(runner, "_end", time.monotonic() + 5)
    assert runner.block("next_sku/next_sku").fault == "no time left of minutes=1"


def test_what_a_factorisation_is_compared_with_is_made_where_no_gpu_is_seen(runner, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "run_apart", lambda *given: calls.append((given[1], given[5])))
    runner.block("ALS/als_visits_relevant")
    runner.settings = replace(runner.settings, block_seconds=1e-3)
    assert runner.left == 1.0  # never none: that would be no limit
    (reference, hidden), (own, seen) = calls
    assert [word for word in reference if word.startswith("cuda_visible")] == ["cuda_visible_devices="]
    assert hidden == {"CUDA_VISIBLE_DEVICES": ""}
    assert "here=ALS/als_visits_relevant:reference" in reference
    assert [word for word in own if word.startswith("cuda_visible")] == ["cuda_visible_devices=1"]
    assert seen == {}


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("12:00 begun\nerror: trainer.micro_batch=0: must be more\n", "error: trainer.micro_batch=0: must be more"),
        ("Traceback\nRuntimeError: CUDA error: x\nFor debugging\nCompile with y\n", "RuntimeError: CUDA error: x"),
        ("12:00 begun\nKilled\n", "Killed"),
        ("", "no word"),
    ],
)
def test_a_log_says_why(tmp_path, log, said):
    (tmp_path / "log").write_text(log)
    assert last_word(tmp_path / "log") == said


def test_faults_are_short():
    too_long = UserError("benchmarks/gpu.py here=x: took longer than 240 s and was ended; see /some/log")
    assert gpu.short(too_long) == "took longer than 240 s and was ended"
    assert len(gpu.short(UserError("x" * 500))) == 101


@pytest.mark.full
def test_the_cpu_form_measures_and_agrees(tmp_path):
    """The command itself at a thousandth of the challenge's size, three kinds of blocks; the report stays as it is."""
    report = (REPOSITORY / "docs/performance.md").read_bytes()
    words = ["scale=0.001", "sizes=demo", "device=cpu", "blocks=[next_url/next_url,ALS/als_buy_add_categories,dcn/dcn]"]
    words += ["least_steps=3", "warm_steps=2", "agreement.clients=200", "agreement.epochs=1", f"data_path={tmp_path}"]
    words += ["matrix.cpu_size=128", "share=0.01"]
    line = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu.py"), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "these are CPU figures" in done.stdout
    assert "3 blocks measured" in done.stdout.splitlines()[-1]
    folder = gpu.log_of(type("Common", (), {"paths": type("Paths", (), {"root": tmp_path})}), 0.001) / gpu.FOLDER
    names = ("next_url/next_url", "ALS/als_buy_add_categories", "dcn/dcn")
    url, als, dcn = (Figures.load(gpu.figures_file(folder, name)) for name in names)
    for figures in (url, als, dcn):
        assert figures.agrees
        assert min(figures.speed, figures.epoch, figures.host_megabytes) > 0
        assert figures.device_megabytes is None
    assert 0 < url.waiting < 1
    assert url.operations > 1e8
    precisions = ["32-true", "32-true", "bf16-mixed", "bf16-mixed"]
    assert [check.name.split()[1] for check in url.checks] == precisions
    assert url.checks[0].apart == 0.0  # a CPU agrees with itself to the bit
    assert url.checks[2].apart > 0.0  # another precision does not
    assert dcn.checks[0].apart == dcn.checks[1].apart == 0.0
    assert not list(folder.glob("*_prepared"))
    assert len(als.checks) == 1
    assert (REPOSITORY / "docs/performance.md").read_bytes() == report


@pytest.mark.full
@pytest.mark.parametrize("name", ["sequential_encoder", "twhin"])
def test_what_has_no_recipe_of_one_step_is_measured_too(history, tmp_path, name):
    whole = ChallengeData(history, submit=True)
    write_split(whole, SplitDates.of(whole))
    make_targets(whole, SplitDates.of(whole), TargetRules(), overwrite=False)
    data = ChallengeData(history, submit=False)
    first = load(f"{name}/{name}", data, tmp_path, tiny.overrides(block(name)))
    found = pace(first.model, first.source, first.trainer, CPU, share=0.01, least=2, warm=2)
    assert min(found.events, found.seconds, found.operations, found.epoch_events) > 0
    some = SomeRows(first.encoded, np.arange(20))
    assert np.isfinite(encode(first.model, some, Runtime(8))).all()
    again = load(f"{name}/{name}", data, tmp_path, tiny.overrides(block(name)))  # of what was prepared before
    assert again.source.lengths.tolist() == first.source.lengths.tolist()


def test_some_texts_are_read(tmp_path, settings):
    import polars as pl

    from ubp.cli.config import Common

    common = parse(Common, composed(CONFIGS / "scripts", "gpu", [f"data_path={tmp_path}"]), [*Common.__annotations__])
    folder = common.paths.texts(submit=False)
    folder.mkdir(parents=True)
    pl.DataFrame({"client_id": [3, 1, 2], "text": ["a", "b", "c"]}).write_parquet(
        folder / "all_interactions_64.parquet"
    )
    task = gpu_blocks.Task("LLM/get_embeddings", common, replace(settings, texts=2), tmp_path / "gpu", cuda=False)
    assert pl.read_parquet(some_texts(task, tmp_path / "gpu" / "few.parquet"))["text"].to_list() == ["a", "b"]
