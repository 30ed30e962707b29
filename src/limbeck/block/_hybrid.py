"""A class of transformers with other modules in some places of its blocks, which its config names: saved and loaded like any other.

This file is carried along beside exported weights: it imports torch and transformers alone.
"""


def hybrid_classes(config_class, model_class, build, hook):
    """Config and model class of a family, with modules of other kinds in some places.

    Args:
        config_class, model_class: of transformers.
        build: makes a module of a spec (its kind and numbers) and the number of its block.
        hook: that runs before the body.
    """

    class Config(config_class):
        """`layer_parts`: for each block, place in the block -> spec of the module that stands there."""

        model_type = f"hybrid_{config_class.model_type}"
        layer_parts: list | None = None

    class Model(model_class):
        """The family's model, rebuilt as its config says."""

        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            named = list(config.layer_parts or [{}] * len(blocks_of(self)))
            for layer, (block, parts) in enumerate(zip(blocks_of(self), named, strict=True)):
                for place, spec in dict(parts).items():
                    put(block, place, build(spec, layer))
            self.base_model.register_forward_pre_hook(hook, with_kwargs=True)

    Config.__name__ = Config.__qualname__ = f"Hybrid{config_class.__name__}"
    Model.__name__ = Model.__qualname__ = f"Hybrid{model_class.__name__}"
    return Config, Model


def built(spec, layer, class_of):
    """The module of a spec; those that stand in it are made first, and handed to it."""
    inner = {name: built(value, layer, class_of) if isinstance(value, dict) and "kind" in value else value for name, value in spec.items()}
    return class_of(inner.pop("kind"))(**inner, layer_idx=layer)


def blocks_of(model):
    """The list of blocks of a decoder of transformers."""
    body = model.base_model
    return body.layers if hasattr(body, "layers") else body.h


def put(block, place, module):
    """Puts a module into a place of a block, like self_attn or mlp.gate_proj."""
    owner, _, name = place.rpartition(".")
    setattr(block.get_submodule(owner), name, module)
