"""Train the starter again from FER2013.

    python -m caan.starter all --faces fer2013.parquet --output DIR
    python -m caan.starter head --faces fer2013.parquet --output DIR

`all` trains the face network and then its head, which it writes to DIR/model. `head` trains only a
head, for the shipped face network or for other `--weights`.
"""

import logging
from collections.abc import Callable

import torch
import tyro

from caan.starter.face_recipe import RecipeConfig, train
from caan.starter.head_recipe import HeadConfig, make_head

Commands = dict[str, Callable[..., RecipeConfig | HeadConfig]]


def main() -> None:
    """Run the recipe that the command line names."""
    commands: Commands = {"all": RecipeConfig, "head": HeadConfig}
    options = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if isinstance(options, RecipeConfig):
        weights = train(options)
        make_head(HeadConfig(faces=options.faces, output=options.output / "model", weights=weights))
    else:
        torch.set_num_threads(1)
        make_head(options)


if __name__ == "__main__":
    main()
