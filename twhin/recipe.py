"""What the twhin command does: edges in, items' vectors and what clients are folded in by out; the fitted block."""

import copy
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from twhin.content import ItemContent
from twhin.edges import EdgeSettings, EdgeSource, Graph, clients_to_train, edges_of
from twhin.fold_in import ONE, FoldIn, FoldInSettings
from twhin.model import FOLDED, OTHERS, ModelSettings, Twhin
from twhin.report import ReportSettings, report
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.cli.inputs import fitted_inputs
from ubp.cli.neural import Beginning, TrainedRecipe
from ubp.cli.recipe import Fit
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.io.errors import NoUsableEvents, require
from ubp.sequences.arrays import Int64
from ubp.training.content import ContentEncoder, ContentSettings, contents_of_skus, item_vectors
from ubp.training.encode import Runtime
from ubp.training.fit import fit, make_loggers, runtime_of
from ubp.training.fitted import load_weights, weights_of
from ubp.training.kernels import random_numbers
from ubp.training.model import SomeRows
from ubp.training.partition import Parts, split_rows
from ubp.training.settings import TrainerSettings

logger = logging.getLogger(__name__)

ENCODER: Final = "sequential_encoder"  # the block whose content encoder can be taken
_ITEMS: Final = 65_536  # whose vectors are computed at a time
_ENCODER: Final = "content."  # before the names of its weights, in a state


@dataclass(frozen=True)
class Items:
    """What gives any sku a vector.

    Attributes:
        encoder: of its content.
        projection: float32 [width, content width].
    """

    encoder: ContentEncoder
    projection: Vectors

    def __call__(self, history: ChallengeData, skus: Int64) -> Vectors:
        """Before a relation is added: int64 [n], ascending, to float32 [n, width]."""
        contents = contents_of_skus(history, skus, self.encoder.settings.rows)
        found: Vectors = item_vectors(self.encoder, contents) @ self.projection.T
        return found


