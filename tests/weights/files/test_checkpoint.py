"""Files of torch.save against torch's own reader, and what a checkpoint wraps its weights in."""

import collections
import pickle

import ml_dtypes
import numpy as np
import pytest

from bridge.core.errors import BridgeError, CheckpointError, WeightsError
from bridge.weights.files import checkpoint, names, strided
from bridge.weights.sources import open_source

torch = pytest.importorskip("torch")

FORMATS = {"zip": True, "older": False}


def saved(path, tree, form="zip", **options):
    torch.save(tree, path, _use_new_zipfile_serialization=FORMATS[form], **options)
    return path


def bits(tensor):
    """The bytes of a tensor, in row-major order."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return tensor.view(torch.uint8).numpy().tobytes()


def numbers(dtype, *shape):
    row = torch.arange(shape[0] * shape[1] * dtype.itemsize) * 37 % 251
    row = row.to(torch.uint8) % 2 if dtype == torch.bool else row.to(torch.uint8)
    return row.view(dtype).reshape(shape)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", strided.DTYPES)
def test_every_dtype_is_torchs_bit_for_bit(name, form, tmp_path):
    dtype = getattr(torch, name)
    whole = numbers(dtype, 3, 5)
    tree = {
        "whole": whole,
        "turned": whole.T,
        "part": whole[1:, ::2],
        "row": whole[2],
        "one": whole[1, 3],
        "none": whole[:0],
        "tied": whole,
        "repeated": whole[:1].expand(7, 5),
        "parameter": torch.nn.Parameter(whole, requires_grad=False),
    }
    path = saved(tmp_path / "a.pt", tree, form)
    # torch writes the dtypes that have no class of storages in its older format, and cannot read them.
    is_typed = strided.DTYPES[name] in names.STORAGES.values() or form == "zip"
    theirs = torch.load(path, weights_only=True) if is_typed else tree
    ours = open_source(path).tensors
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        array = ours[key].read()
        assert (array.shape, array.dtype) == (tuple(tensor.shape), strided.DTYPES[name])
        assert (ours[key].shape, ours[key].dtype) == (array.shape, array.dtype)
        assert array.tobytes() == bits(tensor), key


def test_every_dtype_of_torch_is_known_or_refused_by_name(tmp_path):
    dtypes = {str(one): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
    assert {f"torch.{name}" for name in strided.DTYPES} <= set(dtypes)
    refused = {name for name in dtypes if name.removeprefix("torch.") not in strided.DTYPES}
    for name in refused:
        try:
            tensor = torch.zeros(8, dtype=torch.uint8).view(dtypes[name])
            path = saved(tmp_path / "a.pt", {"a": tensor})
        except (RuntimeError, KeyError, AttributeError, NotImplementedError):
            continue  # torch itself cannot make or save it
        with pytest.raises(WeightsError, match=r"it holds torch\.\w+, which is no tensor"):
            open_source(path)


@pytest.mark.parametrize("form", FORMATS)
def test_lazy_bits_of_complex_tensors_are_applied(form, tmp_path):
    pair = torch.complex(torch.arange(15.0), torch.arange(15.0) + 1).reshape(3, 5)
    for one in (pair.conj(), pair.conj().imag, pair.T.conj()[1:]):
        path = saved(tmp_path / "a.pt", {"a": one}, form)
        theirs = torch.load(path, weights_only=True)["a"].resolve_conj().resolve_neg()
        np.testing.assert_array_equal(open_source(path).tensors["a"].read(), theirs.numpy())


@pytest.mark.parametrize("form", FORMATS)
def test_keys_of_one_memory_are_ties(form, tmp_path):
    whole = torch.arange(15.0).reshape(3, 5)
    tree = {"a": whole, "b": whole, "c": whole.clone(), "part": whole[1:], "none": whole[:0]}
    assert open_source(saved(tmp_path / "a.pt", tree, form)).ties == (("a", "b"),)


def test_ties_of_a_live_model_and_of_a_mapping_are_known():
    first = torch.nn.Linear(3, 5)
    second = torch.nn.Linear(3, 5)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    assert open_source(model).ties == (("0.weight", "1.weight"),)
    array = np.ones((3, 5))
    assert open_source({"a": array, "b": array.T, "c": array, "d": array[:0], "e": array[:0]}).ties == (
        ("a", "c"),
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_whole_training_checkpoint_is_read(protocol, form, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "milestones": collections.Counter([30, 60]),
        "best": (0.25, 1 + 2j, None),
        "names": {"a", "b"},
        "raw": b"\x00\xff",
        "size": torch.Size([3, 5]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
    }
    path = saved(tmp_path / "a.pt", tree, form, pickle_protocol=protocol)
    read = checkpoint.read(path)
    for key in ("epoch", "milestones", "best", "names", "raw"):
        assert read[key] == tree[key]
    assert (read["size"], read["device"], read["dtype"]) == ((3, 5), "cpu", ml_dtypes.bfloat16)
    state = tree["optimizer"]["state"][0]
    np.testing.assert_array_equal(read["optimizer"]["state"][0]["exp_avg"].read(), state["exp_avg"])
    source = open_source(path)
    assert list(source.tensors) == list(tree["model"])
    assert source.notes == (
        'the state_dict is "model" of the file; "optimizer", "epoch", "milestones", "best", "names",'
        ' "raw", "size", "device", "dtype" stayed unread',
    )


class Tagged(torch.Tensor):
    pass


def test_attributes_of_a_tensor_are_left_out(tmp_path):
    tensor = torch.arange(15.0)
    tensor.tag = "a"
    parameter = torch.nn.Parameter(torch.arange(15.0))
    parameter.tag = 3
    path = saved(tmp_path / "a.pt", {"tensor": tensor, "parameter": parameter})
    for one in open_source(path).tensors.values():
        np.testing.assert_array_equal(one.read(), np.arange(15.0))


REFUSED = {
    "model": (lambda: torch.nn.Linear(3, 5), "it holds torch.nn.modules.linear.Linear"),
    "numpy": (lambda: {"best": np.float64(3)}, r"it holds numpy\._core\.multiarray\.scalar"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "it holds torch._utils._rebuild_sparse_tensor"),
    "subclass": (lambda: {"a": torch.ones(3).as_subclass(Tagged)}, "it holds .*Tagged"),
    "module": (lambda: {"a": pickle.PickleError("x")}, r"it holds (builtins|_?pickle)\.PickleError"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_tensor_container_or_number_is_refused_by_name(case, form, tmp_path):
    make, reason = REFUSED[case]
    path = saved(tmp_path / "a.pt", make(), form)
    with pytest.raises(WeightsError, match=reason):
        open_source(path)


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(torch.nn.Linear(3, 5)).save(path)
    with pytest.raises(WeightsError, match="it is a TorchScript program; its weights are those of"):
        open_source(path)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_taken_off_and_told(wrapper, tmp_path):
    state = {f"{wrapper}{key}": one for key, one in torch.nn.Linear(3, 5).state_dict().items()}
    source = open_source(saved(tmp_path / "a.pt", {"state_dict": state, "epoch": 3}))
    assert list(source.tensors) == ["weight", "bias"]
    assert source.notes[0] == 'the state_dict is "state_dict" of the file; "epoch" stayed unread'
    assert source.notes[1:] == tuple(
        f'"{prefix}", which {name} puts before every key, was taken off'
        for prefix, name in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel"))
        if prefix in wrapper
    )


def test_a_module_beside_others_keeps_its_name(tmp_path):
    tree = {"module.weight": torch.ones(3), "head.weight": torch.ones(3)}
    source = open_source(saved(tmp_path / "a.pt", tree))
    assert (list(source.tensors), source.notes) == (list(tree), ())


def test_a_state_dict_two_levels_down_is_found(tmp_path):
    tree = {"run": {"weights": {"a": torch.ones(3)}, "step": 7}, "other": [torch.ones(5)]}
    source = open_source(saved(tmp_path / "a.pt", tree))
    assert list(source.tensors) == ["a"]
    assert source.notes == ('the state_dict is "run.weights" of the file; "other" stayed unread',)


def test_two_state_dicts_are_refused_with_their_names(tmp_path):
    state = {"a": torch.ones(3)}
    path = saved(tmp_path / "a.pt", {"model": state, "ema": {"a": torch.zeros(3)}, "epoch": 3})
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} holds 2 state_dicts, model, ema; give the one that is meant, such as"
        f" torch.load('{path}', weights_only=True)['model']"
    )


@pytest.mark.parametrize("tree", [[torch.ones(3)], torch.ones(3), {}, {"epoch": 3}, {0: torch.ones(3)}])
def test_a_file_without_a_state_dict_is_refused(tree, tmp_path):
    path = saved(tmp_path / "a.pt", tree)
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} holds no state_dict: there is no mapping in it with names for its tensors"
    )


def test_mappings_that_hold_each_other_end_the_search(tmp_path):
    first, second = {}, {"n": 3}
    first["a"] = first["b"] = second
    second["c"] = first
    with pytest.raises(WeightsError, match="holds no state_dict"):
        open_source(saved(tmp_path / "a.pt", first))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_is_cut_short_anywhere_is_refused(form, tmp_path):
    state = torch.nn.Linear(3, 5).state_dict()
    content = saved(tmp_path / "a.pt", state, form).read_bytes()
    cut = tmp_path / "cut.pt"
    for size in range(0, len(content), 7):
        cut.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_source(cut)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_is_cut_short_meanwhile_is_refused(form, tmp_path):
    path = saved(tmp_path / "a.pt", {"small": torch.ones(3), "large": torch.ones(100_000)}, form)
    tensors = open_source(path).tensors
    with path.open("r+b") as file:
        file.truncate(10)
    for tensor in tensors.values():
        with pytest.raises(CheckpointError) as caught:
            tensor.read()
        assert str(caught.value) == f"{path} was cut short while it was read; load it again"
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file or directory"):
        tensors["large"].read()


def test_a_view_in_a_file_of_torch_0_3_is_read(tmp_path):
    """A persistent id of six parts: the view's own key, where it begins, how long it is."""

    class Row:
        def __init__(self, *identity):
            self.identity = identity

    class Pickler(pickle.Pickler):
        def persistent_id(self, one):
            return one.identity if isinstance(one, Row) else None

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return torch._utils._rebuild_tensor, self.arguments

    def tree(view):
        row = Row("storage", torch.FloatStorage, "7", "cpu", 15, view)
        return {"a": Tensor(row, 1, (2, 3), (3, 1))}

    path = tmp_path / "a.pt"

    def write(view):
        with path.open("wb") as file:
            for one in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}):
                pickle.dump(one, file, 2)
            Pickler(file, 2).dump(tree(view))
            pickle.dump(["7"], file, 2)
            file.write((15).to_bytes(8, "little") + np.arange(15, dtype=np.float32).tobytes())

    write(("8", 4, 9))
    np.testing.assert_array_equal(open_source(path).tensors["a"].read(), [[5, 6, 7], [8, 9, 10]])
    write(("8", 4, 12))
    with pytest.raises(BridgeError, match="a view reaches beyond storage '7'"):
        open_source(path)
