"""Pre-train HiCMAE on unlabelled clips.

``python run_pretraining.py --data_path LIST --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_pretraining.py ...``; ``--help`` lists every flag.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

import torch
from torch import nn

from hicmae.config import add_arguments, as_dict, new_parser, parse_configs
from hicmae.data.batches import ClipIndex
from hicmae.data.dataset import PretrainClips
from hicmae.training import distributed
from hicmae.training.checkpoint import describe_clips, find_checkpoint, prepare
from hicmae.training.logs import RunLogger, read_lines
from hicmae.training.loop import show_end, train_epochs
from hicmae.training.pretraining import (
    PretrainConfigs,
    make_dataset,
    make_loss,
    make_model,
    rebuild_clips,
)
from hicmae.training.run import (
    Session,
    make_optimization,
    num_parameters,
    open_session,
    run_command,
    run_shape,
    training_loader,
)

logger = logging.getLogger("hicmae")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    parser = new_parser(__doc__)
    for config in PretrainConfigs.__annotations__.values():
        add_arguments(parser, config)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train; `argv` replaces the command line."""
    configs = parse_configs(build_parser(), PretrainConfigs, argv)
    with open_session(configs.run, as_dict(configs)) as session:
        pretrain(session, configs)


def pretrain(session: Session, configs: PretrainConfigs) -> None:
    """Build data, model and optimiser, then train epoch by epoch."""
    run, optim = configs.run, configs.optim
    dataset = make_dataset(configs)
    loader = training_loader(session, dataset, optim.batch_size)
    clips = {"training": describe_clips(dataset.clips, configs.data.data_root)}
    shape = run_shape(loader, optim, clips)
    found = find_checkpoint(session)

    torch.manual_seed(run.seed)
    model = make_model(configs).to(session.device)
    logger.info("%s: %.2f M parameters", configs.model.model, num_parameters(model) / 1e6)
    optimization = make_optimization(model, optim, session.precision, shape.steps)
    saver = prepare(session, found, model, optimization, shape)
    for epoch, means, run_logger in train_epochs(
        session,
        model,
        loader,
        make_loss(configs.loss),
        optimization,
        saver,
        configs.data.max_bad_clips,
    ):
        train = {f"train_{name}": value for name, value in means.items()}
        run_logger.epoch({**train, "epoch": epoch, "n_parameters": num_parameters(model)})
        if distributed.is_main() and run.image_freq and (epoch + 1) % run.image_freq == 0:
            last_step = (epoch + 1) * shape.steps - 1
            log_images(run_logger, session, model, dataset, configs, last_step)
        saver.end_epoch()
    saver.finish()
    show_end(session, saver, final_metrics(session))
    logger.info("pre-training done: %s", session.output_dir / f"checkpoint-{optim.epochs - 1}.pth")


def final_metrics(session: Session) -> dict[str, float]:
    """Return losses and contrastive accuracies of the last epoch, maybe of an earlier start."""
    last = read_lines(session.output_dir / "log.txt")[-1:]
    return {
        f"train_last/{name.removeprefix('train_')}": value
        for name, value in (last[0] if last else {}).items()
        if name.startswith(("train_loss", "train_contrastive_acc")) and value is not None
    }


def log_images(
    run_logger: RunLogger,
    session: Session,
    model: nn.Module,
    dataset: PretrainClips,
    configs: PretrainConfigs,
    step: int,
) -> None:
    """Show what the model makes of the first clips of the list, always with the same masks."""
    # Imported where it is drawn: the other ranks need no matplotlib.
    from hicmae.inference.style import figure_to_image
    from hicmae.visualize.reconstruction import reconstruction_figure

    items = [dataset[ClipIndex(0, index)] for index in range(min(2, len(dataset)))]
    rebuilt = rebuild_clips(model, items, configs.loss, session.precision)
    for index, clip in enumerate(rebuilt[:: configs.data.num_samples]):  # one draw of each clip
        image = figure_to_image(reconstruction_figure(*clip))
        run_logger.image(f"reconstruction/{index}", image, step)


if __name__ == "__main__":
    sys.exit(run_command(main))
