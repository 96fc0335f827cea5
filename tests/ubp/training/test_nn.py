import pytest
import torch
from torch import nn
from torch.nn import functional

from ubp.training import nn as ubp_nn
from ubp.training.nn import (
    CausalTransformer,
    Dropout,
    Feature,
    TokenEmbedding,
    argmax_classes,
    linear_cross_entropy,
    sampled_cross_entropy,
    tied_cross_entropy,
)

SIZES = (11, 3, 6)


def plain_loss(hidden, layer, classes, sizes=SIZES):
    """The same, with all logits at once."""
    parts = torch.split(layer(hidden), sizes, dim=1)
    return sum(functional.cross_entropy(logits, classes[:, n]) for n, logits in enumerate(parts))


def draw(positions, width=5, sizes=SIZES):
    torch.manual_seed(0)
    classes = torch.stack([torch.randint(0, size, (positions,)) for size in sizes], dim=1)
    return nn.Linear(width, sum(sizes)), torch.randn(positions, width, requires_grad=True), classes


@pytest.mark.parametrize("sizes", [(11, 3, 6), (7, 7)])
@pytest.mark.parametrize("positions", [1, 7, 8, 20])
def test_the_chunked_cross_entropy_is_the_plain_one_with_its_gradients(positions, sizes, monkeypatch):
    monkeypatch.setattr(ubp_nn, "_POSITIONS", {"cpu": 8})
    layer, hidden, classes = draw(positions, sizes=sizes)
    plain = plain_loss(hidden, layer, classes, sizes)
    wanted = torch.autograd.grad(3 * plain, [hidden, layer.weight, layer.bias])
    chunked = linear_cross_entropy(hidden, layer, classes, sizes)
    found = torch.autograd.grad(3 * chunked, [hidden, layer.weight, layer.bias])

    torch.testing.assert_close(chunked, plain)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, layer, classes, sizes), plain)


def test_no_positions_give_a_loss_of_zero():
    layer, hidden, classes = draw(0)
    assert linear_cross_entropy(hidden, layer, classes, SIZES) == 0


def test_half_precision_comes_close():
    layer, hidden, classes = draw(50, width=16)
    with torch.autocast("cpu", torch.bfloat16):
        half = linear_cross_entropy(hidden, layer, classes, SIZES)
    half.backward()
    torch.testing.assert_close(half, plain_loss(hidden, layer, classes), rtol=0.02, atol=0.02)
    assert layer.weight.grad.dtype == torch.float32


def test_the_argmax_class_of_each_feature(monkeypatch):
    monkeypatch.setattr(ubp_nn, "_POSITIONS", {"cpu": 8})
    layer, hidden, _ = draw(20)
    logits = torch.split(layer(hidden), SIZES, dim=1)
    wanted = torch.stack([part.argmax(dim=1) for part in logits], dim=1)
    torch.testing.assert_close(argmax_classes(hidden, layer, SIZES), wanted)


def test_embeddings_are_concatenated_or_summed():
    tokens = {"a": torch.tensor([[1, 2]]), "b": torch.tensor([[0, 3]])}
    both = TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 3)], "concat")
    assert both(tokens).shape == (1, 2, 7)
    torch.testing.assert_close(both(tokens)[0, 1, 4:], both.tables["b"].weight[3])
    summed = TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 4)], "sum")
    torch.testing.assert_close(summed(tokens)[0, 1], summed.tables["a"].weight[2] + summed.tables["b"].weight[3])
    with pytest.raises(ValueError, match="one width"):
        TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 3)], "sum")


@pytest.mark.parametrize("positions", [1, 8, 20])
def test_the_tied_cross_entropy_is_the_plain_one_with_its_gradients(positions, monkeypatch):
    monkeypatch.setattr(ubp_nn, "_POSITIONS", {"cpu": 8})
    torch.manual_seed(0)
    table, hidden = torch.randn(13, 5, requires_grad=True), torch.randn(positions, 5, requires_grad=True)
    bias, classes = torch.randn(13, requires_grad=True), torch.randint(0, 13, (positions,))
    plain = functional.cross_entropy(hidden @ table.t() + bias, classes)
    found = tied_cross_entropy(hidden, table, classes, bias)
    torch.testing.assert_close(found, plain)
    leaves = [hidden, table, bias]
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        tied_cross_entropy(hidden, table, classes), functional.cross_entropy(hidden @ table.t(), classes)
    )


