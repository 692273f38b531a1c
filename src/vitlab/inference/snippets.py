"""The code in a model card: how an exported folder is used without vitlab, in a dozen lines."""

from typing import Any

from torch import nn

from vitlab.core.checkpoint import CheckpointMeta
from vitlab.inference.timm_format import to_timm, why_not_timm
from vitlab.models.layers import pair
from vitlab.models.timm_model import TimmModel
from vitlab.models.torchvision_model import TorchvisionModel

SHOW = """
for place in probabilities.argsort()[::-1][:3]:
    print(f"{classes[place]}: {probabilities[place]:.1%}")
"""


def onnx(meta: CheckpointMeta, *, raw: bool, int8: bool) -> tuple[str, str]:
    """Return what to say of an ONNX file, and code that runs it."""
    if raw:
        note = (
            "`model.onnx` takes normalised images, float32 `images` (N, C, H, W), returns `logits` (N, K). "
            "In this folder, with onnxruntime and pillow alone:"
        )
        pixels = """
mean, std = (np.array(json.loads(meta[key]), np.float32)[:, None, None] for key in ("mean", "std"))
pixels = (pixels.astype(np.float32) / 255 - mean) / std
logits = session.run(None, {"images": pixels})[0][0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
"""
    else:
        small = " `model_int8.onnx` is the same in 8 bits." if int8 else ""
        note = (
            "`model.onnx` takes pixels, uint8 `images` (N, C, H, W), normalises them itself, and returns "
            f"`probabilities` (N, K).{small} In this folder, with onnxruntime and pillow alone:"
        )
        pixels = """
probabilities = session.run(None, {"images": pixels})[0][0]
"""
    code = f"""
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
meta = session.get_modelmeta().custom_metadata_map
classes = json.loads(meta["classes"])
_, channels, height, width = session.get_inputs()[0].shape
image = {opened(meta)}{resized(meta)}.resize((width, height), Image.Resampling.BILINEAR)
pixels = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)[None]
"""
    return note, code.rstrip() + pixels.rstrip() + SHOW


def timm(meta: CheckpointMeta) -> tuple[str, str]:
    """Return what to say of a folder of timm's, and code that runs it."""
    code = f"""
import timm
import torch
from PIL import Image

net = timm.create_model("local-dir:.", pretrained=True).eval()
classes = net.pretrained_cfg["label_names"]
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
image = {opened(meta)}{resized(meta)}
with torch.no_grad():
    probabilities = net(transform(image)[None]).softmax(-1)[0].numpy()
"""
    return "timm opens this folder. In it:", code.rstrip() + SHOW


def library_call(net: nn.Module, meta: CheckpointMeta) -> dict[str, Any] | None:
    """Return how a library builds a network by itself: package, name and arguments; None where it cannot."""
    config, classes = meta["config"]["model"], len(meta["classes"])
    if isinstance(net, TimmModel):
        form = to_timm(net, config, classes)
        return {"package": "timm", "name": form.architecture, "arguments": form.arguments}
    if isinstance(net, TorchvisionModel) and config["channels"] == 3:  # torchvision has no others
        name, side = net.name.partition(".")[0], net.image_size[0]
        sizes: dict[str, dict[str, Any]] = {
            "vit_": {"image_size": side},
            "maxv": {"input_size": list(net.image_size)},
        }
        arguments = {"num_classes": classes, **config["kwargs"], **sizes.get(name[:4], {})}
        return {"package": "torchvision", "name": name, "arguments": arguments}
    return None


def safetensors(net: nn.Module, meta: CheckpointMeta) -> tuple[str, str]:
    """Return what to say of a file of weights, and code that does with it what is possible without vitlab."""
    if call := library_call(net, meta):
        package = call["package"]
        build = "timm.create_model" if package == "timm" else "torchvision.models.get_model"
        code = f"""
import json

import {package}
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

config = json.load(open("config.json"))
classes, library = config["classes"], config["library"]
net = {build}(library["name"], **library["arguments"]).eval()
net.load_state_dict(load_file("model.safetensors"))
height, width = config["image_size"]
mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
image = {opened(meta)}{resized(meta)}.resize((width, height), Image.Resampling.BILINEAR)
with torch.no_grad():
    probabilities = net(((pil_to_tensor(image) / 255 - mean) / std)[None]).softmax(-1)[0].numpy()
"""
        return f"The weights have {package}'s names. In this folder, with {package}:", code.rstrip() + SHOW
    reason = why_not_timm(net)
    way = "`--format timm` has it as timm builds it" if reason is None else f"timm cannot build it: {reason}"
    note = (
        "These are weights by name, and no program: the network that they belong to is code of "
        f"vitlab's, `{meta['config']['model']['_target_']}`, built from `model` in config.json. To run it "
        f"without vitlab, `export.py --format onnx`; {way}. To train on from here, `python train.py … "
        "model.checkpoint_path=FOLDER`. What there is to see without vitlab:"
    )
    code = """
import json

from safetensors.torch import load_file

config = json.load(open("config.json"))
print(config["architecture"], "of", len(config["classes"]), "classes")
for name, weight in load_file("model.safetensors").items():
    print(name, tuple(weight.shape))
"""
    return note, code


def opened(meta: CheckpointMeta) -> str:
    """Return the code that opens an image as the network sees it."""
    return f'Image.open("image.jpg").convert("{"L" if len(meta["mean"]) == 1 else "RGB"}")'


def resized(meta: CheckpointMeta) -> str:
    """Return the code that brings an image to the size of the data, where the network's is another."""
    size = pair("data.image_size", meta["config"]["data"]["image_size"])
    return "" if list(size) == meta["input_size"] else f".resize({size[::-1]}, Image.Resampling.BILINEAR)"
