from __future__ import annotations

import pytest
import torch
from torch import Tensor

from biasdiff.functional.curvature import (
    EigenFactors,
    datainf_correction,
    datainf_damping,
    datainf_direction,
    drawn_tokens,
    eigenvectors,
    ekfac_damping,
    ekfac_direction,
    rotated_squares,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def inverse(matrix: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=torch.float64))


def datainf(gradients: Tensor, directions: Tensor, damping: float, *, batch: int = 3) -> Tensor:
    correction = torch.zeros_like(directions)
    for part in gradients.split(batch):
        correction += datainf_correction(part, directions, damping)
    return datainf_direction(directions, correction, len(gradients), damping)


def mean_of_inverses(gradients: Tensor, directions: Tensor, damping: float) -> Tensor:
    """Invert g_i g_iᵀ + λI one after the other."""
    inverses = [inverse(torch.outer(g, g), damping) for g in gradients]
    return torch.stack(inverses).mean(0) @ directions


@pytest.mark.parametrize("damping", [1e-3, 0.5, 40.0])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_datainf_is_the_mean_of_explicit_inverses(damping: float, batch: int) -> None:
    gradients, directions = random(7, 6), random(6, 2, seed=1)
    gradients[2] = 0
    found = datainf(gradients, directions, damping, batch=batch)
    close(found, mean_of_inverses(gradients, directions, damping))


def test_datainf_of_one_example_is_the_inverse_of_the_curvature() -> None:
    gradients, directions = random(1, 5), random(5, 2, seed=1)
    exact = inverse(gradients.T @ gradients, 0.3) @ directions
    close(datainf(gradients, directions, 0.3), exact)


def test_datainf_hardly_shrinks_what_the_curvature_does() -> None:
    """All gradients along one axis but for a share: the inverse all but removes that axis."""
    gradients = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 1]]
    directions = torch.ones(4, 1, dtype=torch.float64)
    damping = datainf_damping(4.0, 4, 4, 0.1)
    weights = datainf(gradients, directions, damping)[:, 0] * damping
    close(weights, 1 - torch.tensor([0.75, 0.25, 0, 0]).double() / (1 + damping))
    exact = inverse(gradients.T @ gradients / 4, damping) @ directions
    assert float(exact[0, 0]) * damping < 0.04 < 0.25 < float(weights[0])


def test_datainf_damping_is_a_share_of_the_mean_squared_entry() -> None:
    gradients = random(7, 6)
    total = float(gradients.square().sum())
    assert datainf_damping(total, 7, 6, 0.1) == pytest.approx(0.1 * gradients.square().mean())


def random_factors(o: int, i: int) -> EigenFactors:
    left, right = (eigenvectors(m @ m.T) for m in (random(o, o, seed=2), random(i, i, seed=3)))
    return EigenFactors(left, right, random(o, i, seed=4).square())


def dense(factors: EigenFactors) -> Tensor:
    """Build (U_S ⊗ U_A) diag(Λ) (U_S ⊗ U_A)ᵀ."""
    basis = torch.kron(factors.left, factors.right)
    return basis @ torch.diag(factors.eigenvalues.flatten()) @ basis.T


@pytest.mark.parametrize(("o", "i"), [(3, 4), (4, 3), (1, 5), (5, 1)])
def test_ekfac_is_the_inverse_of_its_dense_matrix(o: int, i: int) -> None:
    factors, directions = random_factors(o, i), random(o * i, 2, seed=5)
    damping = ekfac_damping(factors, 0.1)
    assert damping == pytest.approx(0.1 * float(torch.trace(dense(factors))) / (o * i))
    expected = inverse(dense(factors), damping) @ directions
    close(ekfac_direction(directions, factors, damping), expected)


def test_eigenvectors_diagonalise_and_are_orthonormal() -> None:
    matrix = random(6, 9)
    matrix = matrix @ matrix.T
    vectors = eigenvectors(matrix + 1e-13 * random(6, 6, seed=1))
    close(vectors.T @ vectors, torch.eye(6, dtype=torch.float64))
    rotated = vectors.T @ matrix @ vectors
    torch.testing.assert_close(rotated, torch.diag(rotated.diag()), rtol=0, atol=1e-10)
    assert eigenvectors(matrix.float()).dtype == torch.float32