class TestSampledCrossEntropy:
    CLASSES, WIDTH = 40, 6

    @pytest.fixture(autouse=True)
    @staticmethod
    def small_chunks(monkeypatch):
        monkeypatch.setattr(ubp_nn, "_POSITIONS", {"cpu": 8})

    def draw(self, positions=21, sparse=False):
        torch.manual_seed(1)
        table = nn.Embedding(self.CLASSES, self.WIDTH, sparse=sparse)
        return table, torch.randn(positions, self.WIDTH, requires_grad=True), torch.randint(0, 40, (positions,))

    def test_with_every_class_once_it_is_the_full_softmax_with_its_gradients(self):
        """The wanted class is among the drawn ones, too, and must not count twice."""
        table, hidden, wanted = self.draw()
        full = functional.cross_entropy(hidden @ table.weight.t(), wanted)
        found = sampled_cross_entropy(hidden, table, wanted, torch.randperm(40), torch.zeros(40))
        torch.testing.assert_close(found, full)
        leaves = [hidden, table.weight]
        grads = torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * full, leaves)
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("uniform", [True, False])
    def test_with_log_q_many_draws_come_close_to_the_full_softmax(self, uniform):
        table, hidden, wanted = self.draw()
        shares = torch.full((40,), 1 / 40) if uniform else torch.softmax(torch.randn(40), 0)
        negatives = torch.multinomial(shares, 200_000, replacement=True)
        log_counts = (shares[negatives] * len(negatives)).log()
        full = functional.cross_entropy(hidden @ table.weight.t(), wanted)
        found = sampled_cross_entropy(hidden, table, wanted, negatives, log_counts)
        torch.testing.assert_close(found, full, rtol=0.01, atol=0.01)
        plain = sampled_cross_entropy(hidden, table, wanted, negatives, torch.zeros(len(negatives)))
        assert plain > full + 3  # without the correction it counts each class thousands of times

    def test_against_a_loop_over_positions(self):
        table, hidden, wanted = self.draw()
        negatives, log_counts = torch.randint(0, 40, (15,)), torch.randn(15)
        negatives[:3] = wanted[:3]
        losses = []
        for state, own in zip(hidden, wanted, strict=True):
            logits = [state @ table.weight[own]] + [
                state @ table.weight[other] - log_count
                for other, log_count in zip(negatives, log_counts, strict=True)
                if other != own
            ]
            losses.append(-torch.stack(logits).log_softmax(0)[0])
        found = sampled_cross_entropy(hidden, table, wanted, negatives, log_counts)
        torch.testing.assert_close(found, torch.stack(losses).mean())
        leaves = [hidden, table.weight]
        grads = torch.autograd.grad(found, leaves), torch.autograd.grad(torch.stack(losses).mean(), leaves)
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)

    def test_only_the_rows_in_use_get_a_gradient(self):
        table, hidden, wanted = self.draw(sparse=True)
        negatives = torch.tensor([3, 5, 3])
        sampled_cross_entropy(hidden, table, wanted, negatives, torch.zeros(3)).backward()
        grad = table.weight.grad
        assert grad.is_sparse
        assert set(grad.coalesce().indices()[0].tolist()) == set(wanted.tolist()) | {3, 5}

    def test_half_precision_comes_close(self):
        table, hidden, wanted = self.draw()
        negatives, log_counts = torch.randint(0, 40, (15,)), torch.zeros(15)
        exact = sampled_cross_entropy(hidden, table, wanted, negatives, log_counts)
        with torch.autocast("cpu", torch.bfloat16):
            half = sampled_cross_entropy(hidden, table, wanted, negatives, log_counts)
        half.backward()
        torch.testing.assert_close(half, exact, rtol=0.02, atol=0.02)
        assert table.weight.grad.dtype == hidden.grad.dtype == torch.float32

    def test_no_positions_and_nothing_but_the_wanted_class(self):
        table, hidden, wanted = self.draw()
        negatives = torch.tensor([7])
        assert sampled_cross_entropy(hidden[:0], table, wanted[:0], negatives, torch.zeros(1)) == 0
        alone = sampled_cross_entropy(hidden[:1], table, negatives, negatives, torch.zeros(1))
        alone.backward()
        assert alone == 0
        assert table.weight.grad.abs().max() == 0


