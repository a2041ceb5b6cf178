"""The fresh process behind a merge certificate: `python -m studio.adapters.verify OUT REFERENCE`.

It shares nothing with the process that wrote the files: it loads the folder as a person would,
puts back the adapters that could not be folded, and prints one line of JSON.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from studio.errors import StudioError


def verify(folder: Path, reference: Path) -> dict[str, Any]:
    """Compare the model in `folder` with the live stack's logits in `reference`.

    Raises:
        StudioError: The folder cannot be loaded.
    """
    import torch
    from safetensors import safe_open

    from studio.adapters.merge import compare, logits_of
    from studio.backbone import Backbone
    from studio.models.loading import load
    from studio.spec import ModelSource

    with safe_open(reference, framework="pt") as file:
        plan = json.loads(file.metadata()["plan"])
        logits = file.get_tensor("logits")
    dtype = "float32" if plan["fp32"] else "auto"
    backbone = Backbone(load(ModelSource(path=str(folder), dtype=dtype), "cpu").model)
    stack = []
    for place, (path, weight) in enumerate(plan["left"]):
        backbone.load(str(place), Path(path))
        stack.append((str(place), weight))
    backbone.use(stack)
    ours = logits_of(backbone, [torch.tensor(row) for row in plan["ids"]])
    return compare(ours, logits, fp32=plan["fp32"])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        print(json.dumps(verify(Path(sys.argv[1]), Path(sys.argv[2]))))
    except StudioError as error:
        print(json.dumps({"error": error.text}))
