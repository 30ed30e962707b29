"""What stands in the place of attention: the call that transformers makes of it, and the state that it keeps while it decodes.

This file is carried along beside exported weights: it imports torch and transformers alone.
"""

import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin, DummyLayer, StaticLayer


class StateLayer(DummyLayer, CacheLayerMixin):
    """A layer of a transformers cache that keeps a state of constant size in place of keys and values. As a dummy among layers of attention it is
    passed over where masks are made as long as their memory is."""

    is_compileable = False
    is_croppable = False

    def __init__(self):
        super().__init__()
        self.state, self.seen = None, 0

    def lazy_initialization(self, key_states, value_states):
        raise RuntimeError("this block keeps a state, no keys and values")

    def update(self, key_states, value_states, *args, **kwargs):
        raise RuntimeError("this block keeps a state, no keys and values")

    def get_mask_sizes(self, query_length):
        return self.seen + query_length, 0

    def get_seq_length(self):
        return self.seen

    def change(self, function):
        """Applies a function to every tensor of the state, whose first axis is the batch."""
        if self.state is not None:
            self.state = {name: function(x) for name, x in self.state.items()}

    def reset(self):
        self.state, self.seen = None, 0

    def reorder_cache(self, beam_idx):
        self.change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats):
        self.change(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices):
        self.change(lambda x: x[indices])

    def crop(self, tokens_to_remove):
        if tokens_to_remove:
            raise RuntimeError("a state cannot forget its last tokens: decode without a draft model (no assistant_model, no prompt lookup)")

    def offload(self):
        self.change(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self):
        pass


def own_layer(cache, layer):
    """The place of a block in a cache, as one that keeps a state."""
    while len(cache.layers) <= layer:  # a cache that grows as it is used
        cache.layers.append(cache.layer_class_to_replicate())
    if not isinstance(cache.layers[layer], StateLayer):
        cache.layers[layer] = StateLayer()
    return cache.layers[layer]


def hear_padding(body, args, kwargs):
    """A hook before the body of a model: hands the mask of its positions on to the blocks, which else see only what attention makes of it.

    Beside a state, a cache whose memory was made ahead is none that can be compiled, and transformers would make no mask for a single position that
    follows no padding: attention would read places that nothing was written to. What is there is therefore said.
    """
    mask, cache, inputs = (kwargs.get(name) for name in ("attention_mask", "past_key_values", "inputs_embeds"))
    inputs = inputs if inputs is not None else args[0] if args else kwargs.get("input_ids")
    if mask is None and cache is not None and any(isinstance(layer, StaticLayer) for layer in cache.layers):
        there = torch.ones(len(inputs), int(cache.get_seq_length()) + inputs.shape[1], dtype=torch.long, device=inputs.device)
        kwargs = {**kwargs, "attention_mask": there}
    return args, {**kwargs, "token_mask": mask}


def real_positions(mask, length, seen=0):
    """[B, T] True where a position is there, for the last T ones; None where all are. `mask` is what the model was given, `seen` what came before."""
    if isinstance(mask, dict):  # one a kind of attention; a family may have no kind but those of a window
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None:
        return None
    if mask.ndim == 4:  # laid out for attention already: a position that is there sees itself
        itself = mask[:, 0, :, seen : seen + length].diagonal(dim1=-2, dim2=-1)
        mask = itself if mask.dtype == torch.bool else itself == 0
    mask = mask[:, -length:].bool()
    return None if bool(mask.all()) else mask