class TestCausalTransformer:
    @pytest.fixture(scope="class")
    @staticmethod
    def transformer():
        torch.manual_seed(0)
        return CausalTransformer(width=12, layers=2, heads=3, positions=20, dropout=0.3, attention_dropout=0.3).eval()

    def test_a_later_vector_changes_no_earlier_output(self, transformer):
        vectors, first = torch.randn(4, 10, 12), torch.tensor([0, 3, 0, 9])
        before = transformer(vectors, first)
        for place in range(10):
            changed = vectors.clone()
            changed[:, place] = torch.randn(4, 12)  # no constant: a layer norm takes that away
            after = transformer(changed, first)
            torch.testing.assert_close(after[:, :place], before[:, :place])
            assert (after[:, place] - before[:, place]).abs().amax(dim=1).min() > 1e-3
            if place < 9:  # what follows sees it
                assert (after[:, 9] - before[:, 9]).abs().amax(dim=1).min() > 1e-4

    def test_neither_neighbours_nor_padding_change_an_output(self, transformer):
        vectors, first = torch.randn(4, 10, 12), torch.tensor([0, 3, 0, 9])
        together = transformer(vectors, first)
        for row in range(4):
            alone = transformer(vectors[row : row + 1, :6], first[row : row + 1])
            torch.testing.assert_close(alone[0], together[row, :6])

    def test_positions_count_from_the_first_one(self, transformer):
        vectors = torch.randn(1, 5, 12)
        at = [transformer(vectors, torch.tensor([first])) for first in (0, 1)]
        assert (at[0] - at[1]).abs().max() > 1e-3

    def test_no_mask_is_made(self, transformer, monkeypatch):
        """A mask would hold [rows, 1, time, time], and another kernel would read it."""
        seen = []
        kernel = functional.scaled_dot_product_attention

        def watched(*args, **kwargs):
            seen.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
            return kernel(*args, **kwargs)

        monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
        transformer(torch.randn(3, 10, 12), torch.tensor([0, 3, 9]))
        assert seen == [(None, True)] * 2

    def test_the_attentions_weights_are_dropped_in_training_alone(self):
        torch.manual_seed(0)
        model = CausalTransformer(width=12, layers=1, heads=3, positions=20, dropout=0.0, attention_dropout=0.5)
        vectors, first = torch.randn(2, 10, 12), torch.tensor([0, 3])
        drawn = [model.train()(vectors, first) for _ in range(2)]
        assert (drawn[0] - drawn[1]).abs().max() > 1e-3
        outputs = [model.eval()(vectors, first) for _ in range(2)]
        assert torch.equal(*outputs)

    def test_every_weight_gets_a_gradient(self, transformer):
        """One without stops training on several devices."""
        transformer(torch.randn(3, 10, 12), torch.zeros(3, dtype=torch.int64)).sum().backward()
        assert all(weight.grad is not None for weight in transformer.parameters())

    def test_heads_must_divide_the_width(self):
        with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
            CausalTransformer(width=12, layers=1, heads=5, positions=4, dropout=0.0, attention_dropout=0.0)


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_zeros_so_many_and_keeps_the_mean(self, p):
        torch.manual_seed(0)
        dropped = Dropout(p)(torch.ones(301, 1001))
        kept = dropped != 0
        assert kept.float().mean() == pytest.approx(1 - p, abs=0.003)
        assert dropped[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)
        assert dropped.mean() == pytest.approx(1, abs=0.03)

    def test_each_element_by_itself(self):
        torch.manual_seed(0)
        kept = (Dropout(0.5)(torch.ones(2000, 8)) != 0).double()
        apart = torch.corrcoef(kept.T) - torch.eye(8)
        assert apart.abs().max() < 0.1  # five standard errors are 0.11

    def test_the_gradient_has_the_same_mask(self):
        torch.manual_seed(0)
        x = torch.full((5, 7), 3.0, requires_grad=True)
        dropped = Dropout(0.3)(x)
        dropped.sum().backward()
        torch.testing.assert_close(x.grad * 3, dropped.detach())

    def test_the_seed_says_which(self):
        x = torch.ones(3, 5)
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(Dropout(0.5)(x))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])

    @pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0)])
    def test_none_and_all(self, p, expected):
        x = torch.ones(3, 5, requires_grad=True)
        Dropout(p)(x).sum().backward()
        assert torch.equal(x.grad, torch.full((3, 5), expected))

    def test_nothing_is_dropped_where_a_model_is_asked(self):
        x = torch.randn(4, 4)
        assert torch.equal(Dropout(0.5).eval()(x), x)

    @pytest.mark.parametrize("shape", [(0, 3), (), (1,), (2, 3, 5)])
    def test_any_shape_and_half_precision(self, shape):
        assert Dropout(0.5)(torch.ones(shape, dtype=torch.bfloat16)).shape == shape

    def test_a_transformer_has_it_throughout(self):
        layers = [m for m in CausalTransformer(8, 2, 2, 9, 0.3, 0.0).modules() if isinstance(m, nn.Dropout)]
        assert len(layers) > 2
        assert all(isinstance(layer, Dropout) for layer in layers)
