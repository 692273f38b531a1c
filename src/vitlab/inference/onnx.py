"""A network as an ONNX file, in float32 and in 8 bits, and ONNX Runtime to run one."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.core.extras import need
from vitlab.models.attention_weights import eager_copy

INPUT, PROBABILITIES, LOGITS = "images", "probabilities", "logits"
BATCH = 64  # images in one pass over a file


class WithSoftmax(nn.Module):
    """A classifier (B, C, H, W) → logits (B, K), that returns probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, K)."""
        return self.model(images).softmax(-1)


def export_onnx(
    model: nn.Module,
    path: Path,
    size: tuple[int, int, int],
    *,
    raw: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as one ONNX file, for any number of images (N, C, H, W).

    Its input is called ``images``, its output ``probabilities`` (N, K), or with ``raw`` ``logits``.

    Args:
        model: takes uint8 images and returns logits; with ``raw``, takes normalised float32 ones.
        path: of the file.
        size: (C, H, W) of the images.
        raw: whether the file is to hold ``model`` alone, without the softmax.
        metadata: what the file says of itself, a text each or, as JSON, anything else.
    """
    net = eager_copy(model)
    # A batch of two: an export from one image takes the one for a constant.
    images = torch.zeros(2, *size, dtype=torch.float32 if raw else torch.uint8)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            net if raw else WithSoftmax(net).eval(),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[LOGITS if raw else PROBABILITIES],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None
    for key, value in (metadata or {}).items():
        program.model.metadata_props[key] = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
    program.save(path, external_data=False)


def quantize(path: Path, target: Path, images: Tensor) -> None:
    """Write a file of `export_onnx` in 8 bits, its activations scaled by what ``images`` make of them.

    Convolutions, dense layers and the products of attention are done in 8 bits; norms, GELU and softmax
    stay in float32. Weights have a scale a channel, and 7 bits: with 8, sums of two products overflow on
    processors without VNNI, where an accuracy fell from 80.7 to 71.6 %, and with 7 not at all. Ranges are the
    smallest and largest values seen: percentiles and entropy were no better.

    Args:
        path: the file in float32.
        target: the file to write.
        images: uint8 (n, C, H, W), training images.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with quiet():
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    finally:
        prepared.unlink(missing_ok=True)


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what runs a file on the CPU: images (N, C, H, W) → (N, K)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def need_onnx(what: str) -> None:
    """Check that the extra ``onnx`` is installed, before anything of this module is used.

    Raises:
        UserError: it is not; ``what`` says in the message who needs it.
    """
    need("onnx", "onnxruntime", "onnxscript", extra="onnx", what=what)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter and the quantizer say of their own insides off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
