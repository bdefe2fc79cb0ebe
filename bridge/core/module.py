"""The Module: what every model of every library becomes."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import bridge.core.calling as calling
from bridge.core.editing import At, freeze, unfreeze
from bridge.core.errors import FieldError, ImmutableError
from bridge.core.frames import Frame, frame_of
from bridge.core.global_config import GlobalConfig
from bridge.core.libraries import library_of
from bridge.core.node import Node, is_draft, rebuild, rng_of, spec_of
from bridge.core.origins import parts_by_origin, refuse_unused
from bridge.core.parameters import ParameterTree, carried, trainable, updated
from bridge.core.rewriting import mapped, replaced
from bridge.core.rng import attachable
from bridge.core.show import draw, tabulate
from bridge.core.splitting import split
from bridge.core.tree import map_rngs, walk


def plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a method that works on the module as it is, and not as a call through `apply`.

    >>> import bridge as br
    >>> class Wide(br.Module):
    ...     width: int
    ...
    ...     @br.plain
    ...     def doubled(self):
    ...         return self.at["width"].set(2 * self.width)
    >>> Wide(3).doubled().width
    6
    """
    method.__bridge_plain__ = True  # type: ignore[attr-defined]
    return method


def _through_apply(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that runs as part of the call it is in, or as a call of its own."""

    @functools.wraps(method)
    def entered(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_draft(self):
            return method(self, *args, **kwargs)
        frame = frame_of(self)
        if frame is None:
            return calling.call(self, method, args, kwargs)
        return frame.enter(self, method, args, kwargs)

    return entered


def _is_call(name: str, value: Any) -> bool:
    if not isinstance(value, types.FunctionType) or hasattr(value, "__bridge_plain__"):
        return False
    return name == "__call__" or not (name.startswith("_") or name in vars(Module))


class Module(Node):
    """An immutable tree of parameters, states and other modules.

    Subclass it, declare each field with an annotation and write `__call__`, or `forward`:

    >>> import bridge as br, jax, jax.numpy as jnp
    >>> class Scale(br.Module):
    ...     factor: br.Parameter
    ...     calls: br.State
    ...
    ...     def __init__(self):
    ...         self.factor = br.ParamInit((), jax.nn.initializers.ones)
    ...         self.calls = 0
    ...
    ...     def __call__(self, x):
    ...         self.calls = self.calls + 1
    ...         return self.factor * x
    >>> module = Scale().init(jax.random.key(0))
    >>> out, module = module.apply(jnp.array(2.0))
    >>> float(out), int(module.calls)
    (2.0, 1)
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, annotation in inspect.get_annotations(cls).items():
            if (hasattr(Module, name) or name == "_rng") and "ClassVar" not in str(annotation):
                raise FieldError(
                    f"{cls.__name__}.{name} cannot be a field: every bridge.Module has {name!r} of"
                    f" its own; give the field another name"
                )
        if "forward" in vars(cls) and "__call__" not in vars(cls):
            cls.__call__ = vars(cls)["forward"]  # the other name of what a module computes
        for name, value in list(vars(cls).items()):
            if _is_call(name, value):
                setattr(cls, name, _through_apply(value))

    @classmethod
    def adopt(cls, value: Any, where: str) -> Node:
        """The child that a value stands for: a module is itself, a plain function a `Function`.

        >>> import bridge as br
        >>> br.Module.adopt(abs, "Net.activation")
        Function(abs)
        """
        if isinstance(value, Node):
            return value
        library = library_of(value)
        if library is not None:
            raise FieldError(
                f"{where} is declared as a module and holds a {library} {type(value).__name__};"
                f" wrap it: bridge.wrap(model)"
            )
        if not callable(value):
            raise FieldError(
                f"{where} is declared as a module and holds a {type(value).__name__} ({value!r});"
                f" give it a bridge.Module or a function"
            )
        return Function(value)

    def init(
        self,
        key: Any,
        *sample: Any,
        mode: str | None = None,
        method: str | Callable[..., Any] = "__call__",
        reuse: Mapping[Module, Module] | None = None,
        **kwargs: Any,
    ) -> Self:
        """The module with everything made that is not there yet, and nothing else changed.

        `key` is a key or a dict of keys by stream (`"params"` makes parameters). `sample` and `kwargs`
        are what `method` is called with, arrays or `jax.ShapeDtypeStruct`; they are needed where a
        wrapped Linen or Haiku model takes its shapes from its input. A part's key depends on its path,
        so that a new sibling changes no other part. Raises UninitialisedError without a needed sample.

        `reuse` gives modules that this one is made of with their trained forms, which stand in their
        places, those of their parts too where these are used alone. Raises FieldError for one that is
        used nowhere, StructureError for one that does not fit.

        >>> import bridge as br, jax, jax.numpy as jnp
        >>> class Scale(br.Module):
        ...     factor: br.Parameter = br.ParamInit((), jax.nn.initializers.ones)
        ...
        ...     def __call__(self, x):
        ...         return self.factor * x
        >>> scale = Scale()
        >>> trained = scale.init(jax.random.key(0)).at["factor"].set(3.0)
        >>> net = br.Sequential(scale, jnp.negative)
        >>> float(net.init(jax.random.key(0), reuse={scale: trained})(2.0))
        -6.0
        """
        trained = parts_by_origin(reuse)
        made = calling.init(self, key, sample, kwargs, mode=mode, method=method, trained=trained)
        refuse_unused(reuse, trained, made)
        return made

    def initialized(self, key: Any, *sample: Any, **kwargs: Any) -> Self:
        """The module with everything made that is not there yet: `init` by another name.

        >>> import bridge as br, jax
        >>> class Shift(br.Module):
        ...     shift: br.Parameter = br.ParamInit((), jax.nn.initializers.ones)
        ...
        ...     def forward(self, x):
        ...         return x + self.shift
        >>> print(Shift(), Shift().initialized(jax.random.key(0))(2.0))
        Shift uninit () 3.0
        """
        return self.init(key, *sample, **kwargs)

    def split(self, number: int) -> tuple[Self, ...]:
        """So many copies of the module, with fresh keys wherever one is attached or in a `Key` field.

        Raises MissingRngError where there is none.

        >>> import bridge as br, jax
        >>> class Noise(br.Module):
        ...     def __call__(self):
        ...         return jax.random.normal(self.rng)
        >>> one, other = Noise().new_state(jax.random.key(0)).split(2)
        >>> bool(one.apply()[0] == other.apply()[0])
        False
        """
        return split(self, number)

    def apply(
        self,
        *args: Any,
        rng: Any = None,
        mode: str | None = None,
        method: str | Callable[..., Any] = "__call__",
        **kwargs: Any,
    ) -> tuple[Any, Self]:
        """The output of a method, and the module after it.

        `rng` is a key or a dict of keys by stream; `mode` is "train", "eval", or None for the tree's
        own. `method` is a name, or a function of the module and the arguments. The module that comes
        back has the same treedef, so it is a legal `jax.lax.scan` carry. An attached key
        (`new_state`) that was drawn from comes back advanced.
        """
        return calling.apply(self, args, kwargs, rng=rng, mode=mode, method=method)

    def capture(
        self,
        *args: Any,
        paths: Iterable[str],
        rng: Any = None,
        mode: str | None = None,
        method: str | Callable[..., Any] = "__call__",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The outputs of the modules at `paths` (globs select many) during a call, by path.

        A module that is called again has its later outputs at `path#2`, `path#3`. Raises PathError
        for a path that no called module has.

        >>> import bridge as br, jax.numpy as jnp
        >>> class Twice(br.Module):
        ...     inner: br.Module
        ...
        ...     def __call__(self, x):
        ...         return self.inner(self.inner(x))
        >>> outputs = Twice(jnp.negative).capture(jnp.array(3.0), paths=["inner"])
        >>> {path: float(out) for path, out in outputs.items()}
        {'inner': -3.0, 'inner#2': 3.0}
        """
        return calling.capture(self, args, kwargs, paths, rng=rng, mode=mode, method=method)

    def new_state(self, key: Any, mode: str | None = None) -> Self:
        """The module with a key (or keys by stream) attached, and a mode unless that is None.

        >>> import bridge as br, jax
        >>> class Noise(br.Module):
        ...     def __call__(self, x):
        ...         if self.training:
        ...             x = x + jax.random.normal(self.rng, x.shape)
        ...         return x + 0 * jax.random.normal(self.draw("other"), x.shape)
        >>> noise = Noise().new_state(jax.random.key(0), mode="train")
        >>> x = jax.numpy.zeros(3)
        >>> first, noise = noise.apply(x)
        >>> second, noise = noise.apply(x)
        >>> bool((first == second).any()), noise.mode
        (False, 'train')
        """
        module = _without_rng(self)
        mode = calling.checked_mode(mode)
        spec = spec_of(module).replace(mode=mode or spec_of(module).mode)
        return rebuild(module, spec=spec, rng=attachable(key))

    def train(self) -> Self:
        """The module in train mode; below a parent, pinned to it.

        >>> import bridge as br
        >>> module = br.Function(abs)
        >>> module.train().mode, module.train().eval().mode, module.train().training
        ('train', 'eval', True)
        """
        return self.with_mode("train")

    def eval(self) -> Self:
        """The module in eval mode; below a parent, pinned to it."""
        return self.with_mode("eval")

    def with_mode(self, mode: str | None) -> Self:
        """The module in a mode of its own, or with None in that of its parent.

        >>> import bridge as br
        >>> br.Function(abs).train().with_mode(None).mode
        'eval'
        """
        return rebuild(self, spec=spec_of(self).replace(mode=calling.checked_mode(mode)))

    def with_global_config(self, **values: Any) -> Self:
        """The module with static values that it and everything below it reads as `self.global_config`.

        They take the place of those that it said before; with none it says nothing any more. Where a
        module and one above it say the same name, the one above is right. No array is touched, each
        other config compiles once, and optimizers and saved files know nothing of it. It ends where a
        model of another library begins.

        >>> import bridge as br
        >>> class Scaled(br.Module):
        ...     inner: br.Module | None = None
        ...
        ...     def __call__(self, x):
        ...         x = x * self.global_config["scale"]
        ...         return x if self.inner is None else self.inner(x)
        >>> Scaled(Scaled().with_global_config(scale=2)).with_global_config(scale=3)(1)
        9
        """
        config = GlobalConfig(values) if values else None
        return rebuild(self, spec=spec_of(self).replace(config=config))

    @property
    def global_config(self) -> GlobalConfig:
        """What `with_global_config` said: in a call here and above, outside of one here alone.

        A read-only mapping; reading what is not there raises PathError, which says what is.
        """
        return spec_of(self).config or GlobalConfig({})

    @property
    def mode(self) -> str:
        """The mode of the running call, or else the module's own, or else "eval"."""
        return spec_of(self).mode or "eval"

    @property
    def training(self) -> bool:
        """Whether the mode is "train"."""
        return self.mode == "train"

    @property
    def rng(self) -> Any:
        """The module's key for this call, the same at each read: use it once, or split it."""
        return self._running("rng").key("default")

    def draw(self, stream: str = "default") -> Any:
        """A fresh key of a named stream, another one at each draw."""
        return self._running("draw()").draw(stream)

    @property
    def initialising(self) -> bool:
        """Whether `init` runs, which is when `fill` gives the module its first values."""
        frame = frame_of(self)
        return frame is not None and frame.initialising

    def fill(self, **values: Any) -> None:
        """Gives fields that are `bridge.LAZY` their first values, while `init` runs the module.

        What is there already stays as it is. Raises UninitialisedError where the sample that init was
        given has no values, and FieldError outside of init.

        >>> import bridge as br, jax, jax.numpy as jnp
        >>> class Centred(br.Module):
        ...     mean: br.Parameter = br.LAZY
        ...
        ...     def __call__(self, x):
        ...         if self.initialising:
        ...             self.fill(mean=x.mean(0))
        ...         return x - self.mean
        >>> centred = Centred().init(jax.random.key(0), jnp.array([[1.0], [3.0]]))
        >>> centred.mean, centred(jnp.array([5.0]))
        (Array([2.], dtype=float32), Array([3.], dtype=float32))
        """
        self._running("fill()").first_values(self, values)

    def _running(self, what: str) -> Frame:
        frame = frame_of(self)
        if frame is None:
            raise ImmutableError(
                f"{type(self).__name__}.{what} exists only while apply runs the module, and this one"
                f" is outside of a call, or went through an inner jax.jit as an ordinary pytree;"
                f" draw before that and pass the key in"
            )
        return frame

    def parameters(self) -> ParameterTree:
        """What is trained: the same structure with None for every other leaf; no callable.

        Arrays are shared with the module. Fields are read as on the module: `grads.encoder.scale`.

        >>> import bridge as br, jax
        >>> class Counter(br.Module):
        ...     bias: br.Parameter
        ...     count: br.State
        >>> counter = Counter(2.0, 3)
        >>> params = counter.parameters()
        >>> params.count is None, callable(params)
        (True, False)
        >>> float(counter.update(jax.tree.map(lambda leaf: leaf / 2, params)).bias)
        1.0
        """
        return trainable(self)

    def states(self) -> ParameterTree:
        """What is carried from call to call, states and keys: None for every other leaf; no callable.

        Arrays are shared with the module. What it gives, `update` takes.

        >>> import bridge as br
        >>> class Counter(br.Module):
        ...     bias: br.Parameter
        ...     count: br.State
        >>> trained, fresh = Counter(2.0, 3), Counter(0.0, 0)
        >>> trained.states().bias is None
        True
        >>> counter = fresh.update(trained.states())
        >>> float(counter.bias), int(counter.count)
        (0.0, 3)
        """
        return carried(self)

    def update(self, params: ParameterTree) -> Self:
        """The module with every leaf of `params` that is not None in its place.

        `params` is what `parameters()` or `states()` of such a module gives. Raises StructureError,
        with the paths, where structure or shapes differ.
        """
        return updated(self, params)

    def freeze(self, *patterns: str) -> Self:
        """The module with the parameters that the patterns select (none: all) no longer trained.

        >>> import bridge as br
        >>> class Line(br.Module):
        ...     slope: br.Parameter
        ...     shift: br.Parameter
        >>> line = Line(2.0, 1.0).freeze("slope")
        >>> line.parameters().slope, line.unfreeze("slope") is line
        (None, False)
        >>> print(line.summary())
        path       kind               dtype    shape  size
        ---------  -----------------  -------  -----  ----
        Line
        ├── slope  parameter, frozen  float32  ()        1
        └── shift  parameter          float32  ()        1
        1 trained, 1 frozen; 8 bytes
        """
        return freeze(self, patterns)

    def unfreeze(self, *patterns: str) -> Self:
        """The module with the parameters that the patterns select (none: all) trained again."""
        return unfreeze(self, patterns)

    @property
    def at(self) -> At[Self]:
        """Access by path: `module.at["encoder.0"].get()`, `.set(new)`, `.apply(f)`; globs too."""
        return At(self)

    def replace(self, **fields: Any) -> Self:
        """The module with new values in some of its fields, checked as those that `__init__` sets.

        Unlike `at[...].set` it takes arrays of other sizes, and changes together what belongs together.
        Raises FieldError for a field that is not declared.

        >>> import bridge as br, jax.numpy as jnp
        >>> class Dense(br.Module):
        ...     weight: br.Parameter
        ...     width: int
        >>> Dense(jnp.ones((3, 5)), 5).replace(weight=jnp.ones((3, 7)), width=7).weight.shape
        (3, 7)
        """
        return replaced(self, fields)

    def map(self, change: Callable[[Any], Any]) -> Any:
        """The module with every part of its tree replaced by `change(part)`, the innermost first.

        A part comes with its own parts changed already, and the module itself comes last. What is
        shared is changed once and stays shared; SharingError where the change would move it. To change
        what a path or glob selects, type `module.at["encoder.*"].apply(change)`.

        >>> import bridge as br
        >>> class Dropout(br.Module):
        ...     rate: float
        >>> class Net(br.Module):
        ...     layers: list[br.Module]
        >>> def off(part):
        ...     return part.replace(rate=0.0) if isinstance(part, Dropout) else part
        >>> net = Net([Dropout(0.5), abs, Dropout(0.1)]).map(off)
        >>> [layer.rate for layer in net.layers[::2]]
        [0.0, 0.0]
        """
        return mapped(self, change)

    def grad(self, *args: Any, **kwargs: Any) -> ParameterTree:
        """The gradient of the module's scalar output with respect to `parameters()`."""
        from bridge.core.gradients import grad

        return grad(lambda module: module(*args, **kwargs))(self)

    def summary(self) -> str:
        """The tree as a table: each part with its class, each array with its kind, dtype and shape.

        The path of an array is the names on the way to it, joined by dots.

        >>> import bridge as br, jax, jax.numpy as jnp
        >>> class Dense(br.Module):
        ...     weight: br.Parameter
        >>> class Net(br.Module):
        ...     layers: list[br.Module]
        ...     steps: br.State
        >>> print(Net([Dense(jnp.ones((3, 5))), jax.nn.relu], 0).summary())
        path            kind       dtype    shape   size
        --------------  ---------  -------  ------  ----
        Net
        ├── steps       state      int32    ()         1
        ├── layers.0    Dense
        │   └── weight  parameter  float32  (3, 5)    15
        └── layers.1    Function
        15 trained, 1 state; 64 bytes
        """
        return tabulate(self)

    def extra_repr(self) -> str:
        """What stands between the brackets of the module's line in its repr.

        >>> import bridge as br
        >>> class Wide(br.Module):
        ...     width: int
        ...
        ...     def extra_repr(self):
        ...         return f"width={self.width}"
        >>> Wide(3)
        Wide(width=3)
        """
        return ""

    def __repr__(self) -> str:
        return draw(self)


def _without_rng(module: Any) -> Any:
    if not any(rng_of(node) is not None for _, node in walk(module)):
        return module
    return map_rngs(module, lambda _path, _rng: None)


class Function(Module):
    """A plain function as a module without parameters: activations and reshapes among the layers.

    A function that is given where a module is declared becomes one by itself.

    >>> import bridge as br
    >>> br.Function(abs)(-3)
    3
    """

    function: Callable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", repr(self.function))
