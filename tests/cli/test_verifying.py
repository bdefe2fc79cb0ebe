"""`bridge verify` and `bridge doctor`: a model and a torch model on the same inputs."""

import json

import pytest

pytest.importorskip("flax")
pytest.importorskip("torch")

MODELS = "zoo:loaded", "zoo:torch_net"
OTHERS = "zoo:net", "zoo:torch_net"


@pytest.mark.parametrize("given", ["2x5", "zoo:rows"])
def test_a_loaded_model_passes(given, bridge):
    code, out, err = bridge("verify", *MODELS, "--input", given, "--tolerance", "1e-4")
    assert (code, err) == (0, "building the net\n")
    assert out.startswith("The outputs are the same: relative distance ")
    assert out.count("\n") == 1


def test_a_model_with_other_weights_fails(bridge):
    code, out, _ = bridge("verify", *OTHERS, "--input", "2x5")
    assert code == 1
    assert out.startswith("The outputs differ: relative distance ")


def test_the_doctor_tells_where_and_why(bridge, folder):
    files = "--markdown", "report.md", "--plot", "report.png"
    code, out, _ = bridge("doctor", *OTHERS, "--input", "2x5", *files)
    assert code == 1
    assert out.startswith("The outputs differ: relative distance ")
    assert "params.Dense_0.kernel" in out
    assert (folder / "report.md").read_text().startswith("**The outputs differ: ")
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_whole_report(bridge):
    code, out, _ = bridge("verify", *OTHERS, "--input", "2x5", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["passed"] is False
    assert report["findings"]


WRONG = {
    "": "the models need something to run on: give --input, such as 2x5",
    "--input 2x5 --plot report.txt": "a plot is a .png or .svg file; 'report.txt' is none",
    "--input 2x5 --plan p --rename a=b": "a plan says where everything goes: leave --rename out",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_is_a_sentence_and_exit_code_2(arguments, bridge):
    code, out, err = bridge("doctor", *MODELS, *arguments.split())
    assert (code, out) == (2, "")
    assert " ".join(err.split()).endswith(f"Error: Invalid value: {WRONG[arguments]}")


def test_a_model_that_is_none_of_torchs_is_exit_code_2(bridge):
    code, out, err = bridge("verify", "zoo:net", "zoo:net", "--input", "2x5")
    assert (code, out) == (2, "")
    assert "inputs are for the forward of a torch.nn.Module" in err


def test_a_report_that_cannot_be_written_is_a_sentence(bridge):
    code, _, err = bridge("doctor", *MODELS, "--input", "2x5", "--markdown", "no/report.md")
    assert code == 2
    assert "no/report.md cannot be written: No such file or directory" in err
