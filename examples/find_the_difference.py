"""A port of a torch model to Flax gives other numbers; one mistake after the other is found and mended.

    python examples/find_the_difference.py --plot difference.svg

The port has four mistakes that a first port often has. `bridge.verify` runs both models on one image,
says at which layer they part and what usually does that; the port is mended by its word, and verified
again, until the two are the same.
"""

from pathlib import Path
from typing import Annotated

import flax.linen as nn
import jax
import numpy as np
import torch
import typer
from rich.console import Console

import bridge as br

console = Console(highlight=False)


class Original(torch.nn.Module):
    """Two convolutions with a norm and a GELU, and a dense layer on what is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.body = torch.nn.Conv2d(8, 12, 3, padding=1)
        self.head = torch.nn.Linear(12 * 16 * 16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.gelu(self.norm(self.stem(image)))
        return self.head(torch.nn.functional.gelu(self.body(x)).flatten(1))


class Port(nn.Module):
    """The same in Linen, as it is written at first; each field is one mistake."""

    padding: str | int = "SAME"
    epsilon: float = 1e-3
    approximate: bool = True
    channels_first: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = nn.Conv(8, (3, 3), 2, padding=self.padding, name="stem")(image)
        x = nn.BatchNorm(True, momentum=0.9, epsilon=self.epsilon, name="norm")(x)
        x = nn.Conv(12, (3, 3), name="body")(nn.gelu(x, self.approximate))
        x = nn.gelu(x, self.approximate)
        x = x.transpose(0, 3, 1, 2) if self.channels_first else x
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


MENDED = {  # what to type for a cause that is found
    "padding": {"padding": 1},
    "eps": {"epsilon": 1e-5},
    "activation": {"approximate": False},
    "flatten order": {"channels_first": True},
}


def verified(port: Port, original: Original, image: np.ndarray) -> br.Report:
    """The port with the original's weights against the original."""
    module = br.from_linen(port).init(jax.random.key(0), image.transpose(0, 2, 3, 1))
    module = br.load_state_dict(module, original, strict=False)  # it reports what differs below
    return br.verify(module, original, image)


def main(
    plot: Annotated[Path | None, typer.Option(help="a .png or .svg of the first report")] = None,
) -> None:
    """Finds what is wrong with the port, and mends it."""
    torch.manual_seed(0)
    original = Original().eval()
    torch.nn.init.uniform_(original.norm.running_var, 0.05, 0.5)
    image = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    port = Port()
    report = verified(port, original, image)
    if plot is not None:
        report.plot(plot)
    while not report.passed:
        console.rule(f"[bold]{report.distance:.1e} away", align="left")
        console.print(str(report), soft_wrap=True)
        causes = [one.cause for one in report.findings if one.cause in MENDED]
        if not causes:
            console.print("\nThe doctor knows no more.")
            raise typer.Exit(1)
        for cause in dict.fromkeys(causes):
            console.print(f"\nmended: [bold]{cause}[/bold]")
            port = port.clone(**MENDED[cause])
        report = verified(port, original, image)
    console.rule("[bold]the same", align="left")
    console.print(str(report), soft_wrap=True)
    console.print(f"\nrelative distance of the outputs: {report.distance:.1e}")


if __name__ == "__main__":
    typer.run(main)