@dataclass(frozen=True)
class FittedTwhin(FittedBlock):
    """Items' vectors, and what any client is folded in by: its edges before the day, whether or not it was trained on.

    The clients' learned vectors are not kept. They are of one day; on another a client has other edges, and on an
    earlier one a learned vector would tell of edges that are yet to come.

    Attributes:
        edges: which events count.
        items: skus' vectors.
        fold_in: clients' vectors by these.
        runtime: how to compute.
    """

    not_exported: ClassVar[str] = (
        "a client has no encoder: its vector is solved for from the items it met (fold-in); encode it with "
        "scripts/encode.py"
    )

    edges: EdgeSettings
    items: Items
    fold_in: FoldIn
    runtime: Runtime

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`: the clients with an edge."""
        graph = Graph.of(edges_of(history, self.edges, clients))
        return graph.clients, self.fold_in(graph, self.items(history, graph.skus), self.runtime)

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        encoder, fold_in = self.items.encoder, self.fold_in
        settings = {
            "edges": asdict(self.edges),
            "content": asdict(encoder.settings),
            "fold_in": asdict(fold_in.settings),
            "offset": fold_in.offset,
            "weight": fold_in.weight,
            "runtime": asdict(self.runtime),
        }
        arrays: dict[str, npt.NDArray[Any]] = {
            "projection": self.items.projection,
            "negatives": fold_in.negatives,
            "negative_skus": fold_in.skus,
            "relations": fold_in.relations,
        }
        return State(settings, arrays | weights_of(encoder, _ENCODER))

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        settings, arrays = state.settings, state.arrays
        with random_numbers():  # the first weights are drawn, then replaced
            encoder = ContentEncoder(ContentSettings(**settings["content"]))
        load_weights(encoder, arrays, _ENCODER)
        fold_in = FoldIn(
            FoldInSettings(**settings["fold_in"]),
            arrays["negatives"],
            arrays["negative_skus"],
            arrays["relations"],
            settings["offset"],
            settings["weight"],
        )
        items = Items(encoder, arrays["projection"])
        return cls(EdgeSettings(**settings["edges"]), items, fold_in, Runtime(**settings["runtime"]))


@dataclass(frozen=True)
class _Learned:
    """What is learned from, and by what.

    Attributes:
        graph: all edges.
        parts: edges by what they are for.
        source: of edges and their negatives.
        model: with its first weights.
        trainer: how it is trained: a batch as a whole.
    """

    graph: Graph
    parts: Parts
    source: EdgeSource
    model: Twhin
    trainer: TrainerSettings


@dataclass(frozen=True)
class TwhinRecipe(TrainedRecipe[Twhin]):
    """The settings of the block.

    Attributes:
        inputs: `ENCODER` and whether it is frozen; empty for a content encoder of its own.
        edges: which events count.
        content: numbers of a content encoder of its own.
        model: numbers.
        fold_in: how clients get their vectors.
        report: what is reported.
        trainer: how it is trained.
        logger: the configs of Lightning's loggers by name.
    """

    inputs: dict[str, dict[str, Any]]
    edges: EdgeSettings
    content: ContentSettings
    model: ModelSettings
    fold_in: FoldInSettings
    report: ReportSettings
    trainer: TrainerSettings
    logger: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UserError: an unknown input or setting of it, or a micro-batch: the negatives are those of a whole batch.
        """
        for name, given in self.inputs.items():
            require(name == ENCODER, f"inputs.{name}", given, f"left out; only {ENCODER} is read")
            known = given.keys() <= {"frozen"} and isinstance(given.get("frozen", True), bool)
            require(known, f"inputs.{name}", given, "{frozen: true} or {frozen: false}")
        size, micro_batch = self.trainer.batch_size, self.trainer.micro_batch
        whole = f"trainer.batch_size ({size}) or null: negatives are the items of a whole batch"
        require(micro_batch in (None, size), "trainer.micro_batch", micro_batch, whole)

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """See `ubp.cli.recipe.Recipe.fit`."""
        learned = self._prepared(history, seed)
        graph, parts, source, model = learned.graph, learned.parts, learned.source, learned.model
        trained = fit(model, source, learned.trainer, folder, seed, make_loggers(self.logger), parts)
        items = Items(model.content.encoder.eval(), model.projection.weight.detach().numpy())
        fold_in = fold_in_of(model, source.known, self.fold_in, seed)
        block = FittedTwhin(self.edges, items, fold_in, trained.runtime)
        found: dict[str, Any] = {"validation_loss": trained.best_score, "epochs": trained.kept_epoch}
        if trained.trainer.is_global_zero:
            names = self.edges.types
            vectors = items(history, graph.skus)
            known = fold_in(source.known, vectors, trained.runtime)
            apart = (graph.part(parts.validation), graph.part(parts.held_out))
            found |= report(source.known, *apart, model, known, vectors, names, self.report, seed)
        return Fit(block, found, disposable=True)

    def beginning(self, history: ChallengeData, seed: int, folder: Path) -> Beginning[Twhin]:  # noqa: ARG002 (nothing is kept)
        """See `ubp.cli.neural.TrainedRecipe.beginning`."""
        learned = self._prepared(history, seed)
        known = SomeRows(learned.source, learned.parts.train)
        return Beginning(learned.model, known, known, learned.trainer)

    def _prepared(self, history: ChallengeData, seed: int) -> "_Learned":
        encoder, frozen = self._encoder(history, seed)
        graph = Graph.of(edges_of(history, self.edges, clients_to_train(history, self.edges)))
        try:
            parts = parts_of(graph, self.trainer, seed)
        except NoUsableEvents as error:
            raise no_events(history, self.edges.types, str(error)) from error
        others = self.model.others if self.model.client_vectors == OTHERS else 0
        source = EdgeSource(graph, graph.part(parts.train), self.model.in_batch, others)
        size = (f"{len(graph):,}", f"{len(graph.clients):,}", f"{len(graph.skus):,}")
        logger.info("%s edges of %s clients and %s skus", *size)
        trainer = replace(self.trainer, micro_batch=self.trainer.batch_size)
        content = ItemContent(encoder, contents_of_skus(history, graph.skus, encoder.settings.rows), frozen)
        with random_numbers(seed):
            model = Twhin(len(graph.clients), len(self.edges.types), content, self.model)
        if self.model.start == FOLDED:
            start_clients(model, source.known, self.fold_in, seed, runtime_of(trainer))
        return _Learned(graph, parts, source, model, trainer)

    def _encoder(self, history: ChallengeData, seed: int) -> tuple[ContentEncoder, bool]:
        """The content encoder, and whether it stays as it is."""
        if not self.inputs:
            with random_numbers(seed):
                return ContentEncoder(self.content), False
        (block,) = fitted_inputs(history, self.inputs).values()
        encoder: ContentEncoder = copy.deepcopy(block.content)  # type: ignore[attr-defined]
        return encoder, bool(self.inputs[ENCODER].get("frozen", True))


def parts_of(graph: Graph, settings: TrainerSettings, seed: int) -> Parts:
    """Edges by what they are for; those of one client and item go together, or one would tell of the other.

    Raises:
        NoUsableEvents: too few of them.
    """
    first = graph.begins_pair
    pair, count = np.cumsum(first) - 1, int(first.sum())
    pairs = split_rows(count, settings, seed)

    def edges(chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        there = np.zeros(count, bool)
        there[chosen] = True
        return np.flatnonzero(there[pair])

    return Parts(edges(pairs.train), edges(pairs.validation), edges(pairs.held_out))


@torch.no_grad()
def start_clients(model: Twhin, known: Graph, settings: FoldInSettings, seed: int, runtime: Runtime) -> None:
    """Give clients with an edge their first vectors: one step of the folding in, with the items' first vectors.

    Where they have learned vectors at all.
    """
    if model.clients is None:
        return
    fold_in = fold_in_of(model, known, replace(settings, steps=1, length=ONE), seed)
    items = torch.arange(len(known.skus))
    vectors = torch.cat([model.item_vectors(part) for part in torch.split(items, _ITEMS)]).numpy()
    there = np.diff(known.offsets) > 0
    found = fold_in(known, vectors, runtime)
    model.clients.weight[torch.from_numpy(there)] = torch.from_numpy(found[there])
    model.train()


@torch.no_grad()
def fold_in_of(model: Twhin, known: Graph, settings: FoldInSettings, seed: int) -> FoldIn:
    """What clients are folded in by, with negatives drawn as the training drew them: by how often items occur."""
    drawn = np.sort(np.random.default_rng(seed).integers(0, len(known), settings.negatives))
    items = torch.from_numpy(known.columns[drawn].astype(np.int64))
    relations = torch.from_numpy(known.relations[drawn].astype(np.int64))
    negatives = model.eval().targets(items, relations).numpy()
    weights = model.relations.weight.numpy()
    skus = known.skus[known.columns[drawn]]
    return FoldIn(settings, negatives, skus, weights, float(model.offset), model.settings.negatives)
