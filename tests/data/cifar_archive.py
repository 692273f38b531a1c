"""A small archive of CIFAR-10's format, and the data set that is built from it."""

from tests.data.helpers import cifar_files, config, md5, tar_gz
from vitlab.data import datasets

NAME = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
ARCHIVE = tar_gz(cifar_files())


def cifar(root, url="http://127.0.0.1:1/none", **changes):
    options = {"root": str(root), "url": url, "md5": md5(ARCHIVE), "val_size": 10, "batch_size": 8}
    return datasets.build(config("cifar10", **options | changes))


def leftovers(root) -> set[str]:
    return {f.name for f in root.iterdir()} - {NAME, FOLDER, f".{NAME}.lock"}
