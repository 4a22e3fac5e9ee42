"""``ppuda.config``: the command line of programs that train or evaluate a GHN."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ghn_fast.ppuda.utils import default_device, set_seed

__all__ = ["init_config"]


def init_config(
    mode: str = "eval",
    parser: argparse.ArgumentParser | None = None,
    verbose: bool = True,
    **defaults: Any,
) -> argparse.Namespace:
    """Parses the command line and seeds the random generators.

    Args:
        mode: "eval", or "train_ghn", where a folder for the checkpoints is made too.
        parser: with arguments of one's own.
        verbose: print the arguments.
        defaults: other default values of arguments.

    Raises:
        NotImplementedError: another mode, or training on several GPUs.
    """
    if mode not in ("eval", "train_ghn"):
        raise NotImplementedError(f"mode is 'eval' or 'train_ghn', not {mode!r}")
    training = mode == "train_ghn"
    parser = parser or argparse.ArgumentParser()
    _add_common(parser, training)
    is_imagenet = parser.parse_known_args()[0].dataset.lower().startswith("imagenet")
    if training:
        _add_training(parser, is_imagenet)
    parser.set_defaults(num_workers=8 if is_imagenet else 0, imsize=224 if is_imagenet else 32)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    if training:
        _finish_training(args, is_imagenet)
    set_seed(args.seed)
    if verbose:
        for name, value in sorted(vars(args).items()):
            print(f"{name:20s} {value}")
    return args


def _add_common(parser: argparse.ArgumentParser, training: bool) -> None:
    add = parser.add_argument
    add("-d", "--dataset", default="cifar10", help="cifar10 or imagenet")
    add("-D", "--data_dir", default="./data", help="folder of images and of DeepNets-1M")
    add("--test_batch_size", type=int, default=64, help="images in a batch of evaluation")
    add("-s", "--seed", type=int, default=1111, help="of all random generators")
    add("-w", "--num_workers", type=int, help="processes that read images")
    add("--device", default=default_device(), help="cpu or cuda")
    add("--debug", type=int, default=1, help="how much is printed; 0 is least")
    add("-C", "--ckpt", help="checkpoint of the GHN")
    add("--split", default="train" if training else "predefined", help="of DeepNets-1M")
    add("-i", "--imsize", type=int, help="side of the images")
    if not training:
        add("--arch", help="index of the only network to evaluate")
        add("--noise", action="store_true", help="add noise to the images of evaluation")


def _add_training(parser: argparse.ArgumentParser, is_imagenet: bool) -> None:
    add = parser.add_argument
    add("-b", "--batch_size", type=int, default=256 if is_imagenet else 64, help="images")
    add("-e", "--epochs", type=int, default=300)
    add("--opt", default="adam", help="name of the optimiser")
    add("--lr", type=float, default=1e-3, help="initial learning rate")
    add("--scheduler", help="name of the learning rate's schedule")
    add("--grad_clip", type=float, default=5.0, help="largest norm of the gradient")
    add("-l", "--log_interval", type=int, default=100, help="steps between two lines of output")
    add("-S", "--save_dir", default="./checkpoints", help="where a folder for the run is made")
    add("--multigpu", action="store_true", help="not offered")
    add("--wd", type=float, default=1e-5, help="weight decay")
    add("--name", default="EXP", help="of the run")
    add("--amp", action="store_true", help="half precision")
    add("--lr_steps", default="200,250", help="epochs at which the learning rate falls")
    add("-g", "--gamma", type=float, default=0.1, help="by what it falls")
    add("--momentum", type=float, default=0.9)
    add("--layers", type=int, default=1, help="of the GHN")
    add("--ln", action="store_true", help="layer norm of the node embeddings")
    add("-M", "--num_nets", type=int, default=10**6, help="training networks")
    add("-v", "--virtual_edges", type=int, default=1, help="longest path with a virtual edge")
    add("-n", "--weight_norm", action="store_true", help="normalise predicted parameters")
    add("-m", "--meta_batch_size", type=int, default=1, help="networks in a step")
    add("--decoder", default="conv", help="conv or mlp")
    add("-H", "--hypernet", default="gatedgnn", help="gatedgnn or mlp")
    add("--hid", type=int, default=32, help="width of the node embeddings")
    add("--max_shape", help="largest decoded block: 'channels', 'out,in' or 'out,in,h,w'")


def _finish_training(args: argparse.Namespace, is_imagenet: bool) -> None:
    if args.multigpu:
        raise NotImplementedError("training on several GPUs is not offered; leave out --multigpu")
    args.lr_steps = [int(epoch) for epoch in args.lr_steps.split(",")]
    args.max_shape = _max_shape(args.max_shape or str(2 * args.hid), 16 if is_imagenet else 11)
    args.save = None
    if args.save_dir not in ("", "none", "None"):
        args.save = os.path.join(args.save_dir, f"{args.name}-{args.seed}")
        os.makedirs(args.save, exist_ok=True)


def _max_shape(text: str, side: int) -> tuple[int, ...]:
    sizes = [int(size) for size in text.split(",")]
    if len(sizes) not in (1, 2, 4):
        raise ValueError(f"--max_shape has 1, 2 or 4 numbers, not {text!r}")
    if len(sizes) == 4:
        return tuple(sizes)
    return (sizes[0], sizes[-1], side, side)