def rotate(x, rope):
    """x [B, T, H, D] turned by its positions, in pairs of channels half of them apart; more channels than there are angles stay as they are."""
    if rope is None:
        return x
    cos, sin = (angle.unsqueeze(2) for angle in rope)
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    one, two = turned.chunk(2, -1)
    turned = turned * cos + torch.cat([-two, one], -1) * sin
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def per_query(x, heads):
    """[B, T, heads of keys, D] -> one a query head: query head j reads key head j // group."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)


class HeadNorm(nn.RMSNorm):
    """In the dtype of its weight, under autocast too."""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


class Mixing(nn.Module):
    """A module in the place of attention. A mixer writes `mix`, `step`, `materialize` and `output`.

    Shapes: B rows, T positions, d width, H heads, D channels of a head's values. `rope` is (cos, sin), each [B, T, angles], or None. `mask` [B, T]
    is False where a position is not there (padding): it adds nothing to a state; None: all are there. A state is a dict of tensors of constant size,
    batch first; None at the beginning.
    """

    causal = True

    def __init__(self, layer_idx=0):
        super().__init__()
        self.layer_idx = layer_idx

    def mix(self, x, rope, mask, state):
        """All positions at once, from a state: y [B, T, d] and the state after them."""
        raise NotImplementedError

    def step(self, x, rope, mask, state):
        """One position (T = 1), as the recurrence is written."""
        raise NotImplementedError

    def materialize(self, x, rope, mask):
        """The matrices [B, H, T, T] that mix positions, and what they mix [B, H, T, D]."""
        raise NotImplementedError

    def output(self, o, x):
        """What was mixed, [B, H, T, D], as y [B, T, d]: `output(M @ v, x)` is what `mix` gives."""
        raise NotImplementedError

    def forward(
        self, hidden_states, position_embeddings=None, attention_mask=None, position_ids=None, past_key_values=None, token_mask=None, **kwargs
    ):
        if past_key_values is not None and not self.causal:
            raise ValueError("this block looks ahead, and keeps no state to decode with: its model reads a text as a whole")
        if past_key_values is None:
            x, rope, mask, back = self.lay_out(hidden_states, position_embeddings, position_ids, token_mask)
            return back(self.mix(x, rope, mask, None)[0]), None
        length = hidden_states.shape[1]
        layer = own_layer(past_key_values, self.layer_idx)
        mask = real_positions(token_mask, length, layer.seen)
        if mask is not None and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("padding stands after the text: pad on the left to generate (tokenizer.padding_side = 'left')")
        run = self.step if length == 1 and layer.state is not None else self.mix
        y, layer.state = run(hidden_states, position_embeddings, mask, layer.state)
        layer.seen += length
        return y, None

    def lay_out(self, x, rope, position_ids, token_mask):
        """Rows packed into one, told apart by positions that begin at 0 again, each by itself; and a function that packs them again."""
        starts = None if position_ids is None or len(x) != 1 else (position_ids[0] == 0).nonzero()[:, 0]
        if starts is None or len(starts) <= 1:
            return x, rope, real_positions(token_mask, x.shape[1]), lambda y: y
        ends = torch.cat([starts[1:], starts.new_tensor([x.shape[1]])])
        place = torch.arange(int((ends - starts).max()), device=x.device)
        mask = place < (ends - starts)[:, None]
        index = (starts[:, None] + place).clamp(max=x.shape[1] - 1)
        rope = None if rope is None else tuple(angle[0][index] for angle in rope)
        return x[0][index], rope, mask, lambda y: y[mask][None]

    def mixing(self, hidden_states, position_embeddings=None, position_ids=None, token_mask=None, pick=None, **kwargs):
        """The matrices of what `forward` would be given, [rows, H, T, T], and which positions are there, [rows, T] or None; packed rows apart.

        `pick`: a function of the number of heads that names those that are wanted.
        """
        x, rope, mask, _ = self.lay_out(hidden_states, position_embeddings, position_ids, token_mask)
        return (self.materialize(x, rope, mask)[0] if pick is None else self.of_heads(x, rope, mask, pick)), mask

    def of_heads(self, x, rope, mask, pick):
        """The matrices of some heads."""
        matrices = self.materialize(x, rope, mask)[0]
        return matrices[:, pick(matrices.shape[1])]
