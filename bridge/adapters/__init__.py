"""One package for each library; and, from here, what an adapter for another library is made of.

An adapter is a function `from_<library>` that makes a subclass of `Wrapped` out of a model. That says
how the library makes its arrays from an input (`make`, where a model is not built with its arrays), how
it runs a method with them (`run`), and in which form it takes them itself (`native`):

>>> import bridge as br, jax, jax.numpy as jnp
>>> from bridge.adapters import LAZY, Opaque, Wrapped
>>> from jax.example_libraries import stax
>>> class StaxModule(Wrapped):
...     @br.plain
...     def make(self, frame, method, args, kwargs):
...         init, _ = self.model.value
...         _, params = init(frame.key("params"), args[0].shape)
...         return None, params, {}, ()
...
...     @br.plain
...     def run(self, frame, method, args, kwargs):
...         _, apply = self.model.value
...         return apply(self.params.tree(), *args, **kwargs), {}
...
...     @br.plain
...     def native(self):
...         return self.params.tree()
>>> def from_stax(model):
...     return StaxModule(Opaque(model), LAZY, LAZY)
>>> net = from_stax(stax.serial(stax.Dense(5), stax.Relu))
>>> net = net.init(jax.random.key(0), jnp.ones((2, 3)))
>>> net(jnp.ones((2, 3))).shape
(2, 5)
>>> net.at["params.0.0"].get().shape
(3, 5)

| name | what it is |
|---|---|
| `Wrapped` | the module of a model: `model` is static, `params` are trained, `state` is carried on |
| `Opaque` | a library's own object among the statics, compared by value where it has a hash |
| `Leaves` | a library's tree of arrays as a field of a module; `tree()` gives that tree back |
| `LAZY`, `Lazy` | what stands for such a tree before `init` has made it, and the class of that |
| `Frame` | the call that runs: `key(stream)`, `mode`, `path`, and `record` for the outputs of parts |
| `key_or_none` | the key of a call, or None and the error to raise if the library does want one |
| `unsaid_flags` | the train flag as the model's method spells it, unless the call gave it |
| `Row`, `slot`, `row_of` | a table of the library's layers, by which PyTorch weights find their place |
| `Layer` | one layer of a model, as `make` and `Wrapped.layers` give it |
| `ModelError` | for what is no model of the library |
| `UninitialisedError` | for arrays that are asked for before `init` |

`bridge.register_adapter` makes `bridge.wrap` use an adapter. `examples/write_an_adapter.py` is one in
full, with state, random keys, a train flag and a table of layers.
"""

from bridge.core.errors import ModelError as ModelError
from bridge.core.errors import UninitialisedError as UninitialisedError
from bridge.core.flags import unsaid_flags as unsaid_flags
from bridge.core.frames import Frame as Frame
from bridge.core.layers import Layer as Layer
from bridge.core.layers import Row as Row
from bridge.core.layers import row_of as row_of
from bridge.core.layers import slot as slot
from bridge.core.leaves import LAZY as LAZY
from bridge.core.leaves import Lazy as Lazy
from bridge.core.leaves import Leaves as Leaves
from bridge.core.opaque import Opaque as Opaque
from bridge.core.wrapped import Wrapped as Wrapped
from bridge.core.wrapped import key_or_none as key_or_none
