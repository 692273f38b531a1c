"""What a tutorial's stack reaches in a given wall time, everything included, or after so many images.

    python -m experiments.ten_minutes.tutorial data=image_folder data.root=DIR --minutes=10 --out=FILE.json
    python -m experiments.ten_minutes.tutorial … --images 8000 40000 --out=FILE.json

vit-pytorch's ViT (patch 4, dim 192, depth 6), Adam at 1e-4, float32, PIL images with crop, flip and
AutoAugment in a DataLoader, classes as targets: no schedule, no label smoothing, not compiled. It trains on
the 45,000 images that vitlab trains on. The test images come when the time is up, or after each number of
``--images``; they decide nothing and their seconds are not counted, as vitlab's own evaluations are.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torchvision  # noqa: E402

from experiments.input_speed import references  # noqa: E402
from vitlab.config import preflight, to_plain  # noqa: E402
from vitlab.core.cpu_count import count_cores  # noqa: E402
from vitlab.training.build import build  # noqa: E402

MODEL = ("model=vit_tiny", "augment=autoaugment", "trainer=cpu", "trainer.precision=32", "compile=false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float)
    length.add_argument("--images", type=int, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments, overrides = parser.parse_known_args()
    (cfg,) = preflight([*MODEL, *overrides])
    job = build(to_plain(cfg))  # for its data, and to count its images
    images, labels = job.data.train_images(job.data.num_train)
    sizes = tuple(images.shape[-2:]), job.data.input_size
    transform = references.transform(torchvision.transforms, job.config, *sizes, job.data.mean, job.data.std)
    torch.manual_seed(job.config["seed"])
    net = references.tutorial_net(job.config["model"] | {"num_classes": len(job.data.classes)})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    pool = references.Pool(images, labels, transform, pil=True)
    # The best of 0, 1 and 2 on two cores, see experiments/input_speed; on one there is none to spare.
    workers = min(1, count_cores() - 1)
    batches = references.load(pool, job.plan.batch_size, workers, job.config["seed"], torch.device("cpu"))
    steps, seconds, results, begun = 0, 0.0, [], time.monotonic()
    for mark in arguments.images or [60 * arguments.minutes]:
        net.train()
        started = time.monotonic()
        while (steps * job.plan.batch_size if arguments.images else time.monotonic() - STARTED) < mark:
            inputs, targets = next(batches)
            loss = F.cross_entropy(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        seconds += time.monotonic() - started
        results.append(
            {
                "seed": job.config["seed"],
                "steps": steps,
                "epochs": steps * job.plan.batch_size / job.data.num_train,
                "images_per_second": steps * job.plan.batch_size / seconds,
                "wall_seconds": begun - STARTED + seconds,
                "test/accuracy": accuracy(net, job.data.test_dataloader(), job.data),
            }
        )
    arguments.out.write_text(json.dumps(results if arguments.images else results[0], indent=2) + "\n")


@torch.no_grad()
def accuracy(net: torch.nn.Module, loader: object, data: object) -> float:
    net.eval()
    right = total = 0
    for batch in loader:
        inputs = data.preprocess(batch.images)
        targets = batch.targets[: batch.valid]
        right += int((net(inputs)[: batch.valid].argmax(1) == targets).sum())
        total += len(targets)
    return right / total


if __name__ == "__main__":
    main()
