"""AVEL, the baseline that PSP grew from: A+V-att of Tian et al., "Audio-Visual Event Localization in Unconstrained
Videos", ECCV 2018. Network, losses and training, with its published protocol: batches of 64 that are not shuffled,
learning rate 0.001, divided by 10 after every 15,000 steps (here at the end of that epoch). Letters: see psp_model.py.

    python model/avel.py --setting fully --train
    python model/avel.py --setting weakly --trained_model_path model/AVEL_weakly.pt
"""
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import FEATURES, TrainingBatches, in_batches, network_inputs  # noqa: E402
from model.checkpoint import save_checkpoint  # noqa: E402
from model.data import read_data  # noqa: E402
from model.evaluate import evaluate_checkpoint, predict, train_seeds  # noqa: E402
from model.options import data_sizes, main_options, parse_options, run_header  # noqa: E402
from model.run import Run  # noqa: E402
from psp_model import LSTM, AudioGuidedVisualAttention, Output, xavier_uniform  # noqa: E402
from utils import one_line_errors, set_seed, set_up_device, wrap_for_training  # noqa: E402

DECAY_STEPS = 15000


class AVELNetwork(nn.Module):
    """AVGA -> Bi-LSTMs -> concatenation -> classifier. Arguments as of `PSPNetwork`."""

    def __init__(self, audio_dim, visual_dim, map_size, num_classes):
        super().__init__()
        self.attention = AudioGuidedVisualAttention(audio_dim, visual_dim, map_size[0] * map_size[1])
        self.lstm_audio = LSTM(audio_dim, 128)
        self.lstm_visual = LSTM(visual_dim, 128)
        self.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, num_classes))
        xavier_uniform(self.attention, self.classifier)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, h, w, Dv] -> `Output` without similarity and psp."""
        attended, alpha = self.attention(audio, visual.flatten(2, 3))                     # [B, T, Dv], [B, T, R]
        audio_hidden, _ = self.lstm_audio(audio)                                          # [B, T, 256]
        visual_hidden, _ = self.lstm_visual(attended)                                     # [B, T, 256]
        hidden = torch.cat([audio_hidden, visual_hidden], dim=-1)                         # [B, T, 512]
        logits = self.classifier(F.relu(hidden))                                          # [B, T, C]
        return Output(logits, alpha.unflatten(-1, visual.shape[2:4]))


def avel_fully_supervised_loss(output, labels):
    """Multi-label soft margin of the segments' probabilities, taken as logits; labels [B, T] int -> scalar."""
    probability = F.softmax(output.logits, dim=-1).flatten(0, 1)
    one_hot = F.one_hot(labels.flatten(), probability.shape[-1]).to(probability.dtype)
    return F.multilabel_soft_margin_loss(probability, one_hot)


def avel_video_probability(logits):
    """Softmax over the classes of the maximum over time; [B, T, C] -> [B, C]."""
    return F.softmax(logits.amax(dim=1), dim=-1)


def avel_weakly_supervised_loss(output, video_label):
    """Multi-label soft margin of the video's probabilities, taken as logits; video_label [B, C] one-hot -> scalar."""
    return F.multilabel_soft_margin_loss(avel_video_probability(output.logits), video_label)


def in_order(videos, batch_size, seed):
    """Yields the positions of each epoch's batches, int64 [steps, B]: always the same, as the order file has them."""
    while True:
        yield in_batches(torch.arange(videos), batch_size)


def avel_milestones(steps_per_epoch, epochs):
    """The epochs after which the learning rate falls: those in which each 15,000th step ends."""
    falls = epochs * steps_per_epoch // DECAY_STEPS
    return [-(-DECAY_STEPS * n // steps_per_epoch) for n in range(1, falls + 1)]


def options():
    parser = main_options(__doc__, "AVEL")
    parser.add_argument("--setting", choices=["fully", "weakly"], required=True, help="segment or video labels")
    parser.set_defaults(model_name="AVEL", nb_epoch=300, batch_size=64, lr=1e-3)
    return parser


def train(args, data, device):
    """As `train` of the main scripts."""
    set_seed(args.seed)
    target, compute_loss = {"fully": ("labels", avel_fully_supervised_loss),
                            "weakly": ("video_label", avel_weakly_supervised_loss)}[args.setting]
    batches = TrainingBatches(data["train"].only(*FEATURES, target), args.batch_size, args.seed, device, in_order)
    network_args = data_sizes(data["train"].sizes)
    network = AVELNetwork(**network_args).to(device)
    model = wrap_for_training(network, args.precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    milestones = avel_milestones(batches.steps, args.nb_epoch)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)

    header = run_header(args, network_args, data, device, __file__)
    with Run(args, header, network, optimizer, schedule, batches.steps) as run:
        for epoch in range(run.start, args.nb_epoch):
            model.train()
            for batch in batches.epoch(epoch):
                loss = compute_loss(model(*network_inputs(batch)), batch[target])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.add(loss)
            record = run.end_steps(epoch)
            schedule.step()
            check = epoch > 0 and epoch % args.check_epoch == 0
            if (check or epoch == args.nb_epoch - 1) and run.writes:
                val, test = (predict(model, data[split], args.batch_size) for split in ("val", "test"))
                record |= {"val_accuracy": val.accuracy, "test_accuracy": test.accuracy, "score": val.accuracy}
                best = run.best_score
                if check or best is None:
                    kept = best is None or val.accuracy > best
                    if kept:
                        save_checkpoint(run.checkpoint_path, network, header, record)
                    run.note_check(record, test, kept)
            run.end_epoch(record)
        return run.report()


def main():
    args = parse_options(options())
    if args.trained_model_path:
        evaluate_checkpoint(args, AVELNetwork, __file__)
        return
    device = set_up_device(args.device, args.precision)
    data = read_data(args, ["train", "val", "test"], device)
    train_seeds(args, train, data, device)


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with one_line_errors():
        main()
