import pytest
import torch

from limbeck.block._short_convolution import ShortConvolution


def drawn(channels=3, kernel=4):
    made = ShortConvolution(channels, kernel).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=draw))
        made.bias.copy_(torch.randn(made.bias.shape, generator=draw))
    return made, torch.randn(2, 9, channels, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_it_begins_as_the_identity(kernel):
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ShortConvolution(3, kernel)(x)[0], x)


@pytest.mark.parametrize("kernel", [1, 2, 4, 12])
def test_each_channel_is_a_sum_over_its_last_inputs(kernel):
    made, x = drawn(kernel=kernel)
    y, _ = made(x)
    for b in range(2):
        for t in range(9):
            for c in range(3):
                heard = [made.weight[c, 0, kernel - 1 - j].item() * x[b, t - j, c].item() for j in range(min(kernel, t + 1))]
                assert y[b, t, c].item() == pytest.approx(made.bias[c].item() + sum(heard), rel=1e-12, abs=1e-12)


def test_it_goes_on_from_its_last_inputs_and_passes_over_what_is_not_there():
    made, x = drawn()
    whole, end = made(x)
    for cut in (1, 2, 5):
        first, state = made(x[:, :cut])
        second, last = made(x[:, cut:], state=state)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
        assert torch.equal(last, end) and torch.equal(end, x[:, -3:])
    state, each = None, []
    for one in x.split(1, 1):
        y, state = made(one, state=state)
        each.append(y)
    torch.testing.assert_close(torch.cat(each, 1), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(state, end)
    mask = torch.tensor([False, False, True] + [True] * 6).expand(2, 9)
    torch.testing.assert_close(made(x, mask)[0][:, 2:], made(x[:, 2:])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_one_position_in_16_bits_is_convolved_as_many_are(autocast):
    """A product rounds each term to 16 bits before their sum, and knows nothing of autocast."""
    made, x = drawn()
    made, x = (made.float(), x.float()) if autocast else (made.bfloat16(), x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        first, state = made(x[:, :5])
        one, _ = made(x[:, 5:6], state=state)
        assert one.dtype == first.dtype == torch.bfloat16 and torch.equal(one, made(x[:, :6])[0][:, 5:])
