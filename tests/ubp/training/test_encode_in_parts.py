"""Vectors worked out in parts and put together: the very bits, the very batches, of all clients at once."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.ubp.blocks.toy import make_purchases
from tests.ubp.data.small_logs import DAYS, START, random_log, write
from tests.ubp.training.test_fitted import RECIPES
from ubp.blocks.fitted import Clients, load, save
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError
from ubp.io.spread import in_turn
from ubp.sequences.build import events_of
from ubp.training.encode import Runtime
from ubp.training.encode_in_parts import InParts, put_together
from ubp.training.fitted import FittedSequenceModel
from ubp.training.model import SequenceModel

ASKED = np.array([-5, 0, 1, 3, 4, 7, 8, 11, 700_001])  # not all, and two whom the log does not know


@dataclass(frozen=True)
class Sequences:
    """A row for each client with an event."""

    clients: Clients
    lengths: Clients

    def batch(self, rows, generator=None):  # noqa: ARG002
        return {"clients": torch.from_numpy(self.clients[rows]), "lengths": torch.from_numpy(self.lengths[rows])}


class Batched(SequenceModel):
    """A vector says with whom it was worked out: the client, its place, the size and the longest of its batch."""

    width = 4

    def loss(self, batch):
        raise NotImplementedError

    def encode(self, batch):
        clients, lengths = batch["clients"].float(), batch["lengths"]
        size, longest = torch.full_like(clients, len(clients)), torch.full_like(clients, int(lengths.max()))
        return torch.stack([clients, torch.arange(len(clients)).float(), size, longest], dim=1)


@dataclass(frozen=True)
class Company(FittedSequenceModel[Batched]):
    def source(self, history, clients):
        chosen = events_of(history, history.item_types, clients)
        return Sequences(np.asarray(chosen.clients), np.asarray(chosen.lengths))

    def settings(self):
        return {}

    def tables(self):
        return {}

    @classmethod
    def make(cls, settings, tables, runtime):  # noqa: ARG003
        return cls(Batched(), runtime)


@pytest.fixture
def data(tmp_path) -> ChallengeData:
    return ChallengeData(write(random_log(0), tmp_path / "data"), submit=True)


def in_parts(data: ChallengeData, name: str, clients: Clients | None, shards: int, made_from: str = "") -> InParts:
    folder = data.paths.parts_of(data.paths.encoded(name))
    return InParts(data.paths.model(name, submit=True), data, clients, shards, folder, {"made_from": made_from})


def kept(data: ChallengeData, name: str, block) -> None:
    save(block, data.paths.model(name, submit=True), {"name": name})


def require_equal(data: ChallengeData, name: str, clients: Clients | None, shards: int) -> None:
    """The table in parts is that of all clients at once, bit by bit, and as many clients are known."""
    known = data.seen(clients)
    whole = load(data.paths.model(name, submit=True)).encode(data, known)
    table, count = in_parts(data, name, clients, shards, str(data.as_of)).encode(in_turn)
    assert table.client_ids.tobytes() == whole.client_ids.tobytes()
    assert table.vectors.tobytes() == whole.vectors.tobytes()
    assert (table.lineage, count) == (whole.lineage, len(known))


@pytest.mark.parametrize("clients", [None, ASKED])
@pytest.mark.parametrize("shards", [3, *(pytest.param(shards, marks=pytest.mark.full) for shards in (1, 13))])
class TestTheSameBits:
    def test_of_a_block_that_works_client_by_client(self, data, clients, shards):
        make_purchases(data.paths)
        day = (START + (data.as_of - START) / DAYS * 30).replace(hour=0, minute=0, second=0)
        for history in (data, data.before(day)):
            require_equal(history, "purchases", clients, shards)

    @pytest.mark.parametrize("batch_size", [2, 5, 100])
    def test_of_a_block_whose_vectors_depend_on_their_batch(self, data, clients, shards, batch_size):
        kept(data, "company", Company(Batched(), Runtime(batch_size, accelerator="cpu")))
        require_equal(data, "company", clients, shards)

    @pytest.mark.parametrize("kind", ["gru", "next_sku"])
    def test_of_sequence_models(self, data, clients, shards, kind):
        with torch.random.fork_rng():
            kept(data, kind, RECIPES[kind].prepare(data, 0).block)
        require_equal(data, kind, clients, shards)


class TestFaults:
    @pytest.mark.parametrize("name", ["purchases", "company"])
    def test_parts_that_are_done_are_not_done_again_unless_they_are_of_something_else(self, data, name):
        make_purchases(data.paths)
        kept(data, "company", Company(Batched(), Runtime(2, accelerator="cpu")))
        done = []

        def fails(what, pieces):
            if what == f"encoding {name}":
                done.append([not piece.out.exists() for piece in pieces])
                if len(done) == 1:
                    pieces[0]()
                    raise UserError("lost")
            return in_turn(what, pieces)

        with pytest.raises(UserError, match="lost"):
            in_parts(data, name, None, 3).encode(fails)
        work = in_parts(data, name, None, 3)
        work.encode(fails)
        in_parts(data, name, None, 3, "another fit").encode(fails)
        assert done == [[True] * 3, [False, True, True], [True] * 3]
        assert len(list(work.folder.iterdir())) == 1
        work.forget()
        assert not work.folder.exists()

    @pytest.mark.parametrize("name", ["purchases", "company"])
    def test_a_part_can_be_sent_and_done_twice(self, data, name):
        """As a worker of Ray has it, the first of which was lost."""
        make_purchases(data.paths)
        kept(data, "company", Company(Batched(), Runtime(2, accelerator="cpu")))

        def lost_once(_, pieces):
            return [[pickle.loads(pickle.dumps(piece))() for _ in range(2)][-1] for piece in pieces]  # noqa: S301 (ours)

        table, _ = in_parts(data, name, None, 3).encode(lost_once)
        whole = load(data.paths.model(name, submit=True)).encode(data)
        assert table.vectors.tobytes() == whole.vectors.tobytes()

    def test_nobody_is_known(self, data):
        make_purchases(data.paths)
        kept(data, "company", Company(Batched(), Runtime(2, accelerator="cpu")))
        for name in ("purchases", "company"):
            table, known = in_parts(data, name, np.array([700_001]), 3).encode(in_turn)
            assert (len(table), known) == (0, 0)


def test_put_together_by_ascending_client(tmp_path):
    rng = np.random.default_rng(0)
    ids, vectors = rng.permutation(50), rng.random((50, 3), np.float32)
    folders = []
    for number, part in enumerate(np.split(np.arange(50), [7, 7, 30])):  # the second is empty
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        np.save(folders[-1] / "ids.npy", ids[part])
        np.save(folders[-1] / "vectors.npy", vectors[part] if len(part) else np.empty((0, 0), np.float32))
    found, together = put_together(folders)
    assert found.tolist() == list(range(50))
    assert all((together[client] == vectors[place]).all() for place, client in enumerate(ids))