def sequence_gradients(n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [n, t, i], correlated output gradients [n, t, o], gradients [n, o, i]."""
    inputs, output_gradients = random(n, 3, 4), random(n, 3, 2, seed=1)
    inputs += inputs[:, :1]
    output_gradients[..., :1] += inputs[..., :1]
    return inputs, output_gradients, output_gradients.transpose(1, 2) @ inputs


def fitted(inputs: Tensor, output_gradients: Tensor, gradients: Tensor) -> EigenFactors:
    x, dy = inputs.flatten(0, 1), output_gradients.flatten(0, 1)
    left, right = eigenvectors(dy.T @ dy), eigenvectors(x.T @ x)
    squares = [rotated_squares(part, left, right) for part in gradients.split(7)]
    return EigenFactors(left, right, torch.stack(squares).sum(0) / len(gradients))


def test_eigenvalues_are_the_fisher_diagonal_in_the_eigenbasis() -> None:
    parts = sequence_gradients()
    factors = fitted(*parts)
    flat = parts[2].flatten(1)
    fisher = flat.T @ flat / len(flat)
    basis = torch.kron(factors.left, factors.right)
    close(factors.eigenvalues.flatten(), (basis.T @ fisher @ basis).diag())
    x, dy = (t.flatten(0, 1) for t in parts[:2])
    kfac = 3 * torch.kron(dy.T @ dy / len(dy), x.T @ x / len(x))
    assert (dense(factors) - fisher).norm() < (kfac - fisher).norm()


def test_exact_where_output_gradients_are_independent_of_inputs() -> None:
    inputs, output_gradients = random(5, 4), random(6, 3, seed=1)
    x = inputs.repeat_interleave(6, 0)[:, None]
    dy = output_gradients.repeat(5, 1)[:, None]
    gradients = dy.transpose(1, 2) @ x
    flat = gradients.flatten(1)
    fisher = flat.T @ flat / len(flat)
    factors = fitted(x, dy, gradients)
    close(dense(factors), fisher)
    directions = random(12, 2, seed=2)
    damping = ekfac_damping(factors, 0.1)
    exact = inverse(fisher, damping) @ directions
    close(ekfac_direction(directions, factors, damping), exact)


def test_exact_for_the_true_fisher_of_a_softmax_at_zero_weights() -> None:
    """Without weights p is the same for every x, so that p - e_y is independent of it."""
    inputs, classes = random(8, 4), 3
    p = torch.full((classes,), 1 / classes, dtype=torch.float64)
    fisher = torch.kron(torch.diag(p) - torch.outer(p, p), inputs.T @ inputs / len(inputs))
    weight = torch.zeros(classes, 4, dtype=torch.float64, requires_grad=True)
    x, dy, gradients = [], [], []
    for row in inputs:  # every label once, as often as the model draws it
        for label in range(classes):
            output = weight @ row
            loss = -output.log_softmax(0)[label]
            gradient, own = torch.autograd.grad(loss, [output, weight])
            x.append(row[None])
            dy.append(gradient[None])
            gradients.append(own)
    factors = fitted(torch.stack(x), torch.stack(dy), torch.stack(gradients))
    close(dense(factors), fisher)
    directions = random(12, 2, seed=2)
    exact = inverse(fisher, 0.05) @ directions
    close(ekfac_direction(directions, factors, 0.05), exact)


def test_heavy_damping_leaves_the_direction() -> None:
    directions, gradients = random(12, 2, seed=1), random(9, 12)
    for found in (
        datainf(gradients, directions, 1e12),
        ekfac_direction(directions, random_factors(3, 4), 1e12),
    ):
        close(found * 1e12, directions)


def test_no_gradient_no_direction() -> None:
    directions = random(6, 2)
    nothing = torch.zeros_like(directions)
    assert torch.equal(datainf_direction(directions, nothing, 4, 0.0), nothing)
    basis = random_factors(2, 3)
    factors = EigenFactors(basis.left, basis.right, torch.zeros(2, 3))
    assert torch.equal(ekfac_direction(directions, factors, ekfac_damping(factors, 0.1)), nothing)


def test_nan_is_not_hidden() -> None:
    directions = random(6, 1)
    found = datainf(torch.full((2, 6), float("nan"), dtype=torch.float64), directions, 0.1)
    assert found.isnan().all()
    basis = random_factors(2, 3)
    factors = EigenFactors(basis.left, basis.right, torch.full((2, 3), float("nan")))
    assert ekfac_direction(directions, factors, ekfac_damping(factors, 0.1)).isnan().all()


def test_negative_damping_is_refused() -> None:
    directions = random(6, 1)
    with pytest.raises(ValueError, match=r"must not be negative, got -0\.1"):
        datainf_direction(directions, directions, 4, -0.1)
    with pytest.raises(ValueError, match=r"must not be negative, got -0\.1"):
        ekfac_direction(directions, random_factors(2, 3), -0.1)


def test_tokens_are_drawn_as_often_as_the_softmax_says() -> None:
    logits, draws = random(1, 7), 10_000
    uniforms = (torch.arange(draws).double() + 0.5) / draws
    tokens = drawn_tokens(logits.expand(draws, -1), uniforms)
    counts = torch.bincount(tokens, minlength=7)
    assert (counts - draws * logits[0].softmax(0)).abs().max() <= 1


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    last = torch.finfo(torch.float64).eps / 2
    uniforms = torch.tensor([0.0, 0.49, 0.5, 1 - last], dtype=torch.float64)
    assert drawn_tokens(logits, uniforms).tolist() == [1, 1, 3, 3]
