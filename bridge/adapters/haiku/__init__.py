"""The Haiku adapter, and Haiku's own layers with their sizes given, which `init` makes of a key alone.

`options` are what else Haiku's constructor of a layer takes. The params are those that Haiku makes, and
a call with inputs of another size raises ModelError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from bridge.adapters.haiku import _export, _wrap
from bridge.core.errors import ModelError

Size = int | Sequence[int]
"""One size for every axis of space, or one for each."""


def from_haiku(
    target: Any,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[..., Any]:
    """A Haiku model as a Module.

    `target` is a class of Haiku modules, a function that uses them, or what `hk.transform`,
    `hk.multi_transform` and their relatives made of one. For a class what comes back takes the
    arguments of its constructor, and gives the Module. The functions of a multi_transform are methods:
    of a dict or namedtuple by its keys, of a tuple `apply_0`, `apply_1`; a single one is `__call__`.

    Without `params` (and `state`, where the model has some) `init` makes them, always in train mode;
    for a multi_transform its template does, and takes the arguments. Given ones are compared with what
    Haiku makes by `init`, and by a call as far as Haiku itself notices: what the call has no use for,
    and other dtypes, may be meant for another method or mode. What `to_haiku` made becomes the Module
    that it was made of, with these params and state.

    The train flag of a call is that of the mode unless it is given, and that of a constructor always;
    that of a multi_transform's function has to be given, because Haiku does not show its signature.
    Haiku's one random key is that of the stream "default". Raises ModelError for anything else.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> core = br.from_haiku(hk.LSTM)(7)
    >>> carry = core.initial_state(2)
    >>> core = core.init(jax.random.key(0), jnp.ones((2, 3)), carry)
    >>> out, carry = core(jnp.ones((2, 3)), carry)
    >>> out.shape
    (2, 7)
    >>> core.at["params.lstm/linear.w"].get().shape
    (10, 28)
    >>> def codec():
    ...     encode, decode = hk.Linear(2), hk.Linear(3)
    ...     return lambda x: decode(encode(x)), {"encode": encode, "decode": decode}
    >>> codec = br.from_haiku(hk.multi_transform(codec)).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> codec.decode(codec.encode(jnp.ones((2, 3)))).shape
    (2, 3)
    """
    if isinstance(target, (_export.Exported, _export.BridgeHaiku)):
        return _export.taken_back(target, params, state)
    if isinstance(target, type) and issubclass(target, hk.Module):
        return _wrap.constructor(target, params, state)
    return _wrap.wrap(target, params, state)


def to_haiku(module: Any, name: str | None = None) -> Callable[..., Any]:
    """A Module as a callable for the inside of `hk.transform` or `hk.transform_with_state`.

    It is one Haiku module: all of its calls in a transform share one bundle of params and of state,
    named `name`, or without it as Haiku names a module of that class. Made inside a transform it stands
    where it is made, numbered as Haiku numbers. Made outside it stands at the top level as `~/name`,
    wherever it is called. In the bundle a param is named by its path, a state by its collection and
    path; keys are the collection "rngs".

    `init` gives the arrays that the Module has, and makes what it has not made yet. The mode is given
    by a keyword in any spelling (`is_training=True`); without one it is the Module's own. It draws from
    Haiku's key. Frozen parameters stand among the params and get no gradient. `from_haiku(exported,
    params, state)` gives the Module back.

    Where the Module only wraps a Haiku function and no `name` is given, that one comes back, and for a
    class of Haiku modules that was not initialised a callable with its own params: their `init` makes
    new arrays, and the Module's are `module.native()`. Raises ModelError for anything else than a
    Module.

    >>> import bridge as br, flax.linen as nn, haiku as hk, jax, jax.numpy as jnp
    >>> encoder = br.to_haiku(br.from_linen(nn.Dense(7)), name="encoder")
    >>> net = hk.transform(lambda x: hk.Linear(3)(encoder(x)))
    >>> params = net.init(jax.random.key(0), jnp.ones((2, 5)))
    >>> jax.tree.map(jnp.shape, params["~/encoder"])
    {'bias': (7,), 'kernel': (5, 7)}
    >>> net.apply(params, None, jnp.ones((2, 5))).shape
    (2, 3)
    """
    return _export.export(module, name)


def linear(inputs: int, outputs: int, **options: Any) -> _wrap.HaikuModule:
    """`hk.Linear` from (... inputs) to (... outputs).

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.linear(3, 5).init(jax.random.key(0))(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _wrap.sized(hk.Linear, _floats(inputs), outputs, **options)


def layer_norm(
    features: int, axis: Any = -1, create_scale: bool = True, create_offset: bool = True, **options: Any
) -> _wrap.HaikuModule:
    """`hk.LayerNorm` of (... features): normalised over `axis`, scaled along the last one.

    >>> import jax
    >>> from bridge.adapters import haiku as layers
    >>> layers.layer_norm(5).init(jax.random.key(0)).at["params.layer_norm.scale"].get().shape
    (5,)
    """
    flags = (create_scale, create_offset)
    return _wrap.sized(hk.LayerNorm, _floats(features), axis, *flags, **options)


def batch_norm(
    features: int,
    data_format: str = "NHWC",
    create_scale: bool = True,
    create_offset: bool = True,
    decay_rate: float = 0.99,
    **options: Any,
) -> _wrap.HaikuModule:
    """`hk.BatchNorm` of inputs whose axes `data_format` names: "NC", "NWC", "NCHW", and so on.

    Haiku keeps its params in as many axes as the inputs have, and its averages are zero until the first
    call in train mode. Raises ModelError for a format that leaves the number of axes open.

    >>> import jax
    >>> from bridge.adapters import haiku as layers
    >>> norm = layers.batch_norm(5, "NWC").init(jax.random.key(0))
    >>> norm.at["params.batch_norm.scale"].get().shape
    (1, 1, 5)
    """
    if data_format.count("C") != 1 or not data_format.isupper():
        raise ModelError(
            f"batch_norm: data_format is {data_format!r}, which leaves open how many axes there are;"
            f" name each by a letter, the features by C: 'NC', 'NWC', 'NCW', 'NHWC' or 'NCHW'"
        )
    inputs = _floats(*(features if axis == "C" else 1 for axis in data_format))
    flags = (create_scale, create_offset, decay_rate)
    return _wrap.sized(hk.BatchNorm, inputs, *flags, data_format=data_format, **options)


def lstm(inputs: int, hidden_size: int, **options: Any) -> _wrap.HaikuModule:
    """`hk.LSTM`: (x, state) to (output, state); `initial_state(batch)` gives the first state.

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> core = layers.lstm(3, 5).init(jax.random.key(0))
    >>> out, state = core(jnp.ones((2, 3)), core.initial_state(2))
    >>> out.shape, state.cell.shape
    ((2, 5), (2, 5))
    """
    return _recurrent(hk.LSTM, inputs, hidden_size, options)


def gru(inputs: int, hidden_size: int, **options: Any) -> _wrap.HaikuModule:
    """`hk.GRU`: (x, state) to (output, state); `initial_state(batch)` gives the first state.

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> core = layers.gru(3, 5).init(jax.random.key(0))
    >>> core(jnp.ones((2, 3)), core.initial_state(2))[0].shape
    (2, 5)
    """
    return _recurrent(hk.GRU, inputs, hidden_size, options)


def embed(vocab_size: int, embed_dim: int, **options: Any) -> _wrap.HaikuModule:
    """`hk.Embed`: a vector of (embed_dim) for each number below `vocab_size`.

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.embed(7, 5).init(jax.random.key(0))(jnp.array([0, 6])).shape
    (2, 5)
    """
    inputs = (jax.ShapeDtypeStruct((1,), jnp.int32),)
    return _wrap.sized(hk.Embed, inputs, vocab_size, embed_dim, **options)


def conv_1d(inputs: int, outputs: int, kernel_shape: Size, **options: Any) -> _wrap.HaikuModule:
    """`hk.Conv1D` from `inputs` channels to `outputs`; `data_format` is "NWC" or "NCW".

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.conv_1d(3, 5, 2, stride=2).init(jax.random.key(0))(jnp.ones((1, 8, 3))).shape
    (1, 4, 5)
    """
    return _convolution(hk.Conv1D, 1, inputs, outputs, kernel_shape, options)


def conv_2d(inputs: int, outputs: int, kernel_shape: Size, **options: Any) -> _wrap.HaikuModule:
    """`hk.Conv2D` from `inputs` channels to `outputs`; `data_format` is "NHWC" or "NCHW".

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> conv = layers.conv_2d(3, 5, (2, 3), data_format="NCHW").init(jax.random.key(0))
    >>> conv(jnp.ones((1, 3, 7, 8))).shape
    (1, 5, 7, 8)
    """
    return _convolution(hk.Conv2D, 2, inputs, outputs, kernel_shape, options)


def conv_1d_transpose(
    inputs: int, outputs: int, kernel_shape: Size, **options: Any
) -> _wrap.HaikuModule:
    """`hk.Conv1DTranspose` from `inputs` channels to `outputs`; `data_format` is "NWC" or "NCW".

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.conv_1d_transpose(3, 5, 2, stride=2).init(jax.random.key(0))(jnp.ones((1, 4, 3))).shape
    (1, 8, 5)
    """
    return _convolution(hk.Conv1DTranspose, 1, inputs, outputs, kernel_shape, options)


def conv_2d_transpose(
    inputs: int, outputs: int, kernel_shape: Size, **options: Any
) -> _wrap.HaikuModule:
    """`hk.Conv2DTranspose` from `inputs` channels to `outputs`; `data_format` is "NHWC" or "NCHW".

    >>> import jax, jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.conv_2d_transpose(3, 5, 2, stride=2).init(jax.random.key(0))(jnp.ones((4, 4, 3))).shape
    (8, 8, 5)
    """
    return _convolution(hk.Conv2DTranspose, 2, inputs, outputs, kernel_shape, options)


def avg_pool(window_shape: Size, strides: Size, padding: str, **options: Any) -> _wrap.HaikuModule:
    """`hk.AvgPool`, which has no params; sizes are those of one example, its channels too.

    >>> import jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.avg_pool((2, 1), (2, 1), "VALID")(jnp.arange(4.0).reshape(1, 4, 1)).tolist()
    [[[0.5], [2.5]]]
    """
    return from_haiku(hk.AvgPool, {}, {})(window_shape, strides, padding, **options)


def max_pool(window_shape: Size, strides: Size, padding: str, **options: Any) -> _wrap.HaikuModule:
    """`hk.MaxPool`, which has no params; sizes are those of one example, its channels too.

    >>> import jax.numpy as jnp
    >>> from bridge.adapters import haiku as layers
    >>> layers.max_pool((2, 1), (2, 1), "VALID")(jnp.arange(4.0).reshape(1, 4, 1)).tolist()
    [[[1.0], [3.0]]]
    """
    return from_haiku(hk.MaxPool, {}, {})(window_shape, strides, padding, **options)


def _floats(*shape: int) -> tuple[Any]:
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)


def _recurrent(cls: Any, inputs: int, hidden_size: int, options: Any) -> _wrap.HaikuModule:
    state = jax.eval_shape(lambda: from_haiku(cls)(hidden_size).initial_state(None))
    return _wrap.sized(cls, (*_floats(inputs), state), hidden_size, **options)


def _convolution(
    cls: Any, axes: int, inputs: int, outputs: int, kernel_shape: Size, options: Any
) -> _wrap.HaikuModule:
    if "output_shape" in options:
        raise ModelError(
            f"an output_shape fits inputs of one size alone, which this was not given; type"
            f" from_haiku(hk.{cls.__name__})(...).init(key, sample)"
        )
    space = (1,) * axes  # the params are the same for every size
    last = hk.get_channel_index(options.get("data_format", "channels_last")) == -1
    shape = (*space, inputs) if last else (inputs, *space)
    return _wrap.sized(cls, _floats(1, *shape), outputs, kernel_shape, **options)
