"""Signs, by hand and against the best scale there is."""

import torch

from limbeck.formats.binary import Binary


def test_signs_and_means_by_hand():
    codes = Binary(8).encode(torch.tensor([[1.0, -3.0, 0.0, -0.0, 2.0, -2.0, 4.0, -4.0]]))
    # plus is 1, from the lowest bit; 0 and -0 are plus; the mean magnitude is 16 / 8
    assert codes.packed.tolist() == [[0b01011101]] and codes.scale.tolist() == [[2.0]]
    assert Binary(8).decode(codes).tolist() == [[2.0, -2.0, 2.0, 2.0, 2.0, -2.0, 2.0, -2.0]]


def test_a_group_has_two_values_and_no_scale_is_nearer():
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    groups, out = x.unflatten(-1, (-1, 32)).flatten(0, 1).double(), Binary(32).fake(x).unflatten(-1, (-1, 32)).flatten(0, 1).double()
    assert all(len(set(group.tolist())) == 2 for group in out)
    best = (groups - out).square().sum(-1)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert ((groups - factor * out).square().sum(-1) > best).all()


def test_it_takes_a_bit_and_its_scales():
    codes = Binary(64).encode(torch.randn(8, 512))
    assert 8 * sum(t.numel() * t.element_size() for t in codes.tensors) == (1 + 32 / 64) * 8 * 512
